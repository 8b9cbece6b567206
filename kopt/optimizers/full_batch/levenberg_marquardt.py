r"""Levenberg-Marquardt.

With J = ∂r/∂w at w, and D the largest lengths so far of the columns of J, a step solves

    min ‖r + J δ‖²   for  ‖D δ‖ ≤ Δ          δ = D⁻¹ z,  z = -(AᵀA + λ)⁻¹ Aᵀ r,  A = J D⁻¹,  λ ≥ 0 for the bound

in the space of kopt/optimizers/full_batch/bidiagonal.py, which is the same for every λ: a step that is refused costs
one more evaluation of r, and no products. With ρ the decrease of ‖r‖² over the one that was predicted:

    ρ < 1/4             Δ ← min(Δ, 10 ‖z‖) times the step to the least of a parabola, within [1/10, 1/2]
    ρ ≥ 3/4 or λ = 0    Δ ← 2 ‖z‖
    ρ > 10⁻⁴            w ← w + δ
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kopt.declare import Configurable, Count, Positive
from kopt.declare.keras_bases import KerasOptimizer
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.full_batch.bidiagonal import Bidiagonal, Vector, bidiagonal
from kopt.optimizers.full_batch.full_batch import steps_of_fit
from kopt.optimizers.full_batch.residuals import Residuals, batch_of_fit, residuals_of
from kopt.optimizers.full_batch.result import Result

_TRIALS = 30  # evaluations in which a step of `fit` looks for a lower point


@keras.saving.register_keras_serializable("kopt")
class LevenbergMarquardt(Configurable, KerasOptimizer):
    r"""Levenberg-Marquardt: least squares to the last digit, for regressions and physics-informed networks.

    Between Gauss-Newton, which takes the residuals for linear in the weights, and steepest descent, as far as steps
    have kept what they promised. It sees the residuals one by one, not their sum, and the matrix of their derivatives
    only through products, of which a step takes up to twice `products`, each as dear as a gradient.

    For `kopt.minimize(..., optimizer=kopt.LevenbergMarquardt())`: a function returns the residuals, whose squares are
    summed; a model is fitted in the mean square. For `fit`: `model.compile(kopt.LevenbergMarquardt(), loss="mse",
    jit_compile=False)`, and all examples as one batch. Each batch makes a step to a lower point, or none where there is
    none at this precision. Layers run as in inference.

    Memory: `products` vectors like the weights and as many like the residuals, in float64 on the host; in `fit` D, like
    the weights.

    Args:
        radius: > 0, first Δ, in units of ‖D w‖. Networks end lower with 0.1.
        products: ≥ 1, the dimensions in which a step is looked for. As many as there are weights make it exact, and
            fewer do where many directions matter little.
        name: name of the optimizer; None makes one.

    Raises:
        ValueError: an argument is out of range; in `fit` a loss that is no mean of squares, several batches an epoch,
            or an XLA-compiled train step.
        RuntimeError: in `fit` another train step than that of Keras, several replicas, or the backend is JAX.

    Differs from MINPACK's `lmder` (`scipy.optimize.least_squares(method="lm")`) in that it needs no matrix, and finds λ
    exactly; on the problems of NIST's StRD it gets as many right (tests/optimizers/test_least_squares.py).
    Reference: Moré, 1978, doi:10.1007/BFb0067700; Golub and Kahan, 1965, doi:10.1137/0702016.
    """

    radius: Positive = 100.0
    products: Count = 50
    name: str | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        values = self._checked(args, options)
        keras.optimizers.Optimizer.__init__(self, learning_rate=1.0, name=values.pop("name") or None)
        for key, value in values.items():
            setattr(self, key, value)

    def __repr__(self) -> str:
        """Returns the call that makes it."""
        return f"LevenbergMarquardt(radius={self.radius!r}, products={self.products!r})"

    def build(self, variables: Sequence[Any]) -> None:
        """Creates D and Δ."""
        if not self.built:
            super().build(variables)
            self._scales = [self.add_variable_from_reference(v, "scale") for v in variables]
            self._within = self.add_variable((), "zeros", "float32", name="radius")

    @backend.unconverted
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Makes a step on the batch that `fit` trains on; the gradients only say when."""
        name, steps = type(self).__name__, steps_of_fit()
        if steps is not None and steps != 1:
            raise ValueError(f"{name} compares whole losses. Give fit batch_size=len(x). Received: {steps} batches")
        if backend.replicas() > 1:
            raise RuntimeError(f"{name} sees all examples at once, so it cannot run on several replicas.")
        model, batch = batch_of_fit(name)
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        self.build(variables)
        function = residuals_of(model, None, False, batch)
        products = backend.products(function, variables, model.non_trainable_variables, compiled=True)
        given = [part for part in batch if part is not None]

        def step(*tensors: Any) -> None:
            x, y, *weight = keras.tree.pack_sequence_as(given, list(tensors))
            self._step(Residuals(products, variables, [(1.0, (x, y, weight[0] if weight else None))]))

        backend.on_host(name, step, keras.tree.flatten(given), [g for g in grads if g is not None])
        self.iterations.assign_add(1)

    def _step(self, residuals: Residuals) -> None:
        search = _Search(residuals, self.radius, self.products)
        search.scale = np.concatenate([ops.convert_to_numpy(v).ravel().astype("float64") for v in self._scales])
        search.radius = float(ops.convert_to_numpy(self._within))
        if not np.isfinite(search.value) or not search.value:
            return
        search.advance(1 + _TRIALS)
        for variable, scale in zip(self._scales, residuals.split(search.scale), strict=True):
            variable.assign(scale)
        self._within.assign(search.radius)

    def minimize(self, residuals: Residuals, tolerance: float, most: int) -> Result:
        """Minimizes the sum of the squares.

        Args:
            residuals: to make small.
            tolerance: ≥ 0; the largest element of the gradient of ‖r‖² at the end.
            most: ≥ 1, evaluations of r.
        """
        search = _Search(residuals, self.radius, self.products)
        while True:
            gradient = 2 * residuals.backward(search.r)
            norm = float(np.abs(gradient).max(initial=0.0))
            value, count = search.value, search.count
            if norm <= tolerance:
                return Result(True, f"the gradient is within {tolerance:g}", count, value, norm)
            if count == 1 and not (np.isfinite(value) and np.isfinite(norm)):
                return Result(False, "loss or gradient are not finite at the start", count, value, norm)
            if search.stalled:
                return Result(False, "no step decreases the loss at this precision", count, value, norm)
            if count >= most:
                return Result(False, f"{count} evaluations were made", count, value, norm)
            search.advance(most)


