"""The tables that say what adapters a model has."""

from zoo import dense

from kopt import peft


def test_status_by_layer():
    model, _ = dense()
    assert peft.layer_status(model) == []
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["a"], modules_to_save=["b"]))
    peft.get_peft_model(model, peft.IA3(target_modules=["a"], feedforward_modules=[]), "second")
    a, b = peft.layer_status(model)
    assert (a.name, a.module_type, a.enabled, a.active_adapters) == ("a", "Dense", True, ["second"])
    assert (a.available_adapters, b.available_adapters) == (["default", "second"], ["default"])
    assert a.weights["default"] == {"lora_A": (5, 2), "lora_B": (2, 6)}
    assert (a.trainable_params, b.trainable_params) == ({"default": 0, "second": 6}, {"default": 0})
    assert a.methods == {"default": "LoRA r=2 α=8", "second": "IA3"}
    peft.set_adapter(model, "default")
    peft.merge_adapter(model)
    assert [status.merged_adapters for status in peft.layer_status(model)] == [["default"], ["default"]]
    assert peft.layer_status(model)[0].trainable_params["default"] == 22


def test_the_table(capsys):
    model, _ = dense()
    peft.summary(model)
    assert "has no adapters" in capsys.readouterr().out
    peft.get_peft_model(model, peft.LoRA(r=2, lora_alpha=4, target_modules=["a"], modules_to_save=["b"]))
    peft.get_peft_model(model, peft.BitFit(target_modules=["b"]), "shift")
    peft.summary(model)
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["layer", "class", "adapter", "method", "weights", "trained", "state"]
    assert rows[2] == ["a", "Dense", "default", "LoRA", "r=2", "α=4", "lora_A", "5×2,", "lora_B", "2×6", "0", "off"]
    assert rows[4][-2:] == ["6", "on"]
    assert len({line.index(word) for line, word in zip(text.splitlines()[2:4], ("LoRA", "LoRA"), strict=True)}) == 1
    assert text.splitlines()[-1] == "6 trained in 2 layers"


def test_a_long_table_is_shortened(capsys):
    model, _ = dense(6, 6, 6)
    for number in range(4):
        peft.get_peft_model(model, peft.LoRA(r=1, target_modules="all-linear"), f"n{number}")
    peft.summary(model)
    short = capsys.readouterr().out.splitlines()
    peft.summary(model, all=True)
    whole = capsys.readouterr().out.splitlines()
    assert (len(short), len(whole)) == (2 + 20 + 1, 2 + 24 + 1)
    assert "... 5 more rows: all=True" in short
    assert (short[:2], short[-1]) == (whole[:2], whole[-1])
