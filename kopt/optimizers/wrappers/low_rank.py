"""The base of the wrappers whose optimizer within sees the gradients of large kernels in fewer dimensions."""

import dataclasses

from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.optimizer import Count, Layout, Mapping, Optimizer, Slot, Slots, Tensor, override
from kopt.optimizers.wrappers.wrapper import Wrapper


class LowRank(Wrapper, abstract=True):
    r"""Base of the wrappers whose optimizer within sees Pᵀ g in place of the gradient g of a large kernel.

    The kernel is a matrix [fan-in, fan-out], as for `Muon`; P projects its shorter side to `rank` dimensions. Kernels
    whose shorter side is not longer than that, vectors, embeddings and the last matrix of the model are moved by the
    optimizer within as always.

    Args:
        rank: r ≥ 1, dimensions that are left.
        every: k ≥ 1, updates from one choice of P to the next.

    Raises:
        ValueError: the optimizer within does not move each number for itself, along a direction.
    """

    rank: Count = 128
    every: Count = 200
    row_wise = False
    by_layer = True
    advance = Optimizer.advance

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.optimizer
        alone = all(slot.shape is None and slot.init != "weight" for slot in rule.slots.values())
        if not (rule.row_wise is True and alone and type(rule).advance is Optimizer.advance):
            raise ValueError(
                f"{type(self).__name__} takes an optimizer that steps along a direction, each number for itself, as "
                f"AdamW, Lion and Momentum do. Received: {rule!r}"
            )

    def takes(self, layout: Layout) -> bool:
        """Returns whether the optimizer within sees a weight in fewer dimensions."""
        return layout.is_matrix and not layout.is_last and min(layout.fan_in, layout.fan_out) > self.rank

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return not self.takes(layout) and self.optimizer.is_row_wise(layout)

    @property
    @override
    def slots(self) -> Mapping[str, Slot]:
        within = {k: dataclasses.replace(slot, shape=self._few) for k, slot in self.optimizer.slots.items()}
        return {**within, **self.own_slots}

    def _few(self, layout: Layout) -> tuple[int, ...]:
        """Returns the shape of what the optimizer within sees."""
        if not self.takes(layout):
            return tuple(layout)
        *stacked, p, q = layout.matrices
        return (*stacked, self.rank, q) if p <= q else (*stacked, p, self.rank)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 if self.takes(s.layout) else self.optimizer.rate(s, t)


def is_wide(layout: Layout) -> bool:
    """Returns whether P projects the inputs of a kernel, and not the outputs: the shorter side."""
    return layout.fan_in <= layout.fan_out


def projected(x: Tensor, basis: Tensor, layout: Layout) -> Tensor:
    """Returns Pᵀ x, or x P where the outputs are the shorter side."""
    return ops.matmul(ops.swapaxes(basis, -1, -2), x) if is_wide(layout) else ops.matmul(x, basis)


def is_even(rule: Optimizer) -> dict[str, bool]:
    """Returns for each slot whether it is the same for g and -g, as means of squares are; found by a step with each."""
    with backend.outside_graph():
        made = []
        for sign in (1.0, -1.0):
            g, t = ops.full((1, 1), sign), ops.ones(())
            start = {name: ops.full((1, 1), slot.init) for name, slot in rule.slots.items()}
            shared = {name: ops.convert_to_tensor(x, "float32") for name, x in rule.shared.items()}
            around = {"learning_rate": ops.ones(()), "multiplier": 1.0, "weight_decay": 0.0, "index": 0}
            around |= {"layout": Layout((1, 1)), "update": ops.ones((), "int32")}
            made.append(rule.rule(g, ops.zeros((1, 1)), Slots(**start, **shared, **around), t)[1])
        plus, minus = ({k: float(ops.convert_to_numpy(x).item()) for k, x in new.items()} for new in made)
    return {name: plus[name] == minus[name] for name in plus}
