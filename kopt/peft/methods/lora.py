"""LoRA."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Convert, Fraction, Range, checked
from kopt.peft import targets
from kopt.peft.adapter import (
    Adapter,
    Array,
    Base,
    Initializer,
    Length,
    Scale,
    Weight,
    is_bias,
    normal,
    uniform,
    zeros,
)
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.trainable_tokens import TokenRows

FROM_DATA = ("eva", "corda", "lora_ga", "loftq")
"""Initializations that `initialize` computes, from batches or from what rounding takes."""


def _initialization(value: Any) -> bool | str:
    if isinstance(value, bool) or value in ("gaussian", "orthogonal", "pissa", "olora", *FROM_DATA):
        return value
    if isinstance(value, str) and re.fullmatch(r"pissa_niter_\d{1,3}", value):
        return value
    known = ("gaussian", "orthogonal", "pissa", "pissa_niter_N", "olora", *FROM_DATA)
    raise ValueError(f"True, False, or one of {', '.join(map(repr, known))}")


class LoRA(Adapter):
    r"""LoRA: a low-rank change beside a frozen kernel.

        W' = W + s A B          s = α/r, or α/√r with `use_rslora`

    Weights: A [in, r], B [r, out]: r (in + out) parameters. At the start B = 0, so that W' = W.

    Args:
        r: 1 to 65,536, rank of the change.
        lora_alpha: α, 1e-6 to 1e6.
        lora_dropout: in [0, 1), share of the inputs that A does not see while training; not on embeddings.
        use_rslora: rank-stabilized scaling, α/√r, for ranks from about 32: with α/r a higher rank learns less.
        bias: which biases are trained too, as copies: "none", "all" of the model, or "lora_only" those of the hosts.
        init_lora_weights: True is uniform for A, as in torch (embeddings: A = 0, B normal); "gaussian" draws A from
            N(0, 1/r²); "orthogonal" takes random A, B of even rank with A B = 0; "pissa" the largest singular values of
            W, "pissa_niter_4" those that random vectors find in 4 iterations, faster for large kernels, and "olora" the
            QR factors of W. These keep their start A₀, B₀ beside A and B, W' = W + s (A B - A₀ B₀), so that W itself
            stays as it is. False draws both factors and is not the identity. "eva", "corda" and "lora_ga" are computed
            from batches, "loftq" from rounded kernels: `initialize` puts such adapters in instead of `get_peft_model`.
        rank_pattern: r by regular expression of the end of a path.
        alpha_pattern: α likewise.
        lora_bias: whether a bias c is learned too, y + s c, at dense layers and convolutions. It is merged into the
            bias of the layer, which must have one for that.
        target_parameters: other kernels than those that layers apply themselves, by the end of their path, as
            "cell.recurrent_kernel" of an LSTM or "expert_bank.expert_feedforward_gate_dense" of a mixture of experts:
            matrices [in, out] or [batch, in, out], which need not be those of a layer that adapters know. Without
            `target_modules` nothing else is adapted. The layer computes with W', and `lora_dropout` has no effect.
        trainable_token_indices: numbers of tokens whose embeddings are trained too, as copies, as new words of a
            vocabulary need it; see `TrainableTokens`. A list is of the embedding called "token_embedding", a mapping
            gives lists by the names of embeddings. These take no factors: `target_modules` must leave them out.

    Differs from Hugging Face peft: "pissa" and "olora" do not rewrite the base, and are saved as plain LoRA of rank
    2 r. A file of peft that says "pissa" lacks A₀, B₀. They are found anew, and where two singular values are close,
    torch finds them to its float32 rounding only.
    Reference: Hu et al., 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski, 2023, arXiv:2312.03732; PiSSA: Meng et al.,
    2024, arXiv:2404.02948, and Halko, Martinsson and Tropp, 2009, arXiv:0909.4061; OLoRA: Büyükakyüz, 2024,
    arXiv:2406.01775.
    """

    peft_type = "LORA"
    in_peft = True
    fixed: ClassVar[dict[str, Any]] = {"use_dora": False}
    additive = True
    patterned = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
    selects = (*Adapter.selects, "bias", "init_lora_weights", "trainable_token_indices", *patterned)
    default_targets = ("query", "value")

    r: Length = 8
    lora_alpha: Scale = 8.0
    lora_dropout: Fraction = 0.0
    use_rslora: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: Annotated[Any, Convert(_initialization)] = True
    rank_pattern: Annotated[Any, Convert(targets.parse_numbers(Length))] = {}
    alpha_pattern: Annotated[Any, Convert(targets.parse_numbers(Scale))] = {}
    target_parameters: Annotated[Any, Convert(targets.parse_name_list)] = None
    lora_bias: bool = False
    trainable_token_indices: Annotated[Any, Convert(targets.parse_token_table)] = None

    def __post_init__(self) -> None:
        if self.lora_bias and (self.fixed["use_dora"] or not isinstance(self.init_lora_weights, bool)):
            raise ValueError(
                "LoRA: lora_bias=True goes with plain LoRA, started with init_lora_weights=True or False. Received: "
                f"{type(self).__name__}, init_lora_weights={self.init_lora_weights!r}"
            )

    @property
    def _tokens(self) -> dict[str, list[int]]:
        given = self.trainable_token_indices or {}
        return given if isinstance(given, dict) else dict.fromkeys(TokenRows.default_targets, given)

    @property
    @override
    def beside(self) -> Sequence[str]:
        """The embeddings of `trainable_token_indices`."""
        return list(self._tokens)

    @override
    def at(self, path: str) -> Adapter:
        """Returns the method with the rank and α that hold at `path`, or trainable tokens at their embeddings."""
        tokens = next((own for name, own in self._tokens.items() if targets.is_called(name, path)), None)
        return super().at(path) if tokens is None else TokenRows(token_indices=tokens)

    @property
    def scaling(self) -> float:
        """The factor s: α/r, or α/√r with `use_rslora`."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    @property
    def dropout(self) -> float:
        """`lora_dropout`, under the name that hosts look for."""
        return self.lora_dropout

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        a: Initializer = uniform(1 / math.sqrt(site.fan_in))
        b: Initializer = zeros
        if self.init_lora_weights is False:
            b = uniform(1 / math.sqrt(self.r))
        elif self.init_lora_weights == "gaussian":
            a = normal(1 / self.r)
        elif site.kind == "embedding":
            a, b = zeros, normal(1.0)
        factors = {"lora_A": Weight(("in", self.r), a, rest=0.0), "lora_B": Weight((self.r, "out"), b, rest=0.0)}
        if self.lora_bias:
            start = uniform(1 / math.sqrt(self.r)) if self.init_lora_weights is False else zeros
            factors["lora_B_bias"] = Weight(("out",), start, flat=True, rest=0.0)
        if not self._starts_elsewhere:
            return factors
        return factors | {
            "start_A": Weight(("in", self.r), trainable=False),
            "start_B": Weight((self.r, "out"), trainable=False),
        }

    @property
    @override
    def from_data(self) -> bool:
        """Whether the factors start from what `initialize` sees."""
        return self.init_lora_weights in FROM_DATA

    @property
    def _starts_elsewhere(self) -> bool:
        start = str(self.init_lora_weights)
        return start.startswith(("pissa", "olora")) or start in ("corda", "lora_ga")

    @override
    def start(self, values: dict[str, Array], kernel: Callable[[], Array], rng: np.random.Generator) -> None:
        """Sets the factors that depend on the kernel or on each other."""
        if self.init_lora_weights == "orthogonal":
            if self.r % 2:
                raise ValueError(f"init_lora_weights='orthogonal' needs an even r. Received: r={self.r}")
            q, _ = np.linalg.qr(rng.normal(size=(self.r, self.r)))
            (*_, inner, _), (*batch, _, outer) = values["lora_A"].shape, values["lora_B"].shape
            values["lora_A"] = rng.normal(size=(*batch, inner, self.r // 2)) @ q[0::2] / 10
            values["lora_B"] = q[1::2].T @ rng.normal(size=(*batch, self.r // 2, outer)) / 10
        elif self._starts_elsewhere and not self.from_data:
            a, b = self._factors(kernel().astype(np.float64), rng)
            if a.shape[-1] < self.r:
                raise ValueError(
                    f"init_lora_weights={self.init_lora_weights!r} takes r singular values of the kernel, which has "
                    f"{a.shape[-1]}. Received: r={self.r}"
                )
            values |= {"lora_A": a, "lora_B": b, "start_A": a, "start_B": b}

    def _factors(self, w: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        if self.init_lora_weights == "olora":
            q, upper = np.linalg.qr(w.mT)  # Wᵀ = Q R, so W = Rᵀ Qᵀ
            return upper.mT[..., : self.r], q.mT[..., : self.r, :]
        iterations = str(self.init_lora_weights).partition("_niter_")[2]
        u, s, v = np.linalg.svd(w, full_matrices=False) if not iterations else self._svd(w, int(iterations), rng)
        root = np.sqrt(s[..., : self.r] / self.scaling)
        return u[..., : self.r] * root[..., None, :], root[..., :, None] * v[..., : self.r, :]

    def _svd(self, w: Array, iterations: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Returns about the r largest singular values of W and their vectors, by iteration from random vectors."""
        q, _ = np.linalg.qr(w @ rng.normal(size=(*w.shape[:-2], w.shape[-1], self.r)))
        for _ in range(iterations):
            q, _ = np.linalg.qr(w @ np.linalg.qr(w.mT @ q)[0])
        u, s, v = np.linalg.svd(q.mT @ w, full_matrices=False)
        return q @ u, s, v

    def change(self, p: Any) -> Tensor:
        """Returns W' - W."""
        scale = p.gate * self.scaling  # of the thin factor: the product is a hundred times its size
        product = ops.matmul(p.lora_A, scale * p.lora_B)
        return product - ops.matmul(p.start_A, scale * p.start_B) if self._starts_elsewhere else product

    def low_rank(self, x: Tensor, site: Site, p: Any) -> Tensor:
        """Returns x (W' - W) in two thin products."""
        scale = p.gate * self.scaling
        z = site.low_rank(x, p.lora_A, p.lora_B, scale)
        if self._starts_elsewhere:
            z = z - site.low_rank(x, p.start_A, p.start_B, scale)
        return z

    @staticmethod
    def dropped(x: Tensor, site: Site, p: Any) -> Tensor:
        """Returns x with dropout for the factors; indices of an embedding are kept."""
        return x if site.kind == "embedding" else p.dropout(x)

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns W + s A B."""
        return w + self.change(p)

    @override
    def effective_bias(self, b: Tensor, p: Any) -> Tensor:
        """Returns the bias, with s c where there is one."""
        return b + p.gate * self.scaling * p.lora_B_bias if self.lora_bias else b

    @property
    @override
    def changes_bias(self) -> bool:
        """Whether `lora_bias` is set."""
        return self.lora_bias

    @override
    def can_host(self, layer: Any, site: Site | None) -> bool:
        """Returns whether there is a kernel and, with `lora_bias`, an output that a bias can be added to."""
        added = site is not None and site.kind in ("einsum", "convolution")
        return super().can_host(layer, site) and (added or not self.lora_bias)

    @override
    def spell(self, name: str, site: Site) -> str:
        """Returns peft's names, which are those of modules but for embeddings."""
        if site.kind == "embedding":
            return {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}.get(name, name)
        return {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_B_bias": "lora_B.bias"}.get(name, name)

    @override
    def added(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns s (x A) B, and s c."""
        z = self.low_rank(self.dropped(x, base.site, p), base.site, p)
        return z + base.site.along_output(p.gate * self.scaling * p.lora_B_bias, z) if self.lora_bias else z

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Returns x W + s (x A) B, and s c."""
        return base(x) + self.added(x, base, p)

    @override
    def trains(self, name: str, targeted: bool) -> bool:
        return is_bias(name) and (self.bias == "all" or (self.bias == "lora_only" and targeted))


@checked
def lora_plus(ratio: Annotated[float, Range(1)]) -> list[tuple[str, float]]:
    """Returns `multipliers` for a kopt optimizer with which the learning rate of B is `ratio` times that of A (LoRA+).

    Args:
        ratio: ≥ 1; the authors take 16.

    Raises:
        ValueError: the ratio is less than 1.

    Reference: Hayou et al., 2024, arXiv:2402.12354.
    """
    return [(r"lora_B$", ratio)]
