"""The base of the rules that keep a matrix of squares by the means of its rows and columns."""

from keras import ops

from kopt.optimizers.optimizer import Count, Layout, Optimizer, Slot, Tensor


class BySides(Optimizer, abstract=True):
    r"""Base of the rules that keep squares x ≥ 0 of a kernel [fan-in, fan-out] by two vectors.

        r: means of the rows of x,  c: means of its columns
        x ≈ r cᵀ / mean(r)

    As `Muon` does, it sees kernels of convolutions and attention as their layer uses them; here the rows of embeddings
    are inputs, and no matrix is left out. Squares of what is no matrix are kept one by one, in r.

    Args:
        min_dim_size_to_factor: ≥ 1; a matrix with a shorter side keeps its squares one by one.
    """

    min_dim_size_to_factor: Count = 2
    row_wise = False
    by_layer = True

    def takes(self, layout: Layout) -> bool:
        """Returns whether the squares of a weight are kept by two vectors."""
        return (layout.is_matrix or layout.is_table) and min(_sides(layout)[-2:]) >= self.min_dim_size_to_factor

    def rows(self, whole: bool = True) -> Slot:
        """Returns the slot of r; `whole`: whether it keeps the squares of what is no matrix, and not a number."""

        def shape(layout: Layout) -> tuple[int, ...]:
            return _sides(layout)[:-1] if self.takes(layout) else tuple(layout) if whole else ()

        return Slot(shape=shape)

    def columns(self) -> Slot:
        """Returns the slot of c, a number where there are no columns."""

        def shape(layout: Layout) -> tuple[int, ...]:
            return (*_sides(layout)[:-2], _sides(layout)[-1]) if self.takes(layout) else ()

        return Slot(shape=shape)

    def as_matrices(self, x: Tensor, layout: Layout) -> Tensor:
        """Returns a tensor like a weight as [fan_in, fan_out], or a stack of such; as it is where there is none."""
        return layout.as_matrices(x) if self.takes(layout) and not layout.is_table else x

    def from_matrices(self, x: Tensor, layout: Layout) -> Tensor:
        """Returns a tensor like `as_matrices` in the shape of the weight."""
        return layout.from_matrices(x) if self.takes(layout) and not layout.is_table else x

    def means(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Returns r and c of squares that have the shape of `as_matrices`."""
        if not self.takes(layout):
            return x, ops.zeros((), x.dtype)
        return ops.mean(x, axis=-1), ops.mean(x, axis=-2)

    def over_root(self, x: Tensor, r: Tensor, c: Tensor, layout: Layout) -> Tensor:
        """Returns x, of the shape of `as_matrices`, divided by the root of the squares that r and c stand for."""
        if not self.takes(layout):
            return x * ops.rsqrt(r)
        rows = ops.rsqrt(r) * ops.sqrt(ops.mean(r, axis=-1, keepdims=True))
        # One side after the other: the product of both may overflow where x is zero.
        return x * ops.rsqrt(c)[..., None, :] * rows[..., :, None]


def _sides(layout: Layout) -> tuple[int, ...]:
    return tuple(layout) if layout.is_table else layout.matrices
