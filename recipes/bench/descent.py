"""The way of one rule on the problems, as few compiled loops."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .problem import DRAWN, KINDS, Moment, Problem

# Read by XLA when it first compiles: a loop here runs for milliseconds, so passes that take long do not pay.
os.environ.setdefault("XLA_FLAGS", "--xla_llvm_disable_expensive_passes=true")


class Branches:
    """The functions of problems whose weights have the same shapes, as branches of one; traced once for all rules.

    Args:
        group: the problems.
    """

    def __init__(self, group: Sequence[Problem]) -> None:
        self.group = list(group)
        self.shapes = group[0].weights
        self.differentiated = tf.function(self._differentiated, autograph=False)
        self.curvature = tf.function(self._curvature, autograph=False)
        self.error = tf.function(self._error, autograph=False)

    def _chosen(self, which: tf.Tensor, function: Callable[[Problem], Any]) -> Any:
        """Returns a function of one of the problems."""
        return tf.switch_case(which, [functools.partial(function, problem) for problem in self.group])

    def _differentiated(self, which: tf.Tensor, weights: list[tf.Tensor], moment: Moment) -> list[tf.Tensor]:
        """Returns the loss and the parts of the gradients: of rows their values and numbers."""

        def branch(problem: Problem) -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                loss = problem.loss(weights, moment)
            parts = list[tf.Tensor]()
            for gradient in tape.gradient(loss, weights):
                is_of_rows = isinstance(gradient, tf.IndexedSlices)
                parts += [gradient.values, gradient.indices] if is_of_rows else [gradient]
            return [loss, *parts]

        return list(self._chosen(which, branch))

    def _curvature(
        self, which: tf.Tensor, weights: list[tf.Tensor], moment: Moment, probes: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Returns Hutchinson's estimate of the diagonal of the Hessian, with one probe of signs."""

        def branch(problem: Problem) -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as outer:
                outer.watch(weights)
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(weights)
                    loss = problem.loss(weights, moment)
                gradients = [tf.convert_to_tensor(g) for g in inner.gradient(loss, weights)]
            zero = tf.UnconnectedGradients.ZERO
            products = outer.gradient(gradients, weights, probes, unconnected_gradients=zero)
            return [z * tf.convert_to_tensor(product) for z, product in zip(probes, products, strict=True)]

        return list(self._chosen(which, branch))

    def _error(self, which: tf.Tensor, weights: list[tf.Tensor]) -> tf.Tensor:
        return self._chosen(which, lambda problem: tf.cast(problem.error(weights), "float32"))


def branches(problems: Sequence[Problem]) -> list[Branches]:
    """Returns the functions of problems, those with the same weights together."""
    groups = ([problem for problem in problems if problem.weights == kind] for kind in KINDS)
    return [Branches(group) for group in groups if group]


class Descents:
    """The runs of one rule.

    Problems whose weights have the same shapes are branches of one loop, which XLA compiles once; a run is one call of
    it. Rate, first weights, noise and number of steps are its arguments.

    Args:
        make: returns a new optimizer.
        problems: their functions, as of `branches`.
    """

    def __init__(self, make: Callable[[], Any], problems: Sequence[Branches]) -> None:
        loops = [_Loop(make(), found) for found in problems]
        self._loops = {p.name: (loop, i) for loop in loops for i, p in enumerate(loop.branches.group)}

    def error(self, problem: Problem, rate: float, seed: int) -> float:
        """Returns what the last weights of a run are judged by; `inf` if it is not finite.

        Args:
            problem: one of those given.
            rate: η.
            seed: of the first weights, and of all noise.
        """
        loop, which = self._loops[problem.name]
        return loop.error(which, rate, seed)


class _Loop:
    """The steps of an optimizer on any of some problems, whose weights have the same shapes."""

    def __init__(self, optimizer: Any, branches: Branches) -> None:
        self._optimizer, self.branches = optimizer, branches
        shapes = branches.shapes.items()
        self._variables = [keras.Variable(np.zeros(shape), dtype="float32", name=name) for name, shape in shapes]
        optimizer.build(self._variables)
        self._descend = tf.function(self._steps, jit_compile=True, autograph=False)

    def error(self, which: int, rate: float, seed: int) -> float:
        """Returns the error at the end of a run."""
        optimizer, problem = self._optimizer, self.branches.group[which]
        for variable, first in zip(self._variables, problem.start(np.random.default_rng(seed)), strict=True):
            variable.assign(first)
        optimizer.learning_rate = rate
        optimizer.reset()
        self._descend(tf.constant(which), tf.constant(problem.steps), tf.constant(seed))
        optimizer.finalize_variable_values(self._variables)
        last = optimizer.averages() if hasattr(optimizer, "averages") else self._weights()
        found = float(self.branches.error(tf.constant(which), [tf.convert_to_tensor(x) for x in last]))
        return found if math.isfinite(found) else math.inf

    def _weights(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(v.value) for v in self._variables]

    def _steps(self, which: tf.Tensor, steps: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Makes the steps of a run, until the loss is not finite; returns their number."""

        def is_on(t: tf.Tensor, loss: tf.Tensor) -> tf.Tensor:
            return tf.logical_and(t < steps, tf.math.is_finite(loss))

        def step(t: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            numbers = tf.stack([seed, t])
            moment = Moment(
                tf.cast(t, "float32") / tf.cast(steps, "float32"),
                tf.random.stateless_normal([DRAWN], numbers),
                tf.random.stateless_uniform([DRAWN], numbers),
            )
            weights = self._weights()
            loss, *parts = self.branches.differentiated(which, weights, moment)
            self._optimizer.scale_loss(loss)
            if hasattr(self._optimizer, "observe"):
                signs = [tf.sign(tf.random.stateless_uniform(w.shape, numbers + 1, -1.0, 1.0)) for w in weights]
                self._optimizer.observe(lambda: self.branches.curvature(which, weights, moment, signs))
            self._optimizer.apply(self._as_gradients(parts), self._variables)
            return t + 1, loss

        return tf.while_loop(is_on, step, [0, 0.0])[0]

    def _as_gradients(self, parts: Sequence[tf.Tensor]) -> list[Any]:
        if len(parts) == len(self._variables):
            return list(parts)
        values, ids, *others = parts  # the table is the first of the weights
        return [tf.IndexedSlices(values, ids, tf.constant([*self._variables[0].shape])), *others]
