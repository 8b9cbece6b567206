"""Rules for matrices: which axes of a kernel are its inputs, and what AdamW moves instead."""

import keras
import numpy as np
import pytest
import references
import tensorflow as tf
from problems import RATE, own_fields
from registry import RULES

import kopt
from kopt.optimizers.engine.state.layout import Layout
from kopt.optimizers.matrix import muon
from kopt.optimizers.matrix.newton_schulz import orthogonalized
from kopt.optimizers.wrappers.wrapper import Wrapper

BY_LAYER = [name for name, cls in RULES.items() if cls.by_layer is True and not issubclass(cls, Wrapper)]
INPUTS = {"query": 1, "key": 1, "value": 1, "attention_output": 2}


@pytest.fixture
def eagerly():
    """Steps without a compiler, which takes longer than they do."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def network():
    """Returns a model with a weight of every kind."""
    x = inputs = keras.Input((10,), dtype="int32")
    x = keras.layers.Embedding(20, 16, name="embedding")(x)
    x = keras.layers.MultiHeadAttention(2, 5, name="attention")(x, x)
    x = keras.layers.Conv1D(12, 3, name="conv")(keras.layers.LayerNormalization(name="norm")(x))
    x = keras.layers.Conv1DTranspose(4, 3, name="up")(x)
    x = keras.layers.SeparableConv1D(6, 3, name="separable")(x)
    x = keras.layers.Dense(8, name="dense")(keras.layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def test_every_weight_is_seen_as_its_layer_uses_it():
    model = network()
    expected = {
        "attention/query/kernel": "Muon on 16 × 10",
        "attention/key/kernel": "Muon on 16 × 10",
        "attention/value/kernel": "Muon on 16 × 10",
        "attention/attention_output/kernel": "Muon on 10 × 16",
        "conv/kernel": "Muon on 48 × 12",
        "up/kernel": "Muon on 12 × 12",
        "separable/pointwise_kernel": "Muon on 4 × 6",
        "dense/kernel": "Muon on 6 × 8",
    }
    found = kopt.Muon().destinations(model)
    assert [*found] == [v.path for v in model.trainable_variables]
    assert {path: where for path, where in found.items() if where != "AdamW"} == expected
    chosen = kopt.Muon(others=["attention/", "up/"]).destinations(model)
    assert {path for path, where in chosen.items() if where == "AdamW"} == {
        path for path in found if path not in expected or path.startswith(("attention", "up"))
    } - {"head/kernel"}


def test_predictions_come_from_the_last_matrix_frozen_or_not():
    layers = [keras.layers.Dense(n) for n in (4, 5, 2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    kernels = [layer.kernel.path for layer in layers]
    for frozen, by_muon in (((), kernels[:2]), ((2,), kernels[:2]), ((0,), kernels[1:2])):
        for i, layer in enumerate(layers):
            layer.trainable = i not in frozen
        told = kopt.Muon().destinations(model)
        assert [path for path, where in told.items() if where != "AdamW"] == by_muon


def test_adapters_of_a_table_are_a_table_and_a_matrix():
    table = keras.layers.Embedding(9, 6, name="words")
    model = keras.Sequential(
        [keras.Input((2,)), table, keras.layers.Flatten(), keras.layers.Dense(3), keras.layers.Dense(1)]
    )
    model = kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=2, target_modules=["words"]))
    told = kopt.Muon().destinations(model)
    assert [*told.values()] == ["AdamW", "Muon on 2 × 6"]


@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 4, 6), (2, 6, 5)])
def test_matrices_come_back_as_they_were(shape):
    layout, x = Layout(shape), np.random.default_rng(0).normal(size=shape)
    layout.inputs, layout.outputs = tuple(range(1, len(shape))), (0,)
    seen = keras.ops.convert_to_numpy(layout.as_matrices(x))
    assert seen.shape == layout.matrices == (np.prod(shape[1:]), shape[0])
    np.testing.assert_array_equal(seen, x.reshape(shape[0], -1).T)
    np.testing.assert_array_equal(layout.from_matrices(seen), x)


def test_experts_are_stacked_matrices():
    layer = keras.layers.EinsumDense("bei,eio->beo", (3, 5))
    layer.build((None, 3, 4))
    optimizer = kopt.Muon()
    optimizer.build([layer.kernel])
    assert optimizer.setup.parameters[0].layout.matrices == (3, 4, 5)
    gradient = np.random.default_rng(1).normal(size=(3, 4, 5)).astype("float32")
    before = layer.kernel.numpy()
    optimizer.apply([tf.constant(gradient)], [layer.kernel])
    for moved, w, g in zip(layer.kernel.numpy(), before, gradient, strict=True):
        alone = keras.Variable(w)
        kopt.Muon().apply([tf.constant(g)], [alone])
        np.testing.assert_allclose(moved, alone.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["Muon", "NorMuon"])
def test_equal_matrices_move_together_as_each_would_alone(name, eagerly, monkeypatch):
    rng, seen = np.random.default_rng(0), []
    shapes = [(4, 6), (4, 6), (6,), (4, 6), (4, 5), (4, 6), (2, 2, 6), (2, 2, 6), (2, 200), (130, 200), (130, 200)]
    arrays, gradients = ([rng.normal(size=s).astype("float32") for s in shapes] for _ in range(2))
    made = muon.orthogonalized
    monkeypatch.setattr(muon, "orthogonalized", lambda x, *rest: seen.append(tuple(x.shape)) or made(x, *rest))

    def moved():
        weights = [keras.Variable(a, name=f"kernel_{i}" if a.ndim > 1 else "bias") for i, a in enumerate(arrays)]
        optimizer = RULES[name](0.1, multipliers=[("kernel_5", 0.5)], others=["kernel_3"], global_clipnorm=9.0)
        for _ in range(2):
            optimizer.apply([tf.constant(g) for g in gradients], weights)
        slots = [part for p in optimizer.setup.parameters for slot in p.slots.values() for part in slot.values()]
        return [np.asarray(v) for v in (*weights, *slots)]

    together = moved()
    assert seen == [(2, 4, 6), (4, 5), (4, 6), (2, 4, 6), (2, 200), (130, 200), (130, 200)] * 2
    monkeypatch.setattr(RULES[name], "stacks", lambda self, layout: False)
    for one, alone in zip(together, moved(), strict=True):
        np.testing.assert_allclose(one, alone, atol=2e-6)


def test_a_number_of_its_own_for_each_of_a_stack_is_an_error(eagerly, monkeypatch):
    counting = lambda self, g, s, t: (g, {"m": s.m, "v": s.v + 1})  # noqa: E731
    monkeypatch.setattr(kopt.Muon, "matrix_rule", counting)
    weights = [keras.Variable(np.ones((2, 3)), name="kernel") for _ in range(2)]
    with pytest.raises(ValueError, match="Muon moves several weights together, for which its slot 'v' is one number"):
        kopt.Muon().apply([tf.ones((2, 3))] * 2, weights)


@pytest.mark.few(3)
@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.1])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("CAME", "KLSOAP", "PSGDKron") else n for n in BY_LAYER]
)
def test_attention_equals_the_reference(name, decay):
    keras.config.set_floatx("float64")
    attention = keras.layers.MultiHeadAttention(2, 3)
    attention.build((None, None, 4), (None, None, 4))
    trained = attention.trainable_variables
    head = keras.layers.Dense(2)  # so that the last matrix is none of attention
    head.build((None, 4))
    optimizer = RULES[name](learning_rate=RATE, weight_decay=decay)
    optimizer.build([*trained, head.kernel])
    rng, hyper = np.random.default_rng(0), {k: optimizer.get_config()[k] for k in own_fields(RULES[name])}
    hyper |= {"learning_rate": RATE, "weight_decay": decay}
    steps = {}
    for v in trained:
        layer, kind = v.path.split("/")[-2:]
        inputs = INPUTS[layer] if kind == "kernel" else None
        w = v.numpy() if kind == "kernel" else v.numpy().ravel()
        shape = {"inputs": inputs} if inputs else {}
        if name == "AdamMini" and kind == "kernel" and layer in ("query", "key"):
            shape["heads"] = 2
        steps[v.path] = references.RULES[name](w, **hyper, **shape)
    for _ in range(20):
        gradients = [rng.normal(size=v.shape) for v in trained]
        optimizer.apply([*map(tf.constant, gradients), tf.zeros((4, 2), "float64")], [*trained, head.kernel])
        expected = [
            steps[v.path](g if v.path.endswith("kernel") else g.ravel())
            for v, g in zip(trained, gradients, strict=False)
        ]
    for v, w in zip(trained, expected, strict=True):
        np.testing.assert_allclose(v.numpy(), w.reshape(v.shape), atol=1e-6, err_msg=v.path)


@pytest.mark.parametrize(
    ("name", "lowest", "low", "high"), [("quintic", 1e-2, 0.68, 1.14), ("polar_express", 1e-3, 0.84, 1.13)]
)
@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (3, 40, 40)])
def test_directions_move_alike(name, lowest, low, high, shape):
    rng = np.random.default_rng(2)
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    s = 10 ** rng.uniform(-3.5, 0, (*u.shape[:-2], 40))
    x = (u * s[..., None, :]) @ vt
    o = keras.ops.convert_to_numpy(orthogonalized(tf.constant(x, "float32"), name, 5))
    made = np.diagonal(np.swapaxes(u, -1, -2) @ o @ np.swapaxes(vt, -1, -2), axis1=-2, axis2=-1)
    large = s >= lowest * np.linalg.norm(s, axis=-1, keepdims=True)
    assert large.sum() > 10 and low <= made[large].min() and made[large].max() <= high
    zero = orthogonalized(tf.zeros(shape), name, 5)
    np.testing.assert_array_equal(zero, np.zeros(shape))


def test_scion_has_a_norm_for_every_kind_of_weight(eagerly):
    model, rng = network(), np.random.default_rng(0)
    optimizer = kopt.Scion(1.0, weight_decay=0.0, radius=2.0, last_radius=3.0)
    told = optimizer.destinations(model)
    assert told["conv/kernel"] == "Scion on 48 × 12" and told["head/kernel"] == "Scion by signs"
    assert told["embedding/embeddings"] == "Scion by rows" and told["conv/bias"] == "Scion by length"
    before = {v.path: v.numpy() for v in model.trainable_variables}
    gradients = [tf.constant(rng.normal(size=v.shape), "float32") for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    steps = {v.path: v.numpy() - before[v.path] for v in model.trainable_variables}
    np.testing.assert_allclose(np.abs(steps["head/kernel"]), 3.0 / 8, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt((steps["embedding/embeddings"] ** 2).mean(1)), 2.0, rtol=1e-5)
    np.testing.assert_allclose(np.sqrt((steps["attention/query/bias"] ** 2).mean()), 2.0, rtol=1e-5)
    sizes = np.linalg.svd(steps["conv/kernel"].reshape(48, 12), compute_uv=False)
    assert sizes.min() > 0.68 and sizes.max() < 1.14  # 2 √(12/48) = 1


def test_whatever_the_direction_within_it_becomes_orthogonal(eagerly):
    rng, (kernel,) = np.random.default_rng(0), [keras.Variable(np.zeros((6, 9)), name="kernel")]
    optimizer = kopt.Orthogonalized(kopt.SOAP(1.0, every=1), scale="original", weight_decay=0.0)
    for _ in range(3):
        before = kernel.numpy()
        optimizer.apply([tf.constant(10 ** rng.uniform(-3, 1, (6, 9)) * rng.normal(size=(6, 9)), "float32")], [kernel])
    sizes = np.linalg.svd(kernel.numpy() - before, compute_uv=False) / np.sqrt(9 / 6)
    assert sizes.min() > 0.68 and sizes.max() < 1.14
    around_momentum = kopt.Orthogonalized(kopt.Momentum(0.1, momentum=0.5))
    muon = kopt.Muon(0.1, momentum=0.5, nesterov=False, weight_decay=0.0)
    moved = []
    for each in (around_momentum, muon):
        kernel = keras.Variable(np.ones((6, 9)), name="kernel")
        for g in np.random.default_rng(1).normal(size=(3, 6, 9)):
            each.apply([tf.constant(g, "float32")], [kernel])
        moved.append(kernel.numpy())
    np.testing.assert_allclose(*moved, atol=1e-5)


def test_a_pattern_of_no_weight_is_an_error():
    with pytest.raises(ValueError, match=r"Muon\.others"):
        kopt.Muon(others=["lm_head"]).build([keras.Variable(np.ones((2, 3)), name="kernel")])
    with pytest.raises(ValueError, match="others"):
        kopt.Muon(others=3)


@pytest.mark.parametrize(
    "around",
    [kopt.Lookahead, kopt.Hyperball, lambda x: kopt.Route([("", x)]), lambda x: kopt.Switch("sgd", second=x)],
    ids=["Lookahead", "Hyperball", "Route", "Switch"],
)
def test_so_it_is_within_other_optimizers(around):
    with pytest.raises(ValueError, match=r"Muon\.others: the pattern 'lm_head' is found in none of the 1 weights"):
        around(kopt.Muon(others=["lm_head"])).build([keras.Variable(np.ones((3, 2)), name="kernel")])


def test_wrappers_tell_what_the_rule_within_moves():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    told = kopt.EMANesterov(kopt.Cautious(kopt.Muon())).destinations(model)
    assert [*told.values()] == ["Muon on 3 × 4", "AdamW", "AdamW", "AdamW"]
    assert {*kopt.Lookahead("lion").destinations(model).values()} == {"Lion"}


@pytest.mark.slow
def test_fit_saves_and_loads_the_choice(tmp_path):
    model = network()
    model.compile(kopt.Muon(1e-3), "mse")
    x, y = np.arange(80).reshape(8, 10) % 20, np.eye(8, 3)
    first = model.fit(x, y, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert first[-1] < first[0]
    by_path = {p.path: p for p in model.optimizer.setup.parameters}
    assert by_path["head/kernel"].layout.is_last and by_path["head/kernel"].slots["v"]["value"].shape == (8, 3)
    assert by_path["dense/kernel"].slots["v"]["value"].shape == ()
    assert by_path["embedding/embeddings"].lazy and not by_path["dense/kernel"].lazy
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for each in (model, loaded):
        each.fit(x, y, epochs=1, verbose=0, shuffle=False)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrappers_and_routes_know_the_layers():
    for optimizer in (kopt.Lookahead(kopt.Muon()), kopt.Route([("", kopt.Muon())])):
        model = network()
        optimizer.build(model.trainable_variables)
        found = {p.path: p.slots["v"]["value"].shape for p in optimizer.setup.parameters}
        assert found["attention/query/kernel"] == () and found["head/kernel"] == (8, 3)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["Muon", "SOAP", "Shampoo", pytest.param("PSGDKron", marks=pytest.mark.slow)])
def test_rows_of_embeddings_beside_matrices_are_lazy(name):
    embedding = keras.layers.Embedding(9, 4, name="table")
    model = keras.Sequential([keras.Input((2,)), embedding, keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(getattr(kopt, name)(0.1), "mse")
    before = embedding.embeddings.numpy()
    model.fit(np.array([[1, 4], [4, 7]]), np.ones((2, 2)), epochs=2, verbose=0)
    moved = np.abs(embedding.embeddings.numpy() - before).max(1) > 0
    assert moved.tolist() == [False, True, False, False, True, False, False, True, False]