class _Search:
    """Where a minimization is.

    Attributes:
        w: the weights.
        r: the residuals there.
        value: ‖r‖².
        scale: D.
        radius: Δ; 0 before the first step.
        count: evaluations of r.
        stalled: whether no step decreases ‖r‖² at this precision.
    """

    def __init__(self, residuals: Residuals, first: float, products: int) -> None:
        self.residuals, self.first, self.products = residuals, first, products
        self.w = residuals.weights()
        self.r = residuals.move(self.w)
        self.value, self.count, self.stalled = _squared(self.r), 1, False
        self.scale, self.radius = np.zeros_like(self.w), 0.0

    def advance(self, most: int) -> None:
        """Moves the weights to a lower point, unless there is none or `most` evaluations were made."""
        residuals = self.residuals
        if not self.radius:
            lengths = _scaled_space(residuals, np.ones_like(self.w), self.r, self.products).column_norms()
            self.scale = np.where(lengths > 0, lengths, 1.0)
            self.radius = self.first * (float(np.linalg.norm(self.scale * self.w)) or 1.0)
        space = _scaled_space(residuals, self.scale, self.r, self.products)
        model = _Model.of(space.small, space.length)
        accepted = False
        while not (accepted or self.stalled or self.count >= most):
            step = model.within(self.radius)
            z = (model.turn @ step.y) @ space.rows
            there = residuals.move(self.w + z / self.scale)
            self.count += 1
            new = _squared(there)
            size, decrease = float(np.linalg.norm(step.y)), self.value - new
            kept = decrease / step.predicted if np.isfinite(new) and step.predicted > 0 else -1.0
            if kept < 0.25:
                self.radius = min(self.radius, 10 * size) * _shortened(self.value, new, step.slope)
            elif kept >= 0.75 or not step.damping:
                self.radius = 2 * size
            accepted = kept > 1e-4
            length = float(np.linalg.norm(self.scale * self.w))
            small = residuals.precision * max(length, float(np.finfo("float64").tiny))
            self.stalled = step.predicted <= residuals.precision * self.value or self.radius <= small
            if accepted:
                self.w, self.r, self.value = residuals.weights(), there, new
                self.scale = np.maximum(self.scale, space.column_norms() * self.scale)
        if not accepted:
            residuals.move(self.w)


