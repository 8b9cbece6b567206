"""Adam and its nearest kin: AdamW, LazyAdam, Nadam and NadamW."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.optimizer import (
    Fraction,
    Literal,
    NonNegative,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    debias,
    override,
)


class Adam(AdamLike):
    r"""Adam: momentum over a running root mean square, both corrected for their start at zero.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        v̂ = v / (1-β₂ᵗ)                   (amsgrad: n ← max(n, v), v̂ = n / (1-β₂ᵗ))
        u = m / (1-β₁ᵗ) / (√v̂ + ε)

    Slots: m, v and n with amsgrad, each like w (4 bytes/parameter).  Row-wise.

    Args:
        epsilon: ε > 0 of the paper's Algorithm 1, beside the corrected root.
        amsgrad: divide by the largest v so far.

    Differs from `keras.optimizers.Adam`: there ε stands beside the uncorrected root ("epsilon hat") and is 1e-7;
    agrees with `torch.optim.Adam`, with amsgrad too.
    Reference: Kingma and Ba, 2015, arXiv:1412.6980; Reddi et al., 2018, arXiv:1904.09237.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    amsgrad: bool = False

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"m": Slot(), "v": Slot()} | ({"n": Slot()} if self.amsgrad else {})

    @override
    def moments(self, g: Tensor, s: Slots) -> Slots:
        new = super().moments(g, s)
        if self.amsgrad:
            new.n = ops.maximum(s.n, new.v)
        return new

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        v = s.n if self.amsgrad else s.v
        root = ops.sqrt(v) / ops.sqrt(debias(self.beta_2, t))
        return 1.0 / debias(self.beta_1, t) / (root + self.epsilon)


class AdamW(Adam):
    r"""AdamW: `Adam` with decoupled weight decay switched on, w ← w - η (u + λ w).

    Slots: as `Adam`.  Row-wise.

    Args:
        weight_decay: λ ≥ 0.

    Differs from `keras.optimizers.AdamW`: ε as in `Adam`, λ = 0.01 instead of 0.004; agrees with
    `torch.optim.AdamW`.
    Reference: Loshchilov and Hutter, 2019, arXiv:1711.05101.
    """

    weight_decay = 0.01


class LazyAdam(Adam):
    r"""LazyAdam: `Adam` for large embeddings; a row that a batch did not read stays as it is, bit for bit.

    The rows of an embedding that a batch read, and their moments, are updated as `Adam` does; the others and their
    moments do not move, and do not decay. Repeated rows are summed first; t counts all steps. Gradients that are not
    sparse are those of `Adam`, and change every row.

    Slots: as `Adam`.  Row-wise.

    Args:
        sparse: only "lazy". `Adam` takes "exact", too.

    Raises:
        NotImplementedError: the backend of Keras is not TensorFlow, and has no sparse gradients.

    Every row-wise rule is lazy unless told otherwise; here it is a promise. Differs from `tfa.optimizers.LazyAdam` and
    `torch.optim.SparseAdam`, which have ε beside the uncorrected root, the first with 1e-7.
    Reference: Kingma and Ba, 2015, arXiv:1412.6980, on the rows of a sparse gradient.
    """

    sparse: Literal["lazy"] = "lazy"

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not backend.has_rows:
            raise NotImplementedError("LazyAdam needs the sparse gradients of the TensorFlow backend; use Adam.")


class Nadam(AdamLike):
    r"""Nadam: Adam with Nesterov momentum that warms up.

        μₜ = β₁ (1 - 0.96^(ψ t) / 2),  P ← P μₜ
        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        u = (μₜ₊₁ m / (1 - P μₜ₊₁) + (1-μₜ) g / (1 - P)) / (√(v / (1-β₂ᵗ)) + ε)

    Slots: m, v, each like w (4 bytes/parameter), and the scalar P.  Row-wise.

    Args:
        momentum_decay: ψ ≥ 0, speed of the warm-up.

    Differs from `keras.optimizers.Nadam`, which has ψ = 1 and ε = 1e-7, and from `optax.nadam`, which has no warm-up;
    agrees with `torch.optim.NAdam`.
    Reference: Dozat, 2016, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ.
    """

    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-8
    momentum_decay: NonNegative = 0.004
    shared = {"product": 1.0}

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        return {"product": s.product * self._mu(t)}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = self.moments(g, s)
        now, ahead = self._mu(t), self._mu(t + 1)
        mixed = ahead * new.m / (1 - s.product * ahead) + (1 - now) * g / (1 - s.product)
        return self.rate(new, t) * mixed, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / self.root(s, t)

    def _mu(self, t: Tensor) -> Tensor:
        return self.beta_1 * (1 - 0.5 * ops.power(0.96, self.momentum_decay * t))


class NadamW(Nadam):
    r"""NadamW: `Nadam` with decoupled weight decay switched on, w ← w - η (u + λ w).

    Slots: as `Nadam`.  Row-wise.

    Args:
        weight_decay: λ ≥ 0.

    Differs from `optax.nadamw`, which has no warm-up of the momentum; agrees with
    `torch.optim.NAdam(decoupled_weight_decay=True)`.
    Reference: Dozat, 2016, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ; Loshchilov and Hutter, 2019, arXiv:1711.05101.
    """

    weight_decay = 0.01
