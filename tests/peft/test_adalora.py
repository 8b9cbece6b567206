"""AdaLoRA: the penalty, the choice of ranks, and both beside torch's peft."""

import contextlib
import json

import keras
import numpy as np
import pytest
from method_peers import build
from probes import outputs, scramble, weights
from zoo import dense, floats

import kopt
from kopt import peft
from kopt.peft.model import adapters_of

FACTORS = ("lora_A", "lora_E", "lora_B")


def adapted(**options):
    model, x = dense()
    adapter = peft.AdaLoRA(**{"init_r": 4, "target_r": 2, "total_step": 6, "target_modules": ["a", "b"]} | options)
    peft.get_peft_model(model, adapter)
    return model, x


def kept(model):
    return {path: int((weights(model, path, "lora_E") != 0).sum()) for path in adapters_of(model).hosts}


def test_the_loss_has_the_distance_from_orthogonal_factors():
    model, x = adapted(orth_reg_weight=0.3)
    scramble(model, 0.5)
    y = outputs(model, x)
    model.compile("sgd", "mse")
    distances = []
    for path in ("a", "b"):
        a, b = weights(model, path, "lora_A"), weights(model, path, "lora_B")
        distances += [np.linalg.norm(a.T @ a - np.eye(4)), np.linalg.norm(b @ b.T - np.eye(4))]
    assert model.evaluate(x, y, verbose=0) == pytest.approx(0.3 * np.mean(distances), rel=1e-5)
    with peft.disable_adapter(model):
        assert len(model.losses) == 4  # what is trained after the block
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["a"]), "other")
    assert not model.losses


def test_ranks_are_taken_where_they_matter_least():
    model, x = adapted()
    y = floats(8, 6)
    y[:, 1:] = outputs(model, x)[:, 1:]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    callback = peft.AllocateRanks()
    with pytest.warns(UserWarning, match="at step 3 of total_step=6"):
        model.fit(x, y, epochs=3, verbose=0, batch_size=8, callbacks=[callback])
    assert sum(kept(model).values()) == int(4 * (1 - 3 / 6) ** 3 + 4) == 4
    model.fit(x, y, epochs=3, verbose=0, batch_size=8, callbacks=[callback])
    assert callback.step == 6 and sum(kept(model).values()) == 4
    live = outputs(model, x)
    shares = peft.convert_to_lora(model, "default", "lora", energy=1.0)
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    assert set(shares) == {"a", "b"}


@pytest.mark.slow
def test_what_is_left_stays_in_the_last_steps():
    model, x = adapted(tfinal=3, deltaT=2, tinit=1)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    seen, callback = [], peft.AllocateRanks()
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(kept(model)))
    model.fit(x, floats(8, 6), epochs=6, verbose=0, batch_size=8, callbacks=[callback, look])
    assert [sum(counts.values()) for counts in seen] == [8, 4, 4, 4, 4, 4]  # 2: (8 - 4) / 8 + 4, rounded down
    assert seen[2] == seen[3] == seen[4] == seen[5]


def test_gradients_that_are_noted_are_no_parameters(tmp_path):
    model, x = adapted()
    scramble(model)
    assert peft.get_nb_trainable_parameters(model)[0] == 4 * (5 + 6 + 1) + 4 * (6 + 6 + 1)
    assert all(key.endswith(FACTORS) for key in peft.get_adapter_state(model))
    assert not any("gradient" in key for status in peft.layer_status(model) for key in status.weights["default"])
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(
        outputs(keras.models.load_model(tmp_path / "model.keras"), x), outputs(model, x), atol=1e-6
    )


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint(tmp_path):
    y, found = floats(8, 6), []
    for parts in ((6,), (3, 6)):
        for epochs in parts:
            keras.utils.set_random_seed(0)
            model, x = adapted()
            x = np.ones_like(x) * np.arange(8)[:, None] / 8
            model.compile(keras.optimizers.Adam(0.1), "mse")
            callback = peft.AllocateRanks()
            checkpoint = kopt.checkpoint.Checkpoint(tmp_path / str(len(parts)), callbacks=[callback])
            begun = checkpoint.restore(model)
            with pytest.warns(UserWarning, match="at step 3") if epochs == 3 else contextlib.nullcontext():
                options = {"epochs": epochs, "initial_epoch": begun, "callbacks": [callback, checkpoint]}
                model.fit(x, y, batch_size=8, verbose=0, shuffle=False, **options)
        assert callback.step == 6
        found.append(outputs(model, x))
    np.testing.assert_array_equal(*found)


