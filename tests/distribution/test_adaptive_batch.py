"""The noise scale of gradients whose noise is known, and batches that follow it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from events import read

import kopt
from kopt.distribution import AdaptiveBatch
from kopt.distribution.adaptive_batch import TAGS, estimate

DIM, SIGMA = 20, 1.5


class Quadratic(keras.Model):
    """½ |w - x|² for x from N(μ, σ²): the gradient of a row is w - μ with the noise σ in each element."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight((DIM,), "zeros", name="w")

    def call(self, x):
        return x - self.w

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 0.5 * keras.ops.mean(keras.ops.sum(keras.ops.square(y_pred), -1))


def rows(count, seed=0, distance=2.0):
    noise = np.random.default_rng(seed).normal(size=(count, DIM)) * SIGMA
    return (noise + distance / DIM**0.5).astype("float32")


def compiled(optimizer=None):
    model = Quadratic()
    model.build((None, DIM))
    model.compile(optimizer or keras.optimizers.SGD(0.0))
    return model


def test_the_estimate_has_no_bias():
    rng, mean = np.random.default_rng(0), np.array([0.5, -1.0, 0.2])
    found = []
    for _ in range(4000):
        parts = (mean + rng.normal(size=(5, 8, 3)) * [1, 2, 3]).mean(1)
        found.append(estimate((parts**2).sum(-1).mean(), (parts.mean(0) ** 2).sum(), (8, 40)))
    trace, square = np.mean(found, 0)
    assert trace == pytest.approx(1 + 4 + 9, rel=0.02)
    assert square == pytest.approx((mean**2).sum(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_noise_scale_of_a_quadratic(replicas, two_devices):
    strategy = two_devices if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        model = compiled()
    kopt.distribution.share_loss(model)
    adaptive = AdaptiveBatch(start=4, adapt=False, smoothing=0.995)
    data = tf.data.Dataset.from_tensor_slices(rows(16 * 4 * 400)).batch(16)
    model.fit(kopt.distribution.shard(data, strategy), shuffle=False, verbose=0, callbacks=[adaptive])
    assert adaptive.updates == 400
    assert adaptive.examples == 64
    assert adaptive.noise_scale == pytest.approx(DIM * SIGMA**2 / 2.0**2, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_an_update_has_a_share_of_the_noise_scale(share):
    adaptive = AdaptiveBatch(start=2, largest=1000, wait=20, growth=1.2, smoothing=0.99, share=share)
    model = compiled(kopt.SGD(1e-6))  # the weights, and so the noise scale, stay
    model.fit(rows(12_000), batch_size=2, shuffle=False, verbose=0, callbacks=[adaptive])
    assert adaptive.examples == pytest.approx(share * adaptive.noise_scale, abs=2.01)
    assert 0.5 < adaptive.noise_scale / (DIM * SIGMA**2 / 2.0**2) < 2


@pytest.mark.slow
def test_batches_grow_within_bounds_and_make_one_update(tmp_path):
    model, points = compiled(kopt.SGD(0.1)), []
    adaptive = AdaptiveBatch(
        start=2,
        largest=5,
        wait=2,
        rule="linear",
        log_dir=tmp_path,
        log=lambda values, step: points.append((step, values)),
    )
    x = rows(4 * 21, distance=0.0)  # noise alone: as large as may be
    model.fit(x, batch_size=4, shuffle=False, verbose=0, callbacks=[adaptive])
    assert [round(values[TAGS[1]] / 4) for _, values in points] == [2, 2, 3, 5, 5]
    assert [step for step, _ in points] == [1, 2, 3, 4, 5]
    assert int(model.optimizer.iterations) == 5
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1 * 5 / 2)
    assert read(tmp_path)[0][TAGS[1]] == {1: 8, 2: 8, 3: 12, 4: 20, 5: 20}
    w = np.zeros(DIM)
    begin = 0
    for batches, rate in ((2, 0.1), (2, 0.1), (3, 0.15), (5, 0.25), (5, 0.25)):
        w += rate * (x[begin : begin + 4 * batches].mean(0) - w)
        begin += 4 * batches
    np.testing.assert_allclose(model.get_weights()[0], w, atol=1e-6)


def test_batches_shrink_where_there_is_no_noise():
    model = compiled()
    adaptive = AdaptiveBatch(start=6, wait=1, growth=2)
    model.fit(np.ones((40, DIM), "float32"), batch_size=2, verbose=0, callbacks=[adaptive])
    assert adaptive.noise_scale == pytest.approx(0, abs=1e-5)
    assert adaptive.batches == 2
    assert model.train_function is None


def test_the_scale_of_a_loss_is_no_noise():
    found = []
    for optimizer in (kopt.SGD(0.1), kopt.LossScaleOptimizer(kopt.SGD(0.1), initial_scale=1024.0)):
        adaptive = AdaptiveBatch(rule="linear", wait=2)
        model = compiled(optimizer)
        model.fit(rows(24), batch_size=2, shuffle=False, verbose=0, callbacks=[adaptive])
        found.append((adaptive._covariance, adaptive._squared, adaptive.batches))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.slow
def test_a_state_goes_on():
    x = rows(24)
    whole, half, rest = compiled(kopt.SGD(0.1)), compiled(kopt.SGD(0.1)), compiled(kopt.SGD(0.1))
    first, second, third = (AdaptiveBatch(start=3) for _ in range(3))
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    whole.fit(x, callbacks=[first], **options)
    half.fit(x[:10], callbacks=[second], **options)  # 5 batches: the second update has begun
    rest.set_weights(half.get_weights())

    class GoesOn(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            third.set_state(second.get_state())

    rest.fit(x[10:], callbacks=[third, GoesOn()], **options)
    np.testing.assert_array_equal(rest.get_weights()[0], whole.get_weights()[0])
    assert third.noise_scale == first.noise_scale and third.updates == first.updates == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": 1.0}, "growth: expected a number > 1|growth.*a number > 1"),
        ({"start": 8, "largest": 4}, "largest is at least start, 8. Received: 4"),
        ({"rule": "cubic"}, "rule"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBatch(**options)


def test_what_cannot_be_trained():
    def fit(model, **options):
        model.fit(rows(8), verbose=0, callbacks=[AdaptiveBatch(**options)])

    with pytest.raises(ValueError, match="start is at least 2 where there is one replica"):
        fit(compiled(), start=1)
    with pytest.raises(ValueError, match="leave out gradient_accumulation_steps"):
        fit(compiled(kopt.SGD(0.1, gradient_accumulation_steps=2)))
    with pytest.raises(ValueError, match="sets the learning rate, which a schedule sets too"):
        fit(compiled(kopt.SGD(kopt.schedules.WarmupCosine(0.1, steps=10))), rule="linear")
    sharp = kopt.SAM.of(keras.Sequential([keras.Input((DIM,)), keras.layers.Dense(1)]))
    sharp.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"and so has SAMModel: use one of both"):
        sharp.fit(rows(8), np.zeros((8, 1)), verbose=0, callbacks=[AdaptiveBatch()])
