"""Adapters from adapters, and batches whose rows have different ones."""

import time

import keras
import numpy as np
import pytest
from method_peers import build
from probes import outputs, scramble
from small_adapters import fitting
from zoo import dense, floats, integers

from kopt import peft
from kopt.peft.algebra.combination import combine, decompose
from kopt.peft.model import adapters_of

KINDS = ("Dense", "EinsumDense", "Conv2D", "Embedding")


def two(kind="Dense", make=None, names=("one", "two")):
    """Returns a model with adapters of random weights, an input, and what each of them gives."""
    model, x = build(kind)
    given = []
    for i, name in enumerate(names):
        rank = 2 if make is None else 0
        adapter = peft.LoRA(r=rank, lora_alpha=3.0 + i, target_modules=["host"]) if rank else make()
        peft.get_peft_model(model, adapter, name)
        scramble(model, 0.3 + 0.2 * i)  # which reaches the active one alone
    for name in names:
        peft.set_adapter(model, name)
        given.append(outputs(model, x))
    with peft.disable_adapter(model):
        plain = outputs(model, x)
    return model, x, plain, given


@pytest.mark.parametrize("kind", ["EinsumDense", "Conv2D", "Embedding"])
@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_exact_sums(combination, kind):
    model, x, plain, (one, other) = two(kind)
    peft.add_weighted_adapter(model, ["one", "two"], [0.5, -2.0], "new", combination, svd_rank=4)
    assert peft.get_model_status(model).active_adapters == ["new"]
    expected = plain + 0.5 * (one - plain) - 2 * (other - plain)  # these hosts have no activation
    np.testing.assert_allclose(outputs(model, x), expected, atol=2e-5)
    peft.set_adapter(model, "two")
    np.testing.assert_array_equal(outputs(model, x), other)  # the others stay


def test_the_difference_of_an_adapter_from_itself():
    model, x, plain, _ = two()
    peft.add_weighted_adapter(model, ["one", "one"], [1.0, -1.0], "none", "cat")
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)
    found = peft.adapter_difference(model, "one", "none")["host"]
    assert found["second"] < 1e-6 < found["first"] and abs(found["first"] - found["difference"]) < 1e-5
    assert peft.adapter_difference(model, "one", "one")["host"]["cosine"] == pytest.approx(1)


def test_arithmetic_by_hand():
    rng = np.random.default_rng(0)
    tensors = [np.array([1.0, -2.0, 3.0, 0.5]), np.array([-4.0, -1.0, 2.0, 0.25])]
    pruned = combine("magnitude_prune", tensors, [1.0, 1.0], 0.5, "total", rng)
    np.testing.assert_allclose(pruned, [-4.0, -2.0, 5.0, 0.0])
    # 1 of the first and 3 elements of the mean's sign: sums -4, -2, 5, 0
    np.testing.assert_allclose(combine("ties", tensors, [1.0, 3.0], 0.5, "total", rng), [-12.0, -2.0, 4.5, 0.0])
    kept = combine("dare_linear", [np.ones(10_000)], [1.0], 0.25, "total", rng)
    assert set(np.unique(kept)) == {0.0, 4.0} and abs(kept.mean() - 1) < 0.1
    # Where the first is kept it has the sign of the sum; a quarter of the rest is the second alone: 3 - 1 + 1/4.
    kept = combine("dare_ties", [np.full(40_000, 3.0), -np.ones(40_000)], [1.0, 1.0], 0.25, "total", rng)
    assert set(np.unique(kept)) == {-4.0, 0.0, 12.0} and abs(kept.mean() - 2.25) < 0.1
    _, b, share = decompose(np.diag([3.0, 4.0, 0.0]), None, 0.6)
    assert b.shape == (1, 3) and share == pytest.approx(16 / 25)


