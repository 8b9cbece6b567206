"""From texts to tokens: tokenizers, what of a chat is learnt, rows of several texts, and batches."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..readers.pretrained import Pretrained, explain, load_tokenizer
from ..run.batches import Array, EpochOrder, in_epochs, told_by
from ..run.errors import DataError, UsageError
from .examples import Example, Kind

STEP = 32
"""Rows that are not packed are padded to a multiple of this, so that few shapes are traced."""
Template = Literal["auto", "chat", "roles", "lines", "none"]
"""How what is before an answer is written: as the model's chat template says, a line for each message with or without
who says it, or not at all. It is the same for every answer of a run and for `predict`."""
Pieces = list[tuple[str, bool]]
"""Parts of a text, each with whether it is learnt."""
INPUTS = ("token_ids", "targets", "documents")
PROMPT = 24
"""Tokens of a plain text that a sample goes on from."""
BEGINNING = 40
"""Letters of an example in an error."""


class Tokenizer:
    """The tokenizer of a model.

    Args:
        pretrained: whose it is.

    Raises:
        DataError: it cannot be loaded, or has no token for the end of a text.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        self._hub = pretrained.config is None
        if self._hub:
            import keras_hub

            try:
                self._made: Any = keras_hub.models.Tokenizer.from_preset(pretrained.place)
            except Exception as error:  # KerasHub raises what its formats raise
                raise explain(pretrained, "tokenizer", error) from error
            self.start, end = list[int](), self._made.end_token_id
            self.has_template = False
        else:
            self._made = load_tokenizer(pretrained)
            end, first = self._made.eos_token_id, self._made.bos_token_id
            self.start = [first] if first is not None and first in self._made("a").input_ids else []
            """What stands before every text."""
            self.has_template = bool(getattr(self._made, "chat_template", None))
            """Whether it says how a chat is written."""
        if end is None:
            raise DataError(f"--model {pretrained.name}: its tokenizer has no token for the end of a text.")
        self.end: int = int(end)
        """The token that ends a text."""

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without those that stand around texts."""
        if self._hub:
            return [int(i) for i in np.asarray(self._made.tokenize(text))]
        found: list[int] = self._made(text, add_special_tokens=False).input_ids
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without those that stand for no text."""
        if self._hub:
            return str(self._made.detokenize(list(tokens)))
        return str(self._made.decode(list(tokens), skip_special_tokens=True))

    def render(self, messages: Sequence[dict[str, str]], answer: bool) -> str:
        """Returns a chat as the model's template has it.

        Args:
            messages: with role and content.
            answer: whether an answer is to follow.

        Raises:
            DataError: the template refuses the messages.
        """
        try:
            return str(self._made.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer))
        except Exception as error:  # what the template says by raise_exception, and jinja2's own
            raise DataError(f"the chat template of the model: {' '.join(str(error).split())[:200]}") from error


def choose_template(template: Template, kind: Kind, tokenizer: Tokenizer) -> Template:
    """Returns how prompts and answers are written; auto takes the chat template of a model that has one.

    Raises:
        UsageError: the data have no use for it, or the model has no chat template.
    """
    if (kind == "text") != (template == "none") and template != "auto":
        wanted = (
            "texts have no prompts; take none" if kind == "text" else "there are prompts; take chat, roles or lines"
        )
        raise UsageError(f"--template {template}: {wanted}, or leave it out.")
    if template == "chat" and not tokenizer.has_template:
        raise UsageError("--template chat: the tokenizer of the model has no chat template. Take roles or lines.")
    if kind == "text":
        return "none"
    if template != "auto":
        return template
    return "chat" if tokenizer.has_template else "roles" if kind == "chat" else "lines"


def prompt_text(messages: Sequence[dict[str, str]], template: Template, tokenizer: Tokenizer) -> str:
    """Returns the text that an answer follows.

    Args:
        messages: of a chat, up to the answer.
        template: how they are written.
        tokenizer: of the model.
    """
    if template == "chat":
        return tokenizer.render(messages, True)
    if template == "roles":
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "
    return "".join(message["content"] + ("\n" if template == "lines" else "") for message in messages)


