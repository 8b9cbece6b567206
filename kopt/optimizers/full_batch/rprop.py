"""Rprop."""

from typing import Annotated

from keras import ops

from kopt.declare import Range
from kopt.optimizers.optimizer import OpenFraction, Optimizer, Positive, Slot, Slots, Step, Tensor, override


class Rprop(Optimizer):
    r"""Rprop: each weight has a step length of its own, which grows while the sign of its gradient stays.

        same sign as before:   d ← min(η₊ d, longest)
        the other sign:        d ← max(η₋ d, shortest),  g ← 0       no step, and the next one keeps d
        u = d sign(g)

    This is iRprop⁻, with d = 1 at first: a first step is η long. It is for full batches, as
    `fit(batch_size=len(x))` gives them: the noise of small ones turns signs, and d falls to its bound.

    Slots: d, and p, the sign before, each like w (4 bytes/parameter); d whatever state_dtype says.  Row-wise.
    Scale-free.

    Args:
        shrink: η₋ in (0, 1), factor of a length after a change of sign.
        growth: η₊ > 1, factor of a length after two equal signs.
        shortest: > 0, least d.
        longest: > 0, largest d.

    Agrees with `torch.optim.Rprop(lr=η, etas=(η₋, η₊), step_sizes=(η shortest, η longest))`; a schedule of η scales
    every length here and changes nothing there. Differs from the first Rprop (Riedmiller and Braun, 1993), which takes
    the step back after a change of sign, and from `optax.rprop`, which takes each step one update late.
    Reference: Igel and Hüsken, 2000, Improving the Rprop Learning Algorithm; 2003, doi:10.1016/S0925-2312(01)00700-7.
    """

    learning_rate = 0.01
    shrink: OpenFraction = 0.5
    growth: Annotated[float, Range(above=1)] = 1.2
    shortest: Positive = 1e-4
    longest: Positive = 5e3
    slots = {"d": Slot(1.0, exact=True), "p": Slot()}
    scale_free = True

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest > self.longest:
            raise ValueError(f"Rprop: shortest={self.shortest} is more than longest={self.longest}.")

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        sign = ops.sign(g)
        same = sign * s.p
        d = ops.where(same > 0, self.growth * s.d, ops.where(same < 0, self.shrink * s.d, s.d))
        d, p = ops.clip(d, self.shortest, self.longest), ops.where(same < 0, ops.zeros_like(g), sign)
        return d * p, {"d": d, "p": p}

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return s.d