def test_what_dare_leaves_out_is_seeded():
    model, x, plain, _ = two()

    def added(name, seed, density):
        peft.add_weighted_adapter(model, ["one", "two"], [1.0, 1.0], name, "dare_linear", density=density, seed=seed)
        return outputs(model, x)

    first, other = added("a", 1, 0.5), added("b", 2, 0.5)
    np.testing.assert_array_equal(added("c", 1, 0.5), first)
    assert np.abs(first - other).max() > 1e-3 < np.abs(first - plain).max()
    keras.utils.set_random_seed(5)
    first = added("d", None, 0.5)
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(added("e", None, 0.5), first)
    peft.add_weighted_adapter(model, ["one", "two"], [1.0, 1.0], "whole", "linear")
    whole = outputs(model, x)
    np.testing.assert_allclose(added("f", 1, 1.0), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: peft.add_weighted_adapter(m, ["one"], [1.0, 2.0], "new"), "a finite weight for each name"),
        (lambda m: peft.add_weighted_adapter(m, ["one"], [1.0], "new", "ties"), "needs a density"),
        (lambda m: peft.add_weighted_adapter(m, ["one", "big"], [1.0, 1.0], "new", "linear"), "factors of one rank"),
        (lambda m: peft.add_weighted_adapter(m, ["hira"], [1.0], "new", "cat"), "factors of plain LoRA"),
        (lambda m: peft.add_weighted_adapter(m, ["head"], [1.0], "new"), "trains copies"),
        (lambda m: peft.add_weighted_adapter(m, ["none"], [1.0], "new"), "No adapter 'none'"),
        (lambda m: peft.convert_to_lora(m, "one", "new"), "takes rank or energy"),
        (lambda m: peft.MixedBatch(m), "trains copies"),
    ],
)
def test_what_is_refused(call, message):
    model, x = dense()
    for name, adapter in {
        "one": peft.LoRA(r=2, target_modules=["a"]),
        "big": peft.LoRA(r=3, target_modules=["a"]),
        "hira": peft.HiRA(r=2, target_modules=["a"]),
        "head": peft.LoRA(r=2, target_modules=["a"], modules_to_save=["b"]),
    }.items():
        peft.get_peft_model(model, adapter, name)
    before = outputs(model, x)
    with pytest.raises(ValueError, match=message):
        call(model)
    assert list(adapters_of(model).adapters) == ["one", "big", "hira", "head"]
    np.testing.assert_array_equal(outputs(model, x), before)


def test_sums_that_would_be_wrong():
    model, _, _, _ = two(names=("one", "two", "nan"))
    factor = adapters_of(model).hosts["host"].weights_of["nan"]["lora_B"]
    factor.assign(np.full(factor.shape, np.nan))
    before = peft.get_adapter_state(model, "one")
    add, convert = peft.add_weighted_adapter, peft.convert_to_lora
    for call, message in [
        (lambda m: add(m, ["one", "two"], [0.5, 0.5], "one", "linear"), "that it is made from"),
        (lambda m: convert(m, "one", "one", rank=2), "that it is made from"),
        (lambda m: add(m, ["one", "two"], "12", "new"), "a finite weight for each name"),
        (lambda m: add(m, {"one": 0.5}, [1.0], "new"), "a finite weight for each name"),
        (lambda m: add(m, ["one", "two"], 0.5, "new"), "a finite weight for each name"),
        (lambda m: add(m, ["one"], [1e300], "new", "cat"), "a finite weight for each name"),
        (lambda m: add(m, ["one", "nan"], [1, 1], "new", "cat"), "'nan' .* NaN or infinite .* host"),
        (lambda m: convert(m, "nan", "new", energy=0.9), "NaN or infinite"),
        (lambda m: peft.adapter_difference(m, "one", "nan"), "NaN or infinite"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(model)
    assert list(adapters_of(model).adapters) == ["one", "two", "nan"]
    assert all(np.array_equal(value, before[key]) for key, value in peft.get_adapter_state(model, "one").items())


@pytest.mark.parametrize("bias", [pytest.param(True, marks=pytest.mark.slow), False])
def test_sums_of_changes_of_biases(bias, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, use_bias=bias, name="a")])
    if bias:
        model.layers[0].bias.assign(floats(6))
    x, given = floats(5, 8), {}
    plain = outputs(model, x)
    methods = {"lora": peft.LoRA(r=2, lora_bias=True, target_modules=["a"]), "ia3": peft.IA3(target_modules=["a"])}
    for name, adapter in methods.items():
        peft.get_peft_model(model, adapter, name)
        scramble(model, 0.3)
        given[name] = outputs(model, x)
    peft.add_weighted_adapter(model, list(given), [0.5, -2.0], "sum", "svd", svd_rank=6)
    expected = plain + 0.5 * (given["lora"] - plain) - 2 * (given["ia3"] - plain)
    np.testing.assert_allclose(outputs(model, x), expected, atol=2e-5)
    peft.save_pretrained(model, tmp_path, "sum")
    peft.convert_to_lora(model, "lora", "same", rank=2)
    np.testing.assert_allclose(outputs(model, x), given["lora"], atol=2e-5)
    peft.load_adapter(model, tmp_path, "again")
    np.testing.assert_allclose(outputs(model, x), expected, atol=2e-5)