def test_a_step_without_finite_gradients_takes_no_ranks():
    model, x = adapted()
    y, bad = floats(8, 6), x * np.nan
    model.compile(kopt.SGD(0.1, on_nonfinite="skip"), "mse")
    callback = peft.AllocateRanks()
    with pytest.warns(UserWarning, match="total_step"):
        model.fit(bad, y, verbose=0, batch_size=8, callbacks=[callback])
        model.fit(x, y, verbose=0, batch_size=8, callbacks=[callback])
        model.fit(bad, y, verbose=0, batch_size=8, callbacks=[callback])
    model.fit(x, y, epochs=3, verbose=0, batch_size=8, callbacks=[callback])
    assert callback.step == 6 and sum(kept(model).values()) == 4


def test_an_adapter_that_is_not_trained_keeps_its_ranks():
    model, x = adapted(init_lora_weights=False)
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["a"]), "other")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="'default' is not trained"):
        model.fit(x, floats(8, 6), verbose=0, callbacks=[peft.AllocateRanks()])
    assert sum(kept(model).values()) == 8


def test_what_is_refused():
    for options in ({"target_r": 5}, {"tinit": 4, "tfinal": 2}):
        with pytest.raises(ValueError, match=r"takes target_r ≤ init_r, and tinit \+ tfinal < total_step"):
            adapted(**options)
    model, x = adapted()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    with pytest.raises(ValueError, match="leave out gradient_accumulation_steps"):
        model.fit(x, floats(8, 6), verbose=0, callbacks=[peft.AllocateRanks()])
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["a"]), "other")
    with pytest.raises(ValueError, match="goes with an AdaLoRA"):
        model.fit(x, floats(8, 6), verbose=0, callbacks=[peft.AllocateRanks("other")])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_as_in_peft(tmp_path):
    theirs, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from safetensors.numpy import load_file, save_file
    from torch_twin import Twin

    model, x = build("Dense")
    y = floats(*outputs(model, x).shape)
    base = model.get_weights()
    options = {"init_r": 3, "target_r": 1, "tinit": 2, "tfinal": 3, "total_step": 12, "deltaT": 2, "lora_alpha": 6}
    options |= {"target_modules": ["host", "second"], "orth_reg_weight": 0.1, "beta1": 0.7}
    torch.manual_seed(0)
    wrapped = theirs.get_peft_model(Twin("Dense", base), theirs.AdaLoraConfig(**options))
    wrapped.save_pretrained(str(tmp_path / "start"))
    peft.load_adapter(model, tmp_path / "start")
    model.compile(keras.optimizers.SGD(0.3), "mse")
    callback, losses = peft.AllocateRanks(), []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs["loss"]))
    model.fit(x, y, epochs=12, batch_size=4, shuffle=False, verbose=0, callbacks=[callback, note])

    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3)
    for step in range(1, 13):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(wrapped(torch.tensor(x)), torch.tensor(y))
        for name, p in wrapped.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                loss = loss + 0.1 / 4 * torch.norm(gram - torch.eye(3), p="fro")
        loss.backward()
        optimizer.step()
        wrapped.base_model.update_and_allocate(step)
        assert losses[step - 1] == pytest.approx(float(loss.detach()), abs=1e-5)
    for name in ("host", "second"):
        layer = getattr(wrapped.base_model.model, name)
        for factor in FACTORS:
            value = getattr(layer, factor)["default"].detach().numpy().T
            np.testing.assert_allclose(weights(model, name, factor), value, atol=1e-5)
    assert sum(kept(model).values()) == 2
    live = outputs(model, x)

    # peft writes what is kept alone, which is read as all of it
    wrapped.save_pretrained(str(tmp_path / "end"))
    config = json.loads((tmp_path / "end/adapter_config.json").read_text())
    assert sum(map(sum, config["rank_pattern"].values())) == 2
    peft.load_adapter(model, tmp_path / "end", "again")
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    assert weights(model, "host", "lora_A", "again").shape == (6, 3)
    peft.save_pretrained(model, tmp_path / "back", "again")
    back = theirs.PeftModel.from_pretrained(Twin("Dense", base), str(tmp_path / "back")).eval()
    np.testing.assert_allclose(back(torch.tensor(x)).detach().numpy(), live, atol=1e-5)

    tensors = load_file(tmp_path / "end/adapter_model.safetensors")
    tensors["base_model.model.host.lora_B"] = np.zeros((8, 3), "float32")
    save_file(tensors, tmp_path / "end/adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"rank_pattern keeps \d ranks of host"):
        peft.load_adapter(model, tmp_path / "end", "broken")
