"""The schedules: their values, their bounds, their files."""

import json
import math

import keras
import numpy as np
import pytest

import kopt
from kopt import schedules

ALL = {name: getattr(schedules, name) for name in vars(schedules) if name[0].isupper()}
every_schedule = pytest.mark.parametrize("name", ALL)


def rates(schedule, steps):
    return keras.ops.convert_to_numpy(schedule(np.arange(steps)))


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        (schedules.WarmupLinear(0.5, steps=50, warmup=10), lambda p: 1 - p),
        (schedules.WarmupCosine(0.5, steps=50, warmup=10), lambda p: (1 + math.cos(math.pi * p)) / 2),
        (schedules.WarmupPolynomial(0.5, steps=50, warmup=10, power=3.0), lambda p: (1 - p) ** 3),
        (schedules.REX(0.5, steps=50, warmup=10), lambda p: (1 - p) / (1 - p / 2)),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.2, 0.1)])
def test_warmup_then_fall(schedule, shape, start, end):
    schedule = type(schedule)(**schedule.get_config() | {"start": start, "end": end})
    expected = [0.5 * (start + (1 - start) * t / 10) for t in range(10)]
    expected += [0.5 * (end + (1 - end) * shape((t - 10) / 40)) for t in range(10, 50)] + [0.5 * end] * 5
    np.testing.assert_allclose(rates(schedule, 55), expected, atol=1e-7)


def test_cosine_is_that_of_keras():
    ours = schedules.WarmupCosine(0.5, steps=50, warmup=10, end=0.1)
    theirs = keras.optimizers.schedules.CosineDecay(0.0, 40, alpha=0.1, warmup_target=0.5, warmup_steps=10)
    np.testing.assert_allclose(rates(ours, 60), [float(theirs(step)) for step in range(60)], atol=1e-7)


@pytest.mark.parametrize(
    ("form", "fall"),
    [
        ("linear", lambda p: 1 - p),
        ("cosine", lambda p: (1 + math.cos(math.pi * p)) / 2),
        ("sqrt", lambda p: 1 - math.sqrt(p)),
    ],
)
def test_warmup_stable_decay(form, fall):
    schedule = schedules.WarmupStableDecay(2.0, steps=40, warmup=5, decay=10, form=form, end=0.1)
    expected = [2.0 * t / 5 for t in range(5)] + [2.0] * 25
    expected += [2.0 * (0.1 + 0.9 * fall((t - 30) / 10)) for t in range(30, 41)]
    np.testing.assert_allclose(rates(schedule, 41), expected, atol=1e-6)


def test_power_cooldown():
    schedule = schedules.PowerCooldown(2.0, steps=40, warmup=5, decay=10, power=1.5, end=0.1)
    expected = [2.0 * t / 5 for t in range(5)] + [2.0] * 25
    expected += [2.0 * (0.1 + 0.9 * (1 - (t - 30) / 10) ** 1.5) for t in range(30, 41)]
    np.testing.assert_allclose(rates(schedule, 41), expected, atol=1e-6)


def test_joined_schedules_count_their_steps_from_zero(tmp_path):
    first, last = schedules.WarmupLinear(0.5, steps=10, warmup=5), keras.optimizers.schedules.CosineDecay(0.3, 20)
    joined = schedules.join([first, 0.01, last], [10, 13])
    expected = [*rates(first, 10), *[0.01] * 3, *(float(last(t)) for t in range(20)), 0.0]
    np.testing.assert_allclose(rates(joined, 34), expected, atol=1e-7)
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(joined)))
    again = keras.optimizers.schedules.deserialize(config)
    np.testing.assert_array_equal(rates(again, 34), rates(joined, 34))
    assert again.get_config() == joined.get_config()
    assert kopt.AdaBound(joined).base_learning_rate == 0.5  # the largest peak
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(kopt.AdamW(schedules.join([joined, 0.2], [40])), "mse")
    model.save(tmp_path / "m.keras")
    rate = keras.saving.load_model(tmp_path / "m.keras").optimizer._learning_rate
    np.testing.assert_allclose(rates(rate, 42)[38:], [0.0, 0.0, 0.2, 0.2], atol=1e-7)


@pytest.mark.parametrize(
    ("parts", "boundaries", "message"),
    [
        ([0.1, 0.2], [], "1 boundaries between them"),
        ([0.1, 0.2, 0.3], [5, 5], "rising whole numbers"),
        ([0.1, 0.2], [0], "rising whole numbers"),
        ([0.1, 0.2], [1.5], "rising whole numbers"),
        ([0.1], [], "two schedules"),
        ([0.1, lambda: 0.2], [3], "schedules of Keras or kopt"),
        ([0.1, -1.0], [3], "schedules"),
    ],
)
def test_schedules_that_do_not_join_are_refused(parts, boundaries, message):
    with pytest.raises(ValueError, match=message):
        schedules.join(parts, boundaries)


