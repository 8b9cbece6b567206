"""Prompt tuning."""

from typing import Any

from keras import ops
from typing_extensions import override

from kopt.peft.adapter import Adapter, Base, Length, Weight, normal
from kopt.peft.layers import Site, Tensor

TOKENS, MASK, SEGMENTS = "token_ids", "padding_mask", "segment_ids"


class PromptTuning(Adapter):
    """Prompt tuning: learned vectors in front of the embedded tokens.

    The model is called as before; its inputs, a dictionary with "token_ids" [batch, n] and perhaps "padding_mask" and
    "segment_ids", get `num_virtual_tokens` positions in front, and so do outputs that go along the sequence.

    Weights: [num_virtual_tokens, out] at the token embedding. At the start they are drawn from N(0, 1), as in torch.

    Args:
        num_virtual_tokens: 1 to 65,536.

    Switching it on or off changes shapes: the model's own compiled functions are traced anew, but a model that contains
    it must be compiled again. Text generation does not pass through `call`, so it is refused.

    Reference: Lester et al., 2021, arXiv:2104.08691.
    """

    peft_type = "PROMPT_TUNING"
    in_peft = True
    mergeable = False
    gated = False
    prepends = True
    kinds = ("embedding",)
    default_targets = ("token_embedding",)

    num_virtual_tokens: Length = 20

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        return {"prompt_embeddings": Weight((self.num_virtual_tokens, "out"), normal(1.0), as_it_is=True)}

    def prompt(self, p: Any) -> Tensor:
        """Returns the vectors, [num_virtual_tokens, out]."""
        return p.prompt_embeddings

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        """Looks tokens beyond the vocabulary up in the prompt."""
        vocabulary = base.site.fan_in
        x = ops.cast(x, "int32")
        virtual = x >= vocabulary
        y = base(ops.where(virtual, 0, x))
        prompt = ops.cast(self.prompt(p), y.dtype)
        rows = ops.take(prompt, ops.where(virtual, x - vocabulary, 0), axis=0)
        return ops.where(ops.expand_dims(virtual, -1), rows, y)

    @override
    def prepend(self, inputs: Any, vocabulary: int) -> Any:
        """Returns the inputs of the model with the virtual tokens in front.

        Raises:
            ValueError: they are no dictionary with token ids.
        """
        if not isinstance(inputs, dict) or TOKENS not in inputs:
            received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                f"Prompt tuning needs a model whose input is a dictionary with {TOKENS!r}. Received: {received}"
            )
        n = self.num_virtual_tokens

        def front(values: Any, new: Any) -> Any:
            shape = (ops.shape(values)[0], n)
            return ops.concatenate([ops.broadcast_to(ops.cast(new, values.dtype), shape), values], axis=1)

        tensors = {key: ops.convert_to_tensor(value) for key, value in inputs.items()}
        changed = {TOKENS: front(tensors[TOKENS], ops.arange(vocabulary, vocabulary + n))}
        if MASK in tensors:
            changed[MASK] = front(tensors[MASK], ops.ones((n,)))
        if SEGMENTS in tensors:
            changed[SEGMENTS] = front(tensors[SEGMENTS], ops.zeros((n,)))
        return inputs | changed
