"""Sharpness-aware training: the gradient is taken where the loss nearby is largest.

That needs a second gradient on the same batch, so these are no optimizers but the `train_step` of a model:

    class Net(kopt.SAM, keras.Model):                   # of your own model
        rho = 0.1

    model = kopt.SAM.of(model, rho=0.1)                 # of any model; model.model is the one within

Any optimizer makes the steps. The loss, the metrics and the statistics of batch normalization are those of the weights
themselves, and both gradients see the same random numbers. A step costs about twice as much.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kopt.declare import Count, NonNegative, Positive
from kopt.training.keras_internals import loss_metric, takes_training
from kopt.training.train_step import AROUND, Around, TrainStep

Tensor = Any


class _Sharpened(TrainStep):
    """A model that trains with a second gradient, taken at w + ε."""

    whole_batch: bool = False

    def train_step(self: Any, data: Any) -> dict[str, Any]:
        """Takes both gradients and makes a step."""
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_variables
        state = [(v, tf.convert_to_tensor(v.value)) for v in self.non_trainable_variables]

        def differentiated(sources: Sequence[Any]) -> tuple[Tensor, Tensor, list[Tensor]]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                y_pred = self(x, training=True) if takes_training(self) else self(x)
                loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, sources)
            return y_pred, loss, [None if g is None else tf.convert_to_tensor(g) for g in gradients]

        y_pred, loss, gradients = differentiated([v.value for v in weights])
        reached = [v for v, g in zip(weights, gradients, strict=True) if g is not None]  # not a head without a loss

        def gradients_at(moves: Sequence[Tensor]) -> list[Tensor]:
            moved = [tf.convert_to_tensor(v.value) + ops.cast(e, v.dtype) for v, e in zip(reached, moves, strict=True)]
            mapping = [*state, *zip(reached, moved, strict=True)]
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                return differentiated(moved)[2]

        batch = tf.shape(next(leaf for leaf in tf.nest.flatten(x) if leaf is not None))[0]
        replicas = self.distribute_strategy.num_replicas_in_sync  # by which Keras divides the loss
        loss_metric(self).update_state(loss * replicas, sample_weight=batch)
        found = [g for g in gradients if g is not None]
        if self.whole_batch and replicas > 1:
            found = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, found)
        sharp = iter(self.sharpened(reached, found, gradients_at))
        self.optimizer.apply([None if g is None else next(sharp) for g in gradients], weights)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def sharpened(
        self, weights: Sequence[Any], gradients: list[Tensor], gradients_at: Callable[[Sequence[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """Returns the gradients of the step from those at the weights; `gradients_at(moves)` are those elsewhere."""
        return gradients_at(self.ascent(weights, gradients))

    @abc.abstractmethod
    def ascent(self, weights: Sequence[Any], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns ε."""