@pytest.mark.slow
def test_a_sum_with_a_bias_at_one_layer_of_two(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Dense(3, name="a")(keras.layers.Embedding(9, 6, name="table")(inputs))
    model, x = keras.Model(inputs, x), integers(9, 3, 4)
    for name, options in {
        "one": {"target_modules": ["table"]},
        "two": {"target_modules": ["a"], "lora_bias": True},
    }.items():
        peft.get_peft_model(model, peft.LoRA(r=2, **options), name)
        scramble(model, 0.3)
    peft.set_adapter(model, ["one", "two"])
    expected = outputs(model, x)
    peft.add_weighted_adapter(model, ["one", "two"], [1.0, 1.0], "sum")
    np.testing.assert_allclose(outputs(model, x), expected, atol=2e-5)
    with pytest.raises(ValueError, match="table has no lora_bias, and a file of peft"):
        peft.save_pretrained(model, tmp_path / "file", "sum")
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(keras.models.load_model(tmp_path / "m.keras"), x), expected, atol=2e-5)


@pytest.mark.slow
def test_two_kernels_of_a_layer_need_different_ranks(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 8)), keras.layers.LSTM(3, name="r")])
    both = peft.LoRA(r=6, target_modules=["cell"], target_parameters=["cell.recurrent_kernel"])
    peft.get_peft_model(model, both, "both")
    scramble(model, 0.3)
    peft.get_peft_model(model, peft.LoRA(r=1, target_parameters=["cell.recurrent_kernel"]), "one")
    scramble(model, 0.3)
    peft.set_adapter(model, ["both", "one"])
    x = floats(2, 4, 8)
    expected = outputs(model, x)  # both of them, in one kernel at least
    for kind in ("svd", "cat"):  # of rank 6 and 3, of rank 6 and 7
        peft.add_weighted_adapter(model, ["both", "one"], [1.0, 1.0], kind, kind)
        np.testing.assert_allclose(outputs(model, x), expected, atol=2e-5)
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(keras.models.load_model(tmp_path / "m.keras"), x), expected, atol=2e-5)


MERGED = {name: cls for name, cls in peft.adapters().items() if cls.mergeable and cls.__module__.startswith("kopt.")}


@pytest.mark.parametrize("kind", [k if k == "EinsumDense" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
@pytest.mark.parametrize("name", sorted(MERGED))
def test_every_method_as_lora(name, kind):
    cls = MERGED[name]
    adapter, (model, x) = cls(target_modules=["host"], **fitting(cls)), build(kind)
    try:
        peft.get_peft_model(model, adapter)
    except ValueError:
        return  # tests/peft/test_adapters.py
    scramble(model, 0.3)
    expected = outputs(model, x)
    if not any(layer.weights_of["default"] for layer in adapters_of(model).hosts.values()):
        with pytest.raises(ValueError, match="trains copies"):
            peft.convert_to_lora(model, "default", "lora", rank=2)
        return
    shares = peft.convert_to_lora(model, "default", "lora", energy=1.0)
    assert shares["host"] == pytest.approx(1)
    np.testing.assert_allclose(outputs(model, x), expected, atol=3e-5 * max(1, np.abs(expected).max()))
    assert type(adapters_of(model).adapters["lora"]) is peft.LoRA


def test_a_smaller_rank_keeps_less():
    model, _, _, _ = two(names=("one",))
    shares = [peft.convert_to_lora(model, "one", f"rank{r}", rank=r)["host"] for r in (1, 2)]
    assert 0.3 < shares[0] < 0.999 and shares[1] == pytest.approx(1)


def test_rows_with_different_adapters(tmp_path):
    x = inputs = keras.Input((5, 8))
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.Conv1D(6, 3, activation="relu", name="conv")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, "leaky_relu", name="head")(x))
    names = {
        "lora": peft.LoRA(r=2, target_modules=["query", "conv", "head"]),
        "dora": peft.DoRA(r=2, target_modules=["value", "head"]),
        "ia3": peft.IA3(target_modules=["key", "head"], feedforward_modules=[]),
        "vera": peft.VeRA(r=3, d_initial=1.0, target_modules=["head", "attention_output"]),
    }
    for name, adapter in names.items():
        peft.get_peft_model(model, adapter, name)
        scramble(model, 0.5)
    peft.set_scale(model, "dora", 0.5)
    x = floats(6, 5, 8)
    expected = {}
    for name in names:
        peft.set_adapter(model, name)
        expected[name] = outputs(model, x)
    with peft.disable_adapter(model):
        expected["__base__"] = outputs(model, x)
    rows = ["vera", "lora", "__base__", "dora", "ia3", "lora"]
    mixed = peft.MixedBatch(model)
    found = mixed.predict_rows(x, rows)
    for i, name in enumerate(rows):
        np.testing.assert_allclose(found[i], expected[name][i], atol=1e-5)
        assert name == "__base__" or np.abs(found[i] - expected["__base__"][i]).max() > 1e-3
    with pytest.raises(ValueError, match="6 rows, but 2 names"):
        mixed.predict_rows(x, ["lora", "ia3"])
    with pytest.raises(ValueError, match="No adapter 'lara'"):
        mixed.predict_rows(x, ["lara"] * 6)

    function, state = mixed.predict_function, peft.get_adapter_state(model, "lora")
    peft.set_adapter_state(model, "lora", {k: 2 * v for k, v in state.items()})  # a quick exchange
    again = mixed.predict_rows(x, rows)
    assert mixed.predict_function is function
    np.testing.assert_array_equal(again[[0, 2, 3, 4]], found[[0, 2, 3, 4]])
    assert np.abs(again[1] - found[1]).max() > 1e-3
    if keras.backend.backend() == "tensorflow":
        assert function.experimental_get_tracing_count() == 1
    peft.delete_adapter(model, "ia3")
    np.testing.assert_allclose(mixed.predict_rows(x, ["vera"] * 6), expected["vera"], atol=1e-5)


