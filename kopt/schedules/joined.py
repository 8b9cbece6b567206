"""Schedules one after the other."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

import keras
from keras import ops

from kopt.declare import Configurable, Convert, NonNegative, accept
from kopt.declare.keras_bases import KerasSchedule
from kopt.schedules.curve import draw_curve
from kopt.schedules.schedule import Schedule, Tensor


def _parts(value: Any) -> tuple[Any, ...]:
    parts = [keras.saving.deserialize_keras_object(x) if isinstance(x, dict) else x for x in value]
    if len(parts) < 2:
        raise ValueError("two schedules or more")
    return tuple(x if isinstance(x, keras.optimizers.schedules.LearningRateSchedule) else _number(x) for x in parts)


def _number(value: Any) -> float:
    if callable(value):
        raise ValueError("schedules of Keras or kopt, and numbers")
    return float(accept(NonNegative, value))


def _steps(value: Any) -> tuple[int, ...]:
    steps = tuple(map(int, value))
    if steps != tuple(value) or any(a >= b for a, b in zip((0, *steps), steps, strict=False)):
        raise ValueError("rising whole numbers > 0, as [100, 900]")
    return steps


@keras.saving.register_keras_serializable("kopt")
class Joined(Configurable, KerasSchedule):
    """What `join` makes; see there.

    Args:
        schedules: schedules or numbers, one after the other.
        boundaries: steps at which the next one begins.

    Raises:
        ValueError: there is not one boundary less than schedules, or they do not rise.
    """

    schedules: Annotated[Any, Convert(_parts)]
    boundaries: Annotated[Any, Convert(_steps)]

    def __post_init__(self) -> None:
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"join: {len(self.schedules)} schedules have {len(self.schedules) - 1} boundaries between them. "
                f"Received: boundaries={list(self.boundaries)}"
            )

    @property
    def peak_learning_rate(self) -> Any:
        """The largest peak of the schedules that say theirs; None if none does."""
        names = ("peak_learning_rate", "warmup_target", "initial_learning_rate")
        peaks = [x if isinstance(x, float) else getattr(x, name, None) for x in self.schedules for name in names]
        return max((float(x) for x in peaks if x is not None), default=None)

    def __call__(self, step: Any) -> Tensor:
        """Returns the rate of the update after `step` updates, a float32 scalar."""
        t, begins = ops.cast(step, "float32"), (0, *self.boundaries)
        rates = [
            part(ops.maximum(t - begin, 0.0)) if callable(part) else part
            for begin, part in zip(begins, self.schedules, strict=True)
        ]
        now = ops.cast(rates[0], "float32")
        for begin, rate in zip(self.boundaries, rates[1:], strict=True):
            now = ops.where(t < begin, now, rate)
        return now

    def plot(self, path: str | os.PathLike[str], steps: int | None = None) -> None:
        """Writes the learning rate over the updates as a PNG file.

        Args:
            path: of the file.
            steps: ≥ 1, updates that are shown; None shows the last part to its end, or where its end is not known as
                long as all before it.

        Raises:
            ValueError: `steps` is below 1.
            ImportError: matplotlib is missing.
        """
        draw_curve(self, path, self.length() if steps is None else steps)

    def length(self) -> int:
        """Returns the updates after which nothing new comes, as far as that is known."""
        last, begins = self.schedules[-1], self.boundaries[-1]
        return begins + (last.length() if isinstance(last, Schedule | Joined) else begins)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, fit for JSON."""
        parts = [x if isinstance(x, float) else keras.saving.serialize_keras_object(x) for x in self.schedules]
        return {"schedules": parts, "boundaries": list(self.boundaries)}


def join(schedules: Sequence[Any], boundaries: Sequence[int]) -> Joined:
    """Returns the schedule that is one schedule after the other, each of which counts its steps from 0.

        join([WarmupLinear(0.1, steps=100), WarmupCosine(0.02, steps=900)], [100])

    Args:
        schedules: of Keras or kopt, or numbers, for a rate that stays.
        boundaries: > 0 and rising: the steps at which the second, the third ... begins.

    Raises:
        ValueError: there is not one boundary less than schedules, or they do not rise.

    Agrees with `optax.join_schedules`.
    """
    return Joined(schedules=schedules, boundaries=boundaries)
