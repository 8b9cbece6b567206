"""Training by curvature: `fit` estimates the diagonal of the Hessian for the rules that divide by it.

    model = kopt.Curvature.of(model)                    # of any model; model.model is the one within
    model.compile(kopt.SophiaG(), "sparse_categorical_crossentropy")

    class Net(kopt.Curvature, keras.Model):             # of your own model

Every k updates, as the rule says, a step takes the estimate on its batch, inside of the compiled step; the others cost
what they cost without it. The estimate sees the same random numbers as the gradient, and leaves no trace in the
statistics of batch normalization.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kopt.declare import Count
from kopt.optimizers.by_curvature import ByCurvature
from kopt.optimizers.engine.noise import uniform
from kopt.training.keras_internals import loss_metric, takes_training
from kopt.training.sampled_labels import sampled_loss
from kopt.training.train_step import AROUND, Around, TrainStep

Tensor = Any


class Curvature(TrainStep):
    r"""Estimates the diagonal of the Hessian of the loss for `SophiaG`, `SophiaH` and `AdaHessian`, every k updates.

        hutchinson (SophiaH, AdaHessian):   z ⊙ ∇²L z      z of random signs; mean over `probes` of them
        bartlett (SophiaG):                 B ĝ ⊙ ĝ        ĝ = ∇L(ŷ), ŷ drawn from the predictions, B of them

    Hutchinson's estimate is exact where the Hessian is diagonal, and right on average elsewhere; it takes any loss, and
    two gradients and a half more. Bartlett's is right on average for the Gauss-Newton matrix and never negative; it
    takes one gradient more, and needs a loss that says from what to draw: `categorical_crossentropy` and
    `sparse_categorical_crossentropy` (classes), `binary_crossentropy` (bits), `mse` (normal numbers of variance ½). It
    leaves out losses that layers add.

    Attributes:
        probes: ≥ 1, estimates of Hutchinson's kind that are averaged. Bartlett's is one.

    Raises:
        TypeError: the optimizer is none of these. In mixed float16 Keras puts another one around it, which hides it;
            mixed_bfloat16 needs none.
        ValueError: labels cannot be drawn for the loss, or `probes` is out of range; by `fit`.
        RuntimeError: several replicas, or the backend of Keras is not TensorFlow.

    Reference: Hutchinson, 1990, doi:10.1080/03610919008812866; Liu et al., 2023, arXiv:2305.14342, algorithms 1 and 2.
    """

    probes: Count = 1

    def make_train_function(self: Any, force: bool = False) -> Any:
        """Looks at optimizer and loss before the first step."""
        optimizer = self.optimizer
        if not isinstance(optimizer, ByCurvature):
            raise TypeError(
                "Curvature trains with an optimizer that looks at the curvature: kopt.SophiaG(), kopt.SophiaH() or "
                f"kopt.AdaHessian(). Received: {type(optimizer).__name__}"
                + (" around one: use mixed_bfloat16, which needs no loss scaling." if _scales(optimizer) else "")
            )
        if optimizer.estimator == "bartlett":
            sampled_loss(self.loss)
        return super().make_train_function(force)

    def train_step(self: Any, data: Any) -> dict[str, Any]:
        """Makes a step, with an estimate of the curvature where it is time."""
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights, optimizer = self.trainable_variables, self.optimizer
        sources = [v.value for v in weights]
        state = [(v, tf.convert_to_tensor(v.value)) for v in self.non_trainable_variables]

        def predicted() -> Any:
            return self(x, training=True) if takes_training(self) else self(x)

        def loss_of(y_pred: Any) -> Tensor:
            return self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)

        def differentiated(value: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                result = value()
            gradients = tape.gradient(result, sources)
            return result, [None if g is None else tf.convert_to_tensor(g) for g in gradients]

        def hutchinson() -> list[Tensor]:
            with tf.GradientTape(watch_accessed_variables=False, persistent=self.probes > 1) as tape:
                tape.watch(sources)
                _, gradients = differentiated(lambda: loss_of(predicted()))
            reached = [i for i, g in enumerate(gradients) if g is not None]
            found: list[Any] = [None if g is None else 0.0 for g in gradients]
            for probe in range(self.probes):
                signs = {i: _signs(gradients[i], optimizer.iterations, probe * len(weights) + i) for i in reached}
                products = tape.gradient(
                    [gradients[i] for i in reached],
                    [sources[i] for i in reached],
                    [signs[i] for i in reached],
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
                for i, product in zip(reached, products, strict=True):
                    share = signs[i] * tf.convert_to_tensor(product)
                    found[i] = found[i] + ops.cast(share, "float32") / self.probes
            return found

        def bartlett() -> list[Tensor]:
            counts = []

            def drawn() -> Tensor:
                sampled = sampled_loss(self.loss)(predicted(), sample_weight, optimizer.iterations)
                counts.append(sampled.count)
                return sampled.value

            _, gradients = differentiated(drawn)
            return [None if g is None else counts[0] * ops.square(ops.cast(g, "float32")) for g in gradients]

        def estimate() -> Sequence[Tensor]:
            with keras.StatelessScope(state_mapping=state, collect_losses=True):
                return {"hutchinson": hutchinson, "bartlett": bartlett}[optimizer.estimator]()

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            y_pred = predicted()
            loss = loss_of(y_pred)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, sources)
        batch = tf.shape(next(leaf for leaf in tf.nest.flatten(x) if leaf is not None))[0]
        loss_metric(self).update_state(loss * self.distribute_strategy.num_replicas_in_sync, sample_weight=batch)
        optimizer.build(weights)
        optimizer.observe(estimate)
        optimizer.apply(gradients, weights)
        return self.compute_metrics(x, y, y_pred, sample_weight)


@keras.saving.register_keras_serializable("kopt")
class CurvatureModel(Curvature, Around):
    """What `Curvature.of` returns."""


AROUND[Curvature] = CurvatureModel


def _signs(x: Tensor, update: Tensor, place: int) -> Tensor:
    """Returns random signs like x."""
    number = uniform(ops.zeros(x.shape, "float32"), update, 2**31 + place)
    return ops.cast(ops.where(number < 0.5, -1.0, 1.0), x.dtype)


def _scales(optimizer: Any) -> bool:
    return isinstance(getattr(optimizer, "inner_optimizer", None), ByCurvature)
