"""The contract of an optimizer, for every rule of the registry. No test names a rule."""

import functools
import json
import pathlib

import keras
import numpy as np
import pytest
import references
import tensorflow as tf
from problems import (
    BESIDE,
    RATE,
    descend,
    fair_rate,
    flat,
    network,
    own_fields,
    regression,
    variables,
    weights_and_gradients,
)
from references import JOINT, UNDECAYED
from registry import (
    PLAIN,
    RULES,
    VARIANTS,
    every_rule,
    every_rule_in_turn,
    every_variant,
    one_of_each,
)

import kopt
from kopt.optimizers.engine import run, step

# The contract gives every rule mini-batches; that full-batch rules warn of them is test_habits.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*compares whole losses")

PEERS = json.loads((pathlib.Path(__file__).parent / "peers.json").read_text())


def reference(optimizer, weights, gradients, learning_rate=RATE):
    """Runs the NumPy reference of an optimizer with its hyperparameters."""
    config = optimizer.get_config()
    hyper = {k: config[k] for k in own_fields(type(optimizer))}
    hyper |= {"learning_rate": learning_rate, "weight_decay": config["weight_decay"] or 0.0}
    return references.descend(type(optimizer).__name__, weights, gradients, **hyper)


def distance(a, b):
    """Returns the largest difference of two lists of arrays, relative to the largest element of the second."""
    return max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)) / max(np.abs(y).max() for y in b)


# ------------------------------------------------------------------------------------------------- the rules are right


@pytest.mark.parametrize(
    ("name", "options", "dtype", "tolerance"),
    [(name, options, "float32", 1e-6) for name, options in PLAIN.items()]
    + [pytest.param(*variant, "float64", 1e-12, marks=pytest.mark.slow) for variant in VARIANTS],
    ids=str,
)
def test_equals_the_float64_reference(name, options, dtype, tolerance):
    weights, gradients = weights_and_gradients()
    optimizer = RULES[name](learning_rate=RATE, **options)
    bound = references.allowed(name, tolerance, 1e-4 if dtype == "float32" else 1e-6)
    assert distance(descend(optimizer, weights, gradients, dtype), reference(optimizer, weights, gradients)) < bound


@every_rule_in_turn
def test_decay_equals_the_reference(name):
    weights, gradients = weights_and_gradients()
    optimizer = RULES[name](learning_rate=RATE, weight_decay=0.1)
    done = descend(optimizer, weights, gradients, "float64")  # some rules learn from differences and amplify rounding
    assert distance(done, reference(optimizer, weights, gradients)) < 1e-6


@pytest.mark.parametrize("run", PEERS["runs"], ids=lambda r: f"{r['peer']}-{r['optimizer']}-{r['rule']}")
def test_equals_its_peer(run):
    weights = [np.array(PEERS["W0"]), np.array(PEERS["b0"])]
    gradients = [[np.array(w), np.array(b)] for w, b in zip(PEERS["grads_W"], PEERS["grads_b"], strict=True)]
    for point in run["trajectory"]:
        keras.utils.set_random_seed(0)
        done = descend(RULES[run["rule"]](**run["hyper"]), weights, gradients[: point["after_step"]], "float64")
        moved = max(np.abs(a - w).max() for a, w in zip(done, weights, strict=True))
        for mine, theirs in zip(done, (point["W"], point["b"]), strict=True):
            assert np.abs(mine - np.array(theirs)).max() < 2e-6 * moved


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if v[1] != PLAIN[v[0]]], ids=str)
def test_every_own_argument_changes_the_result(name, options):
    base = PLAIN[name] | {k: v for argument in options for k, v in BESIDE.get(argument, {}).items()}

    def changes(weights, gradients, times=1, **around):
        top = times * fair_rate(RULES[name])
        rising = keras.optimizers.schedules.PolynomialDecay(top / 4, 20, top)
        made = [RULES[name](learning_rate=rising, **around, **given) for given in (base, options)]
        plain, other = (
            descend(optimizer, weights, gradients, "float64")
            + [np.asarray(a) for a in (optimizer.averages() if hasattr(optimizer, "averages") else ())]
            for optimizer in made
        )
        moved = max(np.abs(a - w).max() for a, w in zip(plain, weights, strict=False))
        return max(np.abs(a - b).max() for a, b in zip(other, plain, strict=True)) > 1e-4 * moved > 0

    weights, gradients = weights_and_gradients()
    # Rules that learn their own rate begin with tiny steps, and reach a fair size where the gradient stays the same.
    if changes(weights, gradients) or changes(weights, gradients[:1] * 200):
        return
    if changes(*weights_and_gradients(shapes=((2, 2, 3, 4),))):  # on kernels of convolutions alone
        return
    # Others act with decay alone, where a gradient is orthogonal to its weight, or with a large rate.
    assert changes(*weights_and_gradients(seed=58), weight_decay=0.1) or changes(weights, gradients[:1] * 200, times=30)