class SAM(_Sharpened):
    r"""SAM: sharpness-aware minimization, for flat minima, which generalize better.

        ε = ρ g / ‖g‖                    the norm over all weights
        g ← ∇L(w + ε)

    Attributes:
        rho: ρ > 0, how far away the loss is looked at.
        whole_batch: whether several replicas look at the loss where that of all their rows is largest, by one more sum
            of gradients, as one device does. If not, each looks at its own rows (the paper's m-sharpness).

    Raises:
        ValueError: an option is out of range; by `of` or `fit`.
        RuntimeError: the backend of Keras is not TensorFlow.

    Agrees with the code of davda54/sam.
    Reference: Foret et al., 2021, arXiv:2010.01412.
    """

    rho: Positive = 0.05

    def ascent(self, weights: Sequence[Any], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns ε."""
        scale = self.rho / ops.maximum(_norm(gradients), 1e-12)
        return [scale * ops.cast(g, "float32") for g in gradients]


class ASAM(SAM):
    r"""ASAM: SAM in a neighbourhood that scales with the weights, so that rescaling them changes nothing.

        T = |w| + η
        ε = ρ T² g / ‖T g‖

    Attributes:
        rho: ρ > 0, how far away the loss is looked at, in units of the weights.
        whole_batch: as of SAM.
        eta: η ≥ 0, neighbourhood of a weight of zero.

    Differs from the authors' code, in which T of biases and gains is 1; agrees with davda54/sam for η = 0.
    Reference: Kwon et al., 2021, arXiv:2102.11600.
    """

    rho = 0.5
    eta: NonNegative = 0.01

    def ascent(self, weights: Sequence[Any], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Returns ε."""
        sizes = [ops.abs(ops.cast(v, "float32")) + self.eta for v in weights]
        scaled = [t * ops.cast(g, "float32") for t, g in zip(sizes, gradients, strict=True)]
        scale = self.rho / ops.maximum(_norm(scaled), 1e-12)
        return [scale * t * g for t, g in zip(sizes, scaled, strict=True)]


class LookSAM(SAM):
    r"""LookSAM: SAM that takes the second gradient at every k-th step only, and remembers what it added.

        every k-th step:   gₛ = ∇L(w + ρ g/‖g‖),  d = gₛ - g ⟨g, gₛ⟩/‖g‖²,  step along gₛ
        else:              step along g + α d ‖g‖/‖d‖

    Norms and products are those over all weights; d is 4 bytes a parameter, which `kopt.checkpoint.Checkpoint` keeps;
    in a loaded model it begins at zero.

    Attributes:
        rho: ρ > 0, how far away the loss is looked at.
        every: k ≥ 1.
        alpha: α > 0, how much of d is added in between.

    Raises:
        RuntimeError: several replicas.

    Differs from `pytorch_optimizer.LookSAM`, whose norms are those of each weight.
    Reference: Liu et al., 2022, arXiv:2203.02714.
    """

    every: Count = 5
    alpha: Positive = 0.7

    def make_train_function(self: Any, force: bool = False) -> Any:
        """Makes room for d before the first step."""
        self.step_variables()
        return super().make_train_function(force)

    def step_variables(self: Any) -> list[Any]:
        """Returns d, one variable for each trained weight; they are no weights of the model, and made when missing."""
        weights = self.trainable_variables
        if set(vars(self).get("_across", ())) != {id(v) for v in weights}:
            made = {
                id(v): keras.Variable(ops.zeros(v.shape), dtype="float32", trainable=False, name=f"{v.name}_across")
                for v in weights
            }
            self.__dict__["_across"] = made
        return list(vars(self)["_across"].values())

    def sharpened(
        self: Any,
        weights: Sequence[Any],
        gradients: list[Tensor],
        gradients_at: Callable[[Sequence[Tensor]], list[Tensor]],
    ) -> list[Tensor]:
        """See `SAM.sharpened`."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            raise RuntimeError("LookSAM remembers one batch, so it cannot run on several replicas; SAM and ASAM can.")
        across, norm = [vars(self)["_across"][id(v)] for v in weights], _norm(gradients)

        def look() -> tuple[list[Tensor], list[Tensor]]:
            sharp = gradients_at(self.ascent(weights, gradients))
            along = sum(ops.sum(a * b) for a, b in zip(gradients, sharp, strict=True)) / ops.maximum(norm**2, 1e-24)
            return sharp, [b - along * a for a, b in zip(gradients, sharp, strict=True)]

        def reuse() -> tuple[list[Tensor], list[Tensor]]:
            old = [ops.convert_to_tensor(v.value) for v in across]
            factor = self.alpha * norm / ops.maximum(_norm(old), 1e-12)
            return [g + factor * d for g, d in zip(gradients, old, strict=True)], old

        sharp, new = ops.cond(ops.equal(self.optimizer.iterations % self.every, 0), look, reuse)
        for v, d in zip(across, new, strict=True):
            v.assign(d)
        return sharp


@keras.saving.register_keras_serializable("kopt")
class SAMModel(SAM, Around):
    """What `SAM.of` returns."""


@keras.saving.register_keras_serializable("kopt")
class ASAMModel(ASAM, Around):
    """What `ASAM.of` returns."""


@keras.saving.register_keras_serializable("kopt")
class LookSAMModel(LookSAM, Around):
    """What `LookSAM.of` returns."""


AROUND |= {SAM: SAMModel, ASAM: ASAMModel, LookSAM: LookSAMModel}


def _norm(arrays: Sequence[Tensor]) -> Tensor:
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(x, "float32"))) for x in arrays))