def test_rows_of_a_table_that_is_the_output_matrix_too():
    inputs = keras.Input((4,), dtype="int32")
    table = keras.layers.ReversibleEmbedding(9, 5, name="table")
    model = keras.Model(inputs, table(keras.ops.tanh(table(inputs)), reverse=True))
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["table"]))
    with pytest.raises(ValueError, match="read whole, so that rows cannot differ"):
        peft.MixedBatch(model).predict_rows(np.ones((2, 4), "int32"), ["default", "__base__"])


def both(kind, combination, tmp_path, **options):
    """Returns what a combination gives in kopt and in peft."""
    theirs, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from torch_twin import Twin

    model, x, _, _ = two(kind)
    base = build(kind)[0].get_weights()
    twin = Twin(kind, base).eval()
    for name in ("one", "two"):
        peft.save_pretrained(model, tmp_path / name, name)
    wrapped = theirs.PeftModel.from_pretrained(twin, str(tmp_path / "one"), adapter_name="one")
    wrapped.load_adapter(str(tmp_path / "two"), "two")
    shared = {"combination_type": combination, "density": 0.6} | ({"svd_rank": 3} if "svd" in combination else {})
    wrapped.add_weighted_adapter(["one", "two"], [0.7, -0.4], "new", **shared)
    wrapped.set_adapter("new")
    with torch.no_grad():
        expected = wrapped(torch.tensor(x).long() if kind == "Embedding" else torch.tensor(x)).numpy()
    peft.add_weighted_adapter(model, ["one", "two"], [0.7, -0.4], "new", **shared, **options)
    return outputs(model, x).reshape(expected.shape), expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "combination", ["linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd"]
)
@pytest.mark.filterwarnings("ignore")
def test_the_same_as_in_peft(kind, combination, tmp_path):
    np.testing.assert_allclose(*both(kind, combination, tmp_path), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("combination", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
@pytest.mark.filterwarnings("ignore")
def test_dare_is_that_of_peft_where_both_leave_out_the_same(combination, tmp_path, monkeypatch):
    torch, rng = pytest.importorskip("torch"), np.random.default_rng(7)

    def drawn(shares):
        kept = rng.random(tuple(shares.shape)[::-1]) < shares.numpy().flat[0]
        return torch.tensor(kept.T.astype("float32"))

    monkeypatch.setattr(torch, "bernoulli", drawn)
    found, expected = both("Dense", combination, tmp_path, seed=7)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.benchmark
def test_a_mixed_batch_costs_little_more_than_one():
    def stack(names):
        x = inputs = keras.Input((64, 384))
        for i in range(4):
            x = keras.layers.Dense(384, "gelu", name=f"dense_{i}")(x)
        model = keras.Model(inputs, x)
        for name in names:
            peft.get_peft_model(model, peft.LoRA(r=8, target_modules="all-linear"), name)
        return model

    x, alone, mixed = floats(64, 64, 384), stack("a"), peft.MixedBatch(stack("abcd"))
    runs = {"one": lambda: alone.predict(x, verbose=0), "mixed": lambda: mixed.predict_rows(x, list("abcd") * 16)}
    times = {name: [] for name in runs}
    for _ in range(12):
        for name, run in runs.items():  # in turn, for the machine does other things too
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    one, four = (min(times[name][1:]) for name in runs)
    print(f"one {1e3 * one:.1f} ms, mixed {1e3 * four:.1f} ms, {four / one:.2f}")
    assert four < 1.5 * one