@every_rule_in_turn
def test_a_schedule_is_followed(name):
    schedule = keras.optimizers.schedules.PolynomialDecay(RATE, 30, 0.0)
    weights, gradients = weights_and_gradients()
    optimizer = RULES[name](learning_rate=schedule)
    rates = [RATE * (1 - t / 30) for t in range(20)]
    expected = reference(optimizer, weights, gradients, learning_rate=lambda t: rates[t - 1])
    assert distance(descend(optimizer, weights, gradients), expected) < references.allowed(name, 2e-6)


# ------------------------------------------------------------------------------------------------- it runs anywhere


@every_rule_in_turn
def test_eager_graph_and_xla_agree(name):
    weights, gradients = weights_and_gradients()
    calls = {
        "plain": None,
        "eager": lambda f: f,
        "graph": lambda f: tf.function(f, autograph=False),
        "xla": lambda f: tf.function(f, jit_compile=True, autograph=False),
    }
    done = {k: descend(RULES[name](learning_rate=RATE), weights, gradients, call=call) for k, call in calls.items()}
    bound = references.allowed(name, 1e-6)
    assert distance(done["eager"], done["plain"]) < bound
    assert distance(done["graph"], done["eager"]) < bound
    assert distance(done["xla"], done["eager"]) < bound


@pytest.mark.slow
@one_of_each
def test_one_trace_for_a_thousand_steps(name, monkeypatch):
    traces = []

    def counted(*args, **options):
        traces.append(args)
        return step.step(*args, **options)

    monkeypatch.setattr(run, "step", counted)
    optimizer, ws = RULES[name](), variables([np.ones(3)])
    for i in range(1000):
        optimizer.scale_loss(tf.constant(1.0))
        optimizer.apply([tf.constant(np.full(3, 1.0 + i), tf.float32)], ws)
        if i == 500:
            optimizer.learning_rate = 1e-4
    assert len(traces) == 1
    assert int(optimizer.iterations) == 1000


