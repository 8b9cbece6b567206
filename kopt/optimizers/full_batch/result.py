"""What a minimization reached."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Result:
    """What `minimize` reached; the variables hold the point.

    Attributes:
        converged: whether the gradient is within the tolerance.
        reason: why the run ended, in words.
        evaluations: number of evaluations of function and gradient.
        loss: value of the function.
        gradient_norm: largest absolute element of the gradient.
    """

    converged: bool
    reason: str
    evaluations: int
    loss: float
    gradient_norm: float
