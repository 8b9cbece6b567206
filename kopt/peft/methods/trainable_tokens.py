"""Trainable tokens."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Convert
from kopt.peft import targets
from kopt.peft.adapter import Adapter, Array, Base, Weight, normal
from kopt.peft.layers import Site, Tensor


class TrainableTokens(Adapter):
    r"""Trainable tokens: some rows of an embedding are trained, as copies; new words of a vocabulary, for example.

        W'[t] = cₜ for the chosen tokens t, W' = W elsewhere

    Weights: c [tokens, out]: as many parameters as these rows have. At the start they are the rows of W.

    Args:
        token_indices: the numbers of the tokens, each once and less than the vocabulary.
        init_weights: False draws c from N(0, 1), which is not the identity.

    An embedding that is the output matrix too gets the new rows in both places, as in peft.
    Reference: Hugging Face peft, `TrainableTokensConfig`; as a method, the embeddings that are learned for new words in
    Gal et al., 2022, arXiv:2208.01618.
    """

    peft_type = "TRAINABLE_TOKENS"
    in_peft = True
    kinds = ("embedding",)
    selects = (*Adapter.selects, "init_weights")
    default_targets = ("token_embedding",)

    token_indices: Annotated[Any, Convert(targets.parse_tokens)] = []
    init_weights: bool = True

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        axes = (len(self.token_indices), "out")
        return {"trainable_tokens_delta": Weight(axes, normal(1.0), as_it_is=True)} if self.token_indices else {}

    @override
    def check_fit(self, site: Site) -> None:
        if max(self.token_indices, default=-1) >= site.fan_in:
            raise ValueError(
                f"TrainableTokens: token_indices go up to {max(self.token_indices)}, but the embedding has "
                f"{site.fan_in} rows. Enlarge the vocabulary of the model first."
            )

    @override
    def start(self, values: dict[str, Array], kernel: Callable[[], Array], rng: np.random.Generator) -> None:
        """Takes the rows of the embedding."""
        if self.init_weights:
            values["trainable_tokens_delta"] = kernel()[self.token_indices]

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        """Returns W with the trained rows."""
        places = np.array(self.token_indices, "int32")
        own = ops.take(w, places, axis=0)
        return ops.scatter_update(w, places[:, None], own + p.gate * (p.trainable_tokens_delta - own))

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Looks tokens up, the chosen ones among the trained rows."""
        rank = np.full(base.site.fan_in, -1, "int32")
        rank[self.token_indices] = np.arange(len(self.token_indices))
        place, y = ops.take(rank, ops.cast(x, "int32"), axis=0), base(x)
        rows = ops.take(ops.cast(p.trainable_tokens_delta, y.dtype), ops.maximum(place, 0), axis=0)
        change = ops.cast(p.gate, y.dtype) * (rows - y)
        return ops.where(ops.expand_dims(place, -1) >= 0, y + change, y)


class TokenRows(TrainableTokens):
    """The trainable tokens of a `LoRA`, which has them beside its factors: `trainable_token_indices`.

    They are no method that a configuration could ask for alone, and have another name in files.
    """

    peft_type = ""

    @override
    def spell(self, name: str, site: Site) -> str:
        """Returns peft's name."""
        return f"token_adapter.{name}"