@pytest.mark.slow
@one_of_each
def test_fit(name, how=None):
    model = network(RULES[name](), **how or {})
    losses = model.fit(regression(), shuffle=False, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert int(model.optimizer.iterations) == 32


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize("how", [{"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}], ids=str)
def test_fit_in_every_way(name, how):
    test_fit(name, how)


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit", [True, False])
def test_fit_in_mixed_precision(name, policy, jit):
    keras.config.set_dtype_policy(policy)
    if RULES[name]().needs_loss and policy == "mixed_float16":
        pytest.skip("the loss scaling of Keras hides the loss")
    model = network(RULES[name](), jit_compile=jit)
    before = flat(model)
    losses = model.fit(regression(), shuffle=False, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert np.abs(flat(model) - before).max() > 0
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


@pytest.mark.slow
@one_of_each
def test_two_replicas_equal_one(name, two_devices):
    options = {"global_clipnorm": 0.3, "gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 3}
    one = network(RULES[name](**options))
    one.fit(regression(), shuffle=False, epochs=4, verbose=0)
    with two_devices.scope():
        two = network(RULES[name](**options))
    two.fit(regression(), shuffle=False, epochs=4, verbose=0)
    assert np.abs(flat(one) - flat(two)).max() < 1e-6
    assert int(two.optimizer.iterations) == 8


@every_rule_in_turn
def test_declared_facts_hold(name):
    cls, optimizer = functools.partial(RULES[name], **PLAIN[name]), RULES[name]()
    rate, ((weight, bias), gradients) = fair_rate(RULES[name]), weights_and_gradients(8)
    gradients += gradients[:1] * 8  # along which rules that learn their own rate make their steps longer
    whole = descend(cls(learning_rate=rate), [weight], [[g] for g, _ in gradients], "float64")[0]
    part = descend(cls(learning_rate=rate), [weight[1:3]], [[g[1:3]] for g, _ in gradients], "float64")[0]
    assert optimizer.row_wise == np.allclose(part, whole[1:3], rtol=1e-13, atol=0)  # powers round by their place
    plain, scaled = (
        descend(cls(learning_rate=rate), [weight, bias], [[c * g, c * h] for g, h in gradients], "float64")
        for c in (1.0, 2.0**-20)
    )
    assert optimizer.scale_free == all(map(np.array_equal, scaled, plain))


# ------------------------------------------------------------------------------------------------- files and configs


@every_variant
def test_config_round_trip(name, options):
    optimizer = RULES[name](
        learning_rate=RATE,
        multipliers=[("bias", 0.5)],
        decay_mask=[("bias", 0)],
        weight_decay=0.1,
        use_ema=True,
        **options,
    )
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    restored = keras.optimizers.deserialize(config)
    assert type(restored) is RULES[name]
    assert restored.get_config() == optimizer.get_config()


@every_rule_in_turn
def test_state_goes_on_where_it_was_saved(name):
    weights, gradients = weights_and_gradients(10)
    if (cls := RULES[name])().needs_loss:
        pytest.skip("what it looks at begins anew; the next test has them, too")
    saved, store = cls(learning_rate=RATE), {}
    middle = descend(saved, weights, gradients[:5])
    saved.save_own_variables(store)
    restored = cls(learning_rate=RATE)
    restored.load_own_variables(store)
    whole = descend(cls(learning_rate=RATE), weights, gradients)
    np.testing.assert_array_equal(
        np.hstack([*map(np.ravel, descend(restored, middle, gradients[5:]))]), np.hstack([*map(np.ravel, whole)])
    )


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_ema": True, "ema_overwrite_frequency": 3, "gradient_accumulation_steps": 2},
        {"state_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_five_epochs_save_load_five_equal_ten(name, options, tmp_path):
    data = regression()
    straight = network(RULES[name](**options))
    straight.fit(data, shuffle=False, epochs=5, verbose=0)
    straight.save(tmp_path / "m.keras")
    straight.fit(data, shuffle=False, epochs=5, verbose=0)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    loaded.fit(data, shuffle=False, epochs=5, verbose=0)
    np.testing.assert_array_equal(flat(straight), flat(loaded))
    assert int(loaded.optimizer.iterations) == int(straight.optimizer.iterations)


@every_rule_in_turn
def test_decay_only_where_masked(name):
    weights, gradients = weights_and_gradients(8)
    cls = RULES[name]
    plain, masked = (
        descend(cls(learning_rate=RATE, decay_mask=[("bias$", 0.0)], weight_decay=rate), weights, gradients, "float64")
        for rate in (0.0, 0.5)
    )
    assert np.array_equal(masked[0], plain[0]) == (name in UNDECAYED)
    if name not in JOINT:
        np.testing.assert_array_equal(masked[1], plain[1])


@every_rule_in_turn
def test_multipliers_scale_the_rate(name):
    weights, gradients = weights_and_gradients(3)
    options = {"base_learning_rate": RATE} if "base_learning_rate" in RULES[name].fields else {}
    made = [RULES[name](learning_rate=RATE, multipliers=[("bias$", 0.5)], **options)]
    made += [RULES[name](learning_rate=rate, **options) for rate in (RATE, RATE / 2)]
    halved, whole, half = (descend(optimizer, weights, gradients, "float64") for optimizer in made)
    if name in JOINT:  # every weight feels it
        assert not np.array_equal(halved[1], whole[1])
        return
    np.testing.assert_array_equal(halved[0], whole[0])
    np.testing.assert_allclose(halved[1], half[1], rtol=1e-6)


@every_rule
def test_names_and_documentation(name):
    assert type(kopt.get(name.upper())) is RULES[name]
    assert getattr(kopt, name) is RULES[name]
    for part in ("Slots:", "Row-wise" if RULES[name].row_wise else "Not row-wise", "Reference:"):
        assert part in RULES[name].__doc__
    inherited = "".join(cls.__doc__ or "" for cls in RULES[name].__mro__)
    assert all(f"{argument}:" in inherited for argument in own_fields(RULES[name]))
