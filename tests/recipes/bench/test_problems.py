"""The problems of the board: what they are made of, and that they can be passed."""

import keras
import numpy as np
import pytest

from recipes.bench import networks, vectors
from recipes.bench.descent import Descents, branches
from recipes.bench.problem import DRAWN, NETWORK, TABLE, VECTOR, Moment
from recipes.bench.recipe import _listed
from recipes.bench.thresholds import THRESHOLDS

LISTED = {problem.name: problem for problem in _listed()}
ONES = np.ones(vectors.SIZE)
PAIRED = np.repeat([1.0, 0.0], vectors.SIZE // 2)
MINIMA = {
    "bananas": [ONES],
    "chain": [ONES],
    "Powell": [0 * ONES],
    "sines": [np.repeat([3.0, np.sin(6.0)], vectors.SIZE // 2)],
    "ring": [vectors.SOUTH],
    "saddle": [1 - PAIRED],
    "flat saddle": [-ONES],
    "far": [30 * vectors.GOAL],
    "cliff": [0 * ONES],
    "rarely right": [-ONES],
    "both sides": [networks.GOAL],
    "recurrent": [networks.ROTATION],
    "symmetric": [np.linalg.eigh(networks.SQUARE)[1] * np.sqrt(np.linalg.eigh(networks.SQUARE)[0].clip(0))],
    "table": [networks.TRUE_ROWS, networks.TRUE_WEIGHT],
    "rare rows": [networks.TRUE_ROWS, networks.TRUE_WEIGHT],
    "rows and a weight": [networks.TRUE_ROWS, networks.TRUE_WEIGHT],
}
"""Where the error is 0, or as good as; elsewhere in a vector it is at the goal."""
SEARCHED = ("deep", "dead units", "batches")
"""Networks, whose best weights are not written down."""


def moment(rng, share=0.5):
    return Moment(share, rng.normal(size=DRAWN).astype("float32"), rng.uniform(size=DRAWN).astype("float32"))


def test_there_are_forty_in_eight_families():
    families = [problem.family for problem in LISTED.values()]
    assert set(LISTED) == set(THRESHOLDS)
    assert len(LISTED) == 40 and {families.count(family) for family in families} == {5}
    assert families == sorted(families, key=families.index)  # family by family
    assert all(problem.why and 0 < problem.steps <= 500 for problem in LISTED.values())


@pytest.mark.few(8)
@pytest.mark.parametrize("name", LISTED)
def test_starts_fail_and_minima_pass(name):
    problem = LISTED[name]
    for seed in range(5):
        start = problem.start(np.random.default_rng(seed))
        assert [np.shape(w) for w in start] == list(problem.weights.values())
        weights = [keras.ops.convert_to_tensor(w, "float32") for w in start]
        assert problem.error(weights) > 2 * THRESHOLDS[name]
        assert np.isfinite(problem.loss(weights, moment(np.random.default_rng(seed))))
    if name not in SEARCHED:
        best = MINIMA.get(name, [vectors.GOAL])
        weights = [keras.ops.convert_to_tensor(w, "float32") for w in best]
        assert problem.error(weights) < THRESHOLDS[name] / 2


def test_a_run_is_that_of_the_rule():
    problem, made = LISTED["bowl"], []

    def make():
        made.append(keras.optimizers.SGD)
        import kopt

        return kopt.SGD()

    descents = Descents(make, branches([problem, LISTED["drift"]]))
    assert len(made) == 1  # one loop for both
    start = problem.start(np.random.default_rng(3))[0]
    for rate in (0.02, 0.05, 0.02):  # nothing of a run is left for the next one
        end = (1 - rate) ** problem.steps * (start - vectors.GOAL)
        assert descents.error(problem, rate, 3) == pytest.approx(np.sum(end**2) / 2, rel=1e-3, abs=1e-9)
    assert descents.error(problem, 3.0, 3) == np.inf
    drift = LISTED["drift"]
    w = drift.start(np.random.default_rng(3))[0]
    for t in range(drift.steps):
        w = w - 0.1 * (w - vectors.GOAL * (3 * t / drift.steps - 2))
    assert descents.error(drift, 0.1, 3) == pytest.approx(np.mean((w - vectors.GOAL) ** 2), rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not row-wise")  # as in the recipe
@pytest.mark.parametrize("name", ["adam", "lbfgs", "prodigy", "schedulefreesgd", "soap", "sophiah", "adahessian"])
def test_every_kind_of_rule_runs_on_every_kind_of_weight(name):
    import kopt

    chosen = [LISTED[name] for name in ("bowl", "both sides", "deep", "table")]
    descents, rate = Descents(lambda: kopt.get(name), branches(chosen)), float(kopt.get(name).learning_rate)
    learnt = 0  # L-BFGS cannot learn from batches of a table, and one rate need not do for all
    for problem in chosen:
        first = problem.error(
            [keras.ops.convert_to_tensor(w, "float32") for w in problem.start(np.random.default_rng(1))]
        )
        errors = [descents.error(problem, factor * rate, 1) for factor in (1.0, 10.0)]
        learnt += min(errors) < 0.9 * float(first)
        assert descents.error(problem, rate, 1) == errors[0]  # bit for bit
        assert descents.error(problem, rate, 2) != errors[0] or errors[0] in (0.0, np.inf)  # exact, or diverged
    assert learnt >= 3


@pytest.mark.slow
def test_an_average_is_what_is_judged():
    import kopt

    noise = LISTED["noise"]
    plain, averaged = (
        Descents(cls, branches([noise])).error(noise, 0.3, 0) for cls in (kopt.SGD, kopt.ScheduleFreeSGD)
    )
    assert averaged < plain / 3


def test_shapes_are_those_of_the_layers():
    assert [*VECTOR] == ["w"] and [*NETWORK] == ["hidden_kernel", "hidden_bias", "head_kernel"]
    assert next(iter(TABLE)) == "embedding"  # so that rules know it for a table