class _Step(NamedTuple):
    """A step in the small space: where to, its λ, what it promises, and how fast ‖r‖² falls at its beginning."""

    y: Vector
    damping: float
    predicted: float
    slope: float


class _Model(NamedTuple):
    """‖r + A z‖² in the small space, turned so that it is a sum: Σ (σᵢ yᵢ - cᵢ)², and what no step reaches.

    Attributes:
        sizes: σ.
        wanted: c.
        turn: from y to the vectors v.
    """

    sizes: Vector
    wanted: Vector
    turn: Vector

    @classmethod
    def of(cls, small: Vector, length: float) -> "_Model":
        """Returns that of a bidiagonal matrix and the length of r."""
        left, sizes, right = np.linalg.svd(small, full_matrices=False)
        return cls(sizes, -length * left[0], right.T)

    def within(self, radius: float) -> _Step:
        """Returns the best step of at most this length."""
        regular = self.sizes > np.finfo("float64").eps * self.sizes[0]
        y, damping = np.where(regular, self.wanted / np.where(regular, self.sizes, 1.0), 0.0), 0.0
        if np.linalg.norm(y) > 1.1 * radius:
            damping = self._damping(radius)
            y = self._damped(damping)
        left = self.wanted - self.sizes * y
        predicted = float(self.wanted @ self.wanted - left @ left)
        return _Step(y, damping, predicted, -2.0 * float(self.wanted @ (self.sizes * y)))

    def _damped(self, damping: float) -> Vector:
        return self.sizes * self.wanted / (self.sizes**2 + damping)

    def _damping(self, radius: float) -> float:
        """Returns λ for a step of this length, by halving the exponent; longer steps have a smaller one."""
        high = float(np.log(np.linalg.norm(self.sizes * self.wanted) / radius))
        low = high - 100.0
        for _ in range(60):
            middle = (low + high) / 2
            if np.linalg.norm(self._damped(np.exp(middle))) > radius:
                low = middle
            else:
                high = middle
        return float(np.exp(high))


def _squared(r: Vector) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # a step too far is taken back
        return float(r @ r)


def _shortened(value: float, new: float, slope: float) -> float:
    """Returns the factor of a radius whose step kept less than a fourth of its promise."""
    if not np.isfinite(new):
        return 0.1
    return float(np.clip(-slope / (2 * max(new - value - slope, np.finfo("float64").tiny)), 0.1, 0.5))


def _scaled_space(residuals: Residuals, scale: Vector, r: Vector, products: int) -> Bidiagonal:
    """Returns J D⁻¹ in the space that r and its products span, D the matrix of `scale`."""
    return bidiagonal(lambda z: residuals.forward(z / scale), lambda u: residuals.backward(u) / scale, r, products)
