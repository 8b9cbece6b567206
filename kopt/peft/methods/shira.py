"""SHiRA."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Range
from kopt.peft.adapter import Array, Length, Weight, normal, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive


class SHiRA(Additive):
    r"""SHiRA: a few elements of the kernel are trained, each by a number that is added to it.

        W' = W + Δ,   Δ[i, o] = c at the chosen places, 0 elsewhere

    Weights: c [n], n = r (in + out) as many as LoRA's, and the places [n, 2] as (o, i), which are drawn at the start
    and not trained. At the start c = 0, so that W' = W.

    Args:
        r: 1 to 65,536; the rank of the change is not bounded by it. The places are at most all of the kernel.
        mask_type: "random", the places are drawn evenly.
        random_seed: seed of the places; None takes that of `keras.utils.set_random_seed`. Layers of one shape then have
            the same places. Files hold the places, for torch draws others.
        init_weights: False draws c from N(0, 1), which is not the identity.

    Reference: Bhardwaj et al., 2024, arXiv:2406.13175.
    """

    peft_type = "SHIRA"
    in_peft = True
    additive = ordered = True
    batched = False
    kinds = ("einsum",)
    whole_numbers = ("shira_indices",)

    r: Length = 32
    mask_type: Literal["random"] = "random"
    random_seed: Annotated[int, Range(0, 2**32)] | None = None

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        count = self.r * (site.fan_in + site.fan_out)
        return {
            "shira_weight": Weight((count,), zeros if self.init_weights else normal(1.0)),
            "shira_indices": Weight((count, 2), trainable=False, in_files=True),
        }

    @override
    def check_fit(self, site: Site) -> None:
        inner, outer = site.fan_in, site.fan_out
        if (count := self.r * (inner + outer)) > inner * outer:
            raise ValueError(
                f"SHiRA: r={self.r} asks for {count} places in a kernel [{inner}, {outer}], which has {inner * outer}."
            )

    @override
    def start(self, values: dict[str, Array], kernel: Callable[[], Array], rng: np.random.Generator) -> None:
        """Draws the places."""
        (inner, outer), count = kernel().shape, len(values["shira_weight"])
        rng = rng if self.random_seed is None else np.random.default_rng(self.random_seed)
        places = np.sort(rng.choice(inner * outer, count, replace=False))
        values["shira_indices"] = np.stack([places // inner, places % inner], axis=-1)

    @override
    def check_values(self, values: Mapping[str, Array], site: Site) -> None:
        places = values["shira_indices"]
        if (places != np.floor(places)).any() or (places < 0).any() or (places >= (site.fan_out, site.fan_in)).any():
            raise ValueError(f"shira_indices are places (output, input) in a kernel [{site.fan_in}, {site.fan_out}].")

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns Δ."""
        places = ops.cast(ops.flip(p.shira_indices, axis=-1), "int32")
        return ops.scatter(places, p.shira_weight, w.shape)
