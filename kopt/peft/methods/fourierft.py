"""FourierFT."""

import functools
from typing import Annotated, Any, Literal

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Convert
from kopt.peft import targets
from kopt.peft.adapter import Length, Scale, Weight, normal, zeros
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.additive import Additive
from kopt.peft.methods.projections import Key

LARGEST = (2**32 - 1) // 20
"""Size from which torch draws permutations in another way."""


class FourierFT(Additive):
    r"""FourierFT: the change is the inverse Fourier transform of a few coefficients, at places that are drawn.

        W' = W + α Re F⁻¹(S)ᵀ,   S[o, i] = c at n places, 0 elsewhere

    Weights: c [n]. At the start c = 0, so that W' = W.

    Args:
        n_frequency: n, 1 to 65,536, at most all of the kernel.
        scaling: α, 1e-6 to 1e6.
        random_loc_seed: seed of the places, which are those that torch draws: layers of one shape have the same.
        n_frequency_pattern: n by regular expression of the end of a path.
        init_weights: False draws c from N(0, 1), which is not the identity.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.

    Differs from Hugging Face peft: starts from zeros by default.
    Reference: Gao et al., 2024, arXiv:2405.03003.
    """

    peft_type = "FOURIERFT"
    in_peft = True
    additive = ordered = True
    batched = False
    patterned = {"n_frequency_pattern": "n_frequency"}
    selects = (*Additive.selects, *patterned)
    kinds = ("einsum",)

    n_frequency: Length = 1000
    scaling: Scale = 150.0
    random_loc_seed: Key = 777
    n_frequency_pattern: Annotated[Any, Convert(targets.parse_numbers(Length))] = {}
    init_weights: bool = True
    bias: Literal["none"] = "none"

    @override
    def check_fit(self, site: Site) -> None:
        if not self.n_frequency <= site.fan_in * site.fan_out < LARGEST:
            raise ValueError(
                f"FourierFT: n_frequency must be at most the size of the kernel, and that below {LARGEST:,}. Received: "
                f"n_frequency={self.n_frequency} for a kernel [{site.fan_in}, {site.fan_out}]"
            )

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        return {"fourierft_spectrum": Weight((self.n_frequency,), zeros if self.init_weights else normal(1.0))}

    @override
    def change(self, w: Tensor, p: Any) -> Tensor:
        """Returns α Re F⁻¹(S)ᵀ."""
        inner, outer = w.shape
        places = np.array(drawn_places(self.random_loc_seed, inner * outer, self.n_frequency))
        places = np.stack([places // inner, places % inner], axis=-1)
        spectrum = ops.scatter(places, p.fourierft_spectrum, (outer, inner))
        real, _ = ops.ifft2((spectrum, ops.zeros_like(spectrum)))
        return self.scaling * ops.transpose(real)


@functools.lru_cache(maxsize=64)
def drawn_places(key: int, size: int, count: int) -> tuple[int, ...]:
    """Returns the first `count` numbers of `randperm(size)` of torch on a CPU after `manual_seed(key)`."""
    places, moved = list[int](), dict[int, int]()
    for i, bits in enumerate(np.random.RandomState(key).randint(0, 2**32, count, np.uint32).tolist()):
        j = i + bits % (size - i)
        places.append(moved.get(j, j))
        moved[j] = moved.get(i, i)
    return tuple(places)
