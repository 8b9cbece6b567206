"""P-tuning."""

import math
import types
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Range
from kopt.peft.adapter import Array, Weight, uniform
from kopt.peft.layers import Site, Tensor
from kopt.peft.methods.prompt import PromptTuning

LAYERS = ("encoder_1", "encoder_2", "encoder_3")


class PTuning(PromptTuning):
    r"""P-tuning: learned vectors in front of the embedded tokens, which a small network makes of others.

        prompt = W₃ relu(W₂ relu(W₁ v + c₁) + c₂) + c₃

    Inputs, outputs and what is refused are those of `PromptTuning`.

    Weights: v [num_virtual_tokens, out], W₁ [out, h], W₂ [h, h], W₃ [h, out] and c. Files have the prompt alone, so
    what is read from them is trained further without the network, as a prompt.

    Args:
        num_virtual_tokens: 1 to 65,536.
        encoder_hidden_size: h, up to 65,536; None is the width of the embeddings, 0 is no network: prompt = v.

    Differs from Hugging Face peft: no LSTM in the place of the network; files with prompts that one made are read.
    Reference: Liu et al., 2021, arXiv:2103.10385.
    """

    peft_type = "P_TUNING"

    encoder_hidden_size: Annotated[int, Range(0, 2**16, closed=True)] | None = None

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        own, width = super().weights(site), site.fan_out
        hidden = width if self.encoder_hidden_size is None else self.encoder_hidden_size
        sizes = [width, hidden, hidden, width]
        for name, inner, outer in zip(LAYERS, sizes, sizes[1:], strict=False) if hidden else ():
            start = uniform(1 / math.sqrt(inner))
            own[name] = Weight((inner, outer), start, in_files=False)
            own[f"{name}_bias"] = Weight((outer,), start, in_files=False)
        return own

    @override
    def prompt(self, p: Any) -> Tensor:
        """Returns what the network makes of v."""
        x = p.prompt_embeddings
        for name in LAYERS if self.encoder_hidden_size != 0 else ():
            x = ops.matmul(x if name == LAYERS[0] else ops.relu(x), getattr(p, name)) + getattr(p, f"{name}_bias")
        return x

    @override
    def fold(self, values: dict[str, Array]) -> dict[str, Array]:
        """Returns the prompt."""
        p = types.SimpleNamespace(**{key: ops.convert_to_tensor(value) for key, value in values.items()})
        return values | {"prompt_embeddings": np.asarray(ops.convert_to_numpy(self.prompt(p)))}

    @classmethod
    @override
    def unfold(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """Leaves the network out."""
        return {**config, "encoder_hidden_size": 0}, tensors