# torch 2.13: OneCycleLR(SGD, 0.5, total_steps=20, pct_start=0.3, anneal_strategy=form, cycle_momentum=False) and
# CyclicLR(SGD, 0.05, 0.5, step_size_up=4, mode=mode, gamma=0.9, cycle_momentum=False), every third of 20 rates.
ONE_CYCLE = {
    "cos": [0.02, 0.3341641, 0.493732, 0.4058728, 0.250001, 0.09412917, 0.006269997],
    "linear": [0.02, 0.308, 0.4642859, 0.3571434, 0.250001, 0.1428586, 0.03571614],
}
CYCLIC = {
    "triangular": [0.05, 0.3875, 0.275, 0.1625, 0.5, 0.1625, 0.275],
    "triangular2": [0.05, 0.3875, 0.275, 0.10625, 0.275, 0.10625, 0.10625],
    "exp_range": [0.05, 0.2960375, 0.1695742, 0.09358481, 0.1770933, 0.07316275, 0.08377129],
}


@pytest.mark.parametrize(("form", "peer"), [("cosine", "cos"), ("linear", "linear")])
def test_one_cycle_is_that_of_torch(form, peer):
    schedule = schedules.OneCycle(0.5, steps=20, form=form)
    np.testing.assert_allclose(rates(schedule, 20)[::3], ONE_CYCLE[peer], rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "peer"), [("triangular", "triangular"), ("triangular2", "triangular2"), ("exponential", "exp_range")]
)
def test_cycles_are_those_of_torch(mode, peer):
    schedule = schedules.Cyclical(0.5, steps=4, base=0.1, mode=mode, gamma=0.9)
    np.testing.assert_allclose(rates(schedule, 20)[::3], CYCLIC[peer], rtol=1e-5)


@every_schedule
def test_config_round_trip(name):
    schedule = ALL[name](0.5, steps=300)
    config = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    again = keras.optimizers.schedules.deserialize(config)
    assert type(again) is ALL[name]
    assert again.get_config() == schedule.get_config()
    assert name in repr(schedule)


def test_repr_shows_the_peak_though_it_be_the_default():
    assert repr(schedules.WarmupCosine(steps=300)) == "WarmupCosine(peak_learning_rate=0.001, steps=300)"
    assert "(peak_learning_rate=0.001, steps=9)" in repr(kopt.Adam(schedules.WarmupLinear(steps=9)))


@every_schedule
def test_every_argument_changes_the_rates(name):
    plain = {"peak_learning_rate": 0.5, "steps": 300, "warmup": 20, "mode": "exponential", "decay": 50}
    plain = {k: v for k, v in plain.items() if k in ALL[name].fields}
    before = rates(ALL[name](**plain), 320)
    for argument, field in ALL[name].fields.items():
        value = plain.get(argument, field.default)
        others = [c for c in field.choices if c != value] or [value * 2 if value and value < 0.5 else 0.25]
        others = [value * 3] if isinstance(value, int) and not isinstance(value, bool) else others
        for other in others if argument != "peak_learning_rate" else [0.3]:
            assert np.abs(rates(ALL[name](**plain | {argument: other}), 320) - before).max() > 1e-4, argument


@every_schedule
def test_bad_arguments(name):
    with pytest.raises(ValueError, match="needs steps"):
        ALL[name](0.1)
    with pytest.raises(ValueError, match=r"peak_learning_rate must be .* in \(0"):
        ALL[name](0.0, steps=10)
    with pytest.raises(ValueError, match="Did you mean 'steps'"):
        ALL[name](0.1, step=10)
    with pytest.raises(TypeError, match="one argument by position"):
        ALL[name](0.1, 10)
    if "warmup" in ALL[name].fields:
        with pytest.raises(ValueError, match="leaves none of 10 at the peak"):
            ALL[name](0.1, steps=10, warmup=10)


def test_an_optimizer_follows_updates_and_adabound_finds_the_peak():
    schedule = schedules.WarmupLinear(0.5, steps=10, warmup=5)
    optimizer = kopt.AdaBound(schedule, gradient_accumulation_steps=2)
    assert optimizer.base_learning_rate == 0.5
    v = keras.Variable([1.0])
    for _ in range(4):
        optimizer.apply([keras.ops.ones(1)], [v])
    assert float(optimizer.learning_rate) == pytest.approx(0.2)


def test_reduce_on_plateau_of_keras_works():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(kopt.Lookahead(kopt.AdamW(0.1)), "mse")
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)
    model.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=4, verbose=0, callbacks=[plateau])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1 / 8)


@every_schedule
def test_a_schedule_can_be_drawn(name, tmp_path):
    schedule = getattr(schedules, name)(0.1, steps=200)
    schedule.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert schedule.length() == (800 if name == "Cyclical" else 200)


def test_what_is_drawn_is_the_schedule(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **options: drawn.append((list(x), list(y))))
    falling = keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.5)
    joined = schedules.join([falling, schedules.REX(0.1, steps=30)], [20])
    joined.plot(tmp_path / "joined.png")
    ((updates, values),) = drawn
    assert updates == list(range(51))
    np.testing.assert_allclose(values, [float(joined(t)) for t in range(51)])
    joined.plot(tmp_path / "joined.png", steps=5)
    assert len(drawn[1][0]) == 6
    with pytest.raises(ValueError, match="steps"):
        joined.plot(tmp_path / "none.png", steps=0)
    assert not (tmp_path / "none.png").exists()
