"""Texts that a model writes, token by token, each shown as soon as it is there."""

from collections.abc import Callable, Sequence
from typing import Any

import keras_hub
import numpy as np
import tensorflow as tf

from ..run.batches import Array
from .tokens import Tokenizer


class Streaming(keras_hub.samplers.Sampler):
    """A sampler that hands on each token.

    Args:
        emit: called with each token.
        stops: tokens that end the text; they are not handed on.
        temperature: what the logits are divided by; 0 takes the most probable token.
        top_p: the smallest set of tokens that has this probability is drawn from.
        seed: of the draws.
    """

    def __init__(
        self, emit: Callable[[int], None], stops: Sequence[int], temperature: float, top_p: float, seed: int
    ) -> None:
        super().__init__(temperature=temperature)
        self._emit, self._stops, self._top_p = emit, frozenset(stops), top_p
        self._rng = np.random.default_rng(seed)

    def __call__(self, next: Any, prompt: Any, cache: Any = None, index: Any = 0, **rest: Any) -> Any:
        """Returns the tokens [1, n] with those that were drawn behind the prompt; KerasHub calls it."""
        step, tokens = tf.function(next), np.array(prompt)
        for at in range(int(index), tokens.shape[1]):
            logits, _, cache = step(tf.constant(tokens), cache, tf.constant(at))
            token = self.draw(np.asarray(logits, np.float64)[0])
            if token in self._stops:
                break
            tokens[0, at] = token
            self._emit(token)
        return tf.constant(tokens)

    def draw(self, logits: Array) -> int:
        """Returns a token for logits [vocabulary]."""
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        shares = np.exp((logits[order] - logits[order[0]]) / self.temperature)
        shares /= shares.sum()
        kept = shares[: int(np.searchsorted(np.cumsum(shares), self._top_p)) + 1]
        return int(order[self._rng.choice(len(kept), p=kept / kept.sum())])


def write(
    causal_lm: Any,
    tokenizer: Tokenizer,
    start: Sequence[int],
    count: int,
    temperature: float,
    top_p: float,
    seed: int,
    show: Callable[[str], None] = lambda text: None,
) -> str:
    """Returns what a model writes behind a prompt.

    Args:
        causal_lm: a model of KerasHub that generates text.
        tokenizer: its tokenizer.
        start: the tokens before.
        count: most tokens.
        temperature: see `Streaming`.
        top_p: see `Streaming`.
        seed: see `Streaming`.
        show: called with each part of the text, as soon as it is certain.
    """
    start = list(start) or [tokenizer.end]
    tokens = np.zeros((1, len(start) + count), np.int32)
    tokens[0, : len(start)] = start
    mask = np.zeros_like(tokens)
    mask[0, : len(start)] = 1
    drawn, shown = list[int](), ""

    def emit(token: int) -> None:
        nonlocal shown
        drawn.append(token)
        text = tokenizer.decode(drawn)
        if not text.endswith("\ufffd"):  # else the rest of a letter is still to come
            show(text[len(shown) :])
            shown = text

    sampler = Streaming(emit, [tokenizer.end], temperature, top_p, seed)
    causal_lm.compile(sampler=sampler, run_eagerly=True)  # eagerly, so that tokens come one by one
    causal_lm.generate({"token_ids": tf.constant(tokens), "padding_mask": tf.constant(mask)}, stop_token_ids=None)
    return tokenizer.decode(drawn)
