"""The base of the rules that divide by the curvature of the loss."""

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar

from keras import ops

from kopt.optimizers.engine.backends.backend import Update, backend
from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.finite import kept_unless, moderate
from kopt.optimizers.optimizer import Any, Count, Optimizer, Slots, Tensor, override


class ByCurvature(Optimizer, abstract=True):
    r"""Base of the rules that look at the diagonal of the Hessian, every k updates.

    A gradient does not tell it. `kopt.Curvature.of(model)` is a model whose `fit` estimates it; in a loop of your own
    call `observe` before each `apply`. All rows of a table follow an estimate, those that the batch did not read, too.

    Args:
        every: k ≥ 1; the diagonal is estimated at the updates 1, 1+k, 1+2k ..., and at every update until there is an
            estimate that is finite.

    Raises:
        ValueError: several batches make an update: the estimate is that of one batch.
    """

    every: Count = 10
    shared = {"estimates": 0.0}  # n, taken so far: one that was not finite does not count
    estimator: ClassVar[str]
    """How `kopt.Curvature` estimates the diagonal: "hutchinson" or "bartlett"."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_accumulation_steps:
            raise ValueError(
                f"{type(self).__name__} estimates the curvature on one batch: it cannot accumulate gradients. "
                f"Received: gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )

    def curved(self, c: Tensor, w: Tensor, s: Slots) -> dict[str, Tensor]:
        """Returns the slots that an estimate of the diagonal changes. Pure, as `rule`.

        Args:
            c: the estimate, shape of w.
            w: weight.
            s: namespace of the slots, and `layout`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define curved(self, c, w, s).")

    def observe(self, estimate: Callable[[], Sequence[Any]]) -> None:
        """Takes note of the curvature where the next update is one of every k; call it before each `apply`.

        An estimate that is not finite, or whose square overflows, is left out: the slots stay as they are.

        Args:
            estimate: function that returns the diagonal of the Hessian of the loss, a tensor like each variable of
                `build`, or None where the loss does not depend on it. Called, or run, only when it is time.

        Raises:
            ValueError: the optimizer is not built, or the estimates are not as many as the variables.
            RuntimeError: several replicas train.
        """
        setup, name = self.setup, type(self).__name__
        if backend.replicas() > 1:
            raise RuntimeError(f"{name} estimates the curvature of one batch, so it cannot run on several replicas.")
        taken = setup.shared_values()["estimates"]

        def compute() -> Update:
            found, writes = list(estimate()), list[Write]()
            if len(found) != len(setup.parameters):
                raise ValueError(f"{name}.observe: {len(found)} estimates for {len(setup.parameters)} variables.")
            pairs = [(p, ops.cast(c, p.dtype)) for p, c in setup.given(found)]
            writes.append(Write(setup.shared["estimates"], taken + 1))
            for p, c in pairs:
                new = self.curved(c, p.weight(), Slots(**p.remembered(), layout=p.layout))
                writes += p.encoded(Gradient(c), new, setup.updates() + 1, salt=2 * p.index + 1)
            fine = ops.all(moderate([c for _, c in pairs]))
            return [kept_unless(fine, write) for write in writes], None

        due = ops.logical_or(ops.equal(setup.updates() % self.every, 0), ops.equal(taken, 0))
        backend.commit_if(due, compute)
        self._held.observed.add(threading.get_ident())

    @backend.unconverted
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Makes one update, as `Optimizer.apply`.

        Raises:
            ValueError: `observe` was not called since the last update.
        """
        if threading.get_ident() not in self._held.observed:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs the curvature of the loss, which fit does not give to a plain model. Train "
                f"kopt.Curvature.of(model) (backend TensorFlow), or call {name}.observe before each apply."
            )
        self._held.observed.discard(threading.get_ident())
        super().apply(grads, trainable_variables)