def pieces(example: Example, template: Template, tokenizer: Tokenizer) -> list[Pieces]:
    """Returns the parts of an example, those of the chosen and of the rejected answer if it has two."""
    if isinstance(example, str):
        return [[(example, True)]]
    if isinstance(example, tuple):
        prompt, *answers = example
        asked = [{"role": "user", "content": prompt}]
        chats = [[*asked, {"role": "assistant", "content": answer}] for answer in answers]
        return [_chat_pieces(chat, template, tokenizer) for chat in chats]
    return [_chat_pieces(example, template, tokenizer)]


def _chat_pieces(messages: list[dict[str, str]], template: Template, tokenizer: Tokenizer) -> Pieces:
    found, written = list[tuple[str, bool]](), ""
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = prompt_text(messages[:i], template, tokenizer)
            whole = template == "chat"
            after = tokenizer.render(messages[: i + 1], False) if whole else before + message["content"]
            if not (before.startswith(written) and after.startswith(before)):
                raise DataError(
                    "the chat template of the model changes what is before an answer. Take --template roles."
                )
            found += [(before[len(written) :], False), (after[len(before) :], True)]
            written = after
    return found


def prompt_tokens(messages: Sequence[dict[str, str]], template: Template, tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens that an answer follows; with the template none those of a text to go on from."""
    text = prompt_text(messages, template, tokenizer)
    return [*(tokenizer.start if template != "chat" else ()), *tokenizer.encode(text)]


def ask(example: Example, template: Template, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """Returns the tokens of a prompt, and the text that stands behind it in the data."""
    if isinstance(example, str):
        ids = tokenizer.encode(example)
        return [*tokenizer.start, *ids[:PROMPT]], tokenizer.decode(ids[PROMPT : 3 * PROMPT])
    if isinstance(example, tuple):
        return prompt_tokens([{"role": "user", "content": example[0]}], template, tokenizer), example[1]
    last = max(i for i, message in enumerate(example) if message["role"] == "assistant")
    before = _chat_pieces(example[: last + 1], template, tokenizer)[:-1]  # with the ends of the answers before
    return _encode_one(before, tokenizer, template)[0].tolist(), example[last]["content"]


class Encoded(NamedTuple):
    """Texts as tokens."""

    ids: list[Array]
    learnt: list[Array]
    """For each token, whether it is learnt."""


def encode(
    examples: Sequence[Example], template: Template, tokenizer: Tokenizer, length: int
) -> tuple[Encoded, int, list[int]]:
    """Returns the tokens of all texts, how many were too long, and of which example each text is.

    Plain texts that are too long become several; of others what is too much is left out at the end, and an example of
    which nothing is left to learn is left out.

    Args:
        examples: those of preferences give two texts each.
        template: how chats are written.
        tokenizer: of the model.
        length: largest number of tokens that are predicted in one text.
    """
    ids, learnt, owners, cut = list[Array](), list[Array](), list[int](), 0
    for number, example in enumerate(examples):
        try:
            texts = [_encode_one(parts, tokenizer, template) for parts in pieces(example, template, tokenizer)]
        except DataError as error:
            raise DataError(f"the example that begins with {_beginning(example)!r}: {error}") from error
        if isinstance(example, str):
            texts = [window for window in _windows(*texts[0], length) if len(window[0]) > 1]
        else:
            cut += any(len(tokens) > length + 1 for tokens, _ in texts)
            texts = [(tokens[: length + 1], mask[: length + 1]) for tokens, mask in texts]
            if not all(mask[1:].any() for _, mask in texts):
                continue
        ids += [tokens for tokens, _ in texts]
        learnt += [mask for _, mask in texts]
        owners += [number] * len(texts)
    return Encoded(ids, learnt), cut, owners


def _beginning(example: Example) -> str:
    """Returns the first letters of an example, by which it can be found."""
    first = example if isinstance(example, str) else example[0]
    return (first if isinstance(first, str) else first["content"])[:BEGINNING]


def _encode_one(parts: Pieces, tokenizer: Tokenizer, template: Template) -> tuple[Array, Array]:
    """Returns the tokens of a text; a chat template says itself what stands around texts and ends answers."""
    around = template != "chat"
    tokens = list(tokenizer.start) if around else []
    mask = [False] * len(tokens)
    for text, counts in parts:
        more = tokenizer.encode(text) + ([tokenizer.end] if around and counts else [])
        tokens += more
        mask += [counts] * len(more)
    return np.array(tokens, np.int32), np.array(mask, bool)


def _windows(tokens: Array, mask: Array, length: int) -> list[tuple[Array, Array]]:
    """Returns parts that overlap in one token, so that each token but the first is predicted once."""
    starts = range(0, max(1, len(tokens) - 1), length)
    return [(tokens[i : i + length + 1], mask[i : i + length + 1]) for i in starts]


def pack(sizes: Sequence[int], width: int) -> list[list[int]]:
    """Returns which texts share a row of `width` tokens: the longest first, each where it fits first."""
    rows, room = list[list[int]](), list[int]()
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = next((at for at, free in enumerate(room) if free >= sizes[i]), None)
        if place is None:
            rows.append([])
            room.append(width)
            place = len(rows) - 1
        rows[place].append(i)
        room[place] -= sizes[i]
    return rows


def fill(encoded: Encoded, rows: Sequence[Sequence[int]], width: int) -> tuple[dict[str, Array], Array]:
    """Returns inputs [row, width] for the texts of each row, and the weights of the targets."""
    inputs = {name: np.zeros((len(rows), width), np.int32) for name in INPUTS}
    weights = np.zeros((len(rows), width), np.float32)
    for at, row in enumerate(rows):
        begin = 0
        for number, i in enumerate(row, 1):
            ids, part = encoded.ids[i], slice(begin, begin + len(encoded.ids[i]) - 1)
            inputs["token_ids"][at, part], inputs["targets"][at, part] = ids[:-1], ids[1:]
            inputs["documents"][at, part], weights[at, part] = number, encoded.learnt[i][1:]
            begin = part.stop
    return inputs, weights


def batches(
    encoded: Encoded,
    batch_size: int,
    length: int,
    packing: bool,
    shuffle_seed: int | None = None,
    extra: Array | None = None,
    together: int = 1,
) -> Any:
    """Returns a `tf.data.Dataset` of inputs and targets: the weights of the tokens.

    Args:
        encoded: the texts.
        batch_size: rows a batch, or groups of `together` rows.
        length: tokens of a row, if they are packed; else the most that a row has.
        packing: whether several texts share a row.
        shuffle_seed: seed of a new order in each epoch; `None` keeps the order.
        extra: a number for each text that becomes the last column of the targets; rows are not packed then.
        together: texts that stay one after the other.
    """
    import tensorflow as tf

    sizes = [len(ids) - 1 for ids in encoded.ids]
    rows = pack(sizes, length) if packing else [[i] for i in range(len(sizes))]
    groups = len(rows) // together
    order = EpochOrder(shuffle_seed)

    def plan(rng: np.random.Generator | None) -> Iterator[Any]:
        chosen = np.arange(groups) if rng is None else rng.permutation(groups)
        for i in range(0, groups, batch_size):
            part = [rows[together * g + j] for g in chosen[i : i + batch_size] for j in range(together)]
            widest = max(sum(sizes[i] for i in row) for row in part)
            width = length if packing else min(-(-widest // STEP) * STEP, length)
            inputs, weights = fill(encoded, part, width)
            if extra is not None:
                weights = np.concatenate([weights, extra[[row[0] for row in part]][:, None]], axis=1)
            yield inputs, weights

    signature = (
        {name: tf.TensorSpec((None, None), tf.int32) for name in INPUTS},
        tf.TensorSpec((None, None), tf.float32),
    )
    return told_by(order, in_epochs(order, plan, signature, -(-groups // batch_size)).prefetch(2))
