"""Files of texts, answers, chats and preferences; what of them is learnt; rows of several texts."""

import json
from pathlib import Path

import numpy as np
import pytest

from recipes.generation import examples, python_texts, tokens
from recipes.run.errors import DataError, UsageError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "content": "6"},
]


class Letters:
    """A tokenizer whose tokens are code points, and 0 the end; its chat template is <role:content>."""

    def __init__(self, start=(), has_template=False):
        self.start, self.end, self.has_template = list(start), 0, has_template

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i > 1)

    def render(self, messages, answer):
        text = "".join(f"<{m['role']}:{m['content']}>" for m in messages)
        return text + "<assistant:" * answer


def write(rows, name="data.jsonl"):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return name


def learnt(encoded, i=0):
    """Returns the text of the tokens that are learnt, | for the end."""
    return "".join(chr(t) if t else "|" for t in encoded.ids[i][encoded.learnt[i]])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("row", "objective", "kind", "example"),
    [
        ({"text": " Once. "}, "sft", "text", "Once."),
        ({"messages": CHAT, "text": "x"}, "sft", "chat", CHAT),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "dpo", "preference", ("p", "c", "r")),
        (
            {"prompt": "p", "response": "a"},
            "sft",
            "response",
            [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}],
        ),
    ],
)
def test_kinds(row, objective, kind, example, here):
    assert examples.read(here / write([row] * 2), objective, "error") == (kind, [example] * 2)


@pytest.mark.parametrize(
    ("rows", "objective", "says"),
    [
        ([{"text": "a"}, {"txt": "b"}], "sft", "line 2: no prompt and response, messages, or text (it has txt)"),
        ([{"prompt": "a", "response": " "}], "sft", "line 1: 'response' is empty"),
        ([{"prompt": "a", "response": 3}], "sft", "'response' is no text"),
        ([{"messages": "hello"}] * 2, "sft", "no list of objects"),
        ([{"messages": [{"role": "bot", "content": "a"}]}] * 2, "sft", "'bot'"),
        ([{"messages": CHAT[:2]}] * 2, "sft", "nothing to learn"),
        ([{"text": "a"}, {"prompt": "a", "response": "b"}], "sft", "line 2: it holds response, the rows before text"),
        ([{"prompt": "a", "response": "b"}], "dpo", "no prompt, chosen and rejected"),
    ],
)
def test_bad_rows(rows, objective, says, here):
    with pytest.raises(DataError) as caught:
        examples.read(here / write(rows), objective, "error")
    assert says in str(caught.value)
    if rows[0] != rows[-1]:
        assert len(examples.read(here / "data.jsonl", objective, "skip")[1]) == 1


def test_a_plain_text_becomes_pages_of_which_some_are_held_out(here):
    paragraphs = [f"Paragraph {i}" + " word" * 40 for i in range(60)]
    (here / "book.txt").write_text("\n\n".join(paragraphs))
    data = examples.load(examples.DataFlags(data="book.txt", test_split=0.2), "sft")
    everything = [p for part in (data.train, data.validation, data.test) for page in part for p in page.split("\n\n")]
    assert sorted(everything) == sorted(paragraphs)
    assert len(data.test) == round(0.2 * len({*data.train, *data.validation, *data.test}))
    assert data == examples.load(examples.DataFlags(data="book.txt", test_split=0.2), "sft")
    (here / "latin.txt").write_text("\n\n".join(paragraphs).replace("word", "wörd"), encoding="cp1252")
    form = examples.Format(encoding="cp1252")
    assert all("wörd" in page for page in examples.read(here / "latin.txt", "sft", "error", form)[1])
    (here / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"bad.txt, line 2"):
        examples.read(here / "bad.txt", "sft", "error")


@pytest.mark.parametrize("between", ["\n", " ", ""])
def test_a_plain_text_without_paragraphs_becomes_pages_too(between, here):
    sentences = [f"Sentence {i} says nothing."[: None if between else 8] for i in range(4000)]
    (here / "log.txt").write_text(between.join(sentences))
    _, pages = examples.read(here / "log.txt", "sft", "error")
    assert 10 <= len(pages) <= 60 and max(map(len, pages)) < 20_000
    assert between.join(pages) == between.join(sentences)


def test_a_text_with_a_delimiter_is_a_table(here):
    (here / "data.txt").write_text("prompt;response\nWhy?;So.\n")
    kind, found = examples.read(here / "data.txt", "sft", "error", examples.Format(delimiter=";"))
    assert kind == "response" and found[0][1]["content"] == "So."


@pytest.mark.parametrize(
    ("flags", "objective", "says"),
    [
        ({}, "dpo", "give --data too"),
        ({"test_data": Path("a.jsonl")}, "sft", "--test-data has no effect without a file"),
        (
            {"data": "a.jsonl", "test_data": Path("b.jsonl"), "test_split": 0.3},
            "sft",
            "--test-split has no effect with",
        ),
        ({"data": "topics", "on_bad_row": "skip"}, "sft", "--on-bad-row has no effect"),
        ({"data": "topics", "form": examples.Format(encoding="cp1252")}, "sft", "--encoding: has no effect"),
        ({"data": "a.jsonl", "form": examples.Format(delimiter=";")}, "sft", "--delimiter ;: has no effect on a.jsonl"),
    ],
)
def test_flags_that_contradict(flags, objective, says):
    with pytest.raises(UsageError, match=says):
        examples.check(examples.DataFlags(**flags), objective)


def test_texts_of_python():
    pages = python_texts.read_topics()
    assert len(pages) > 50 and any('The "assert" statement' in page for page in pages)


# ------------------------------------------------------------------------------------------------ what is learnt


def test_answers_alone_are_learnt():
    answer = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    lines, *_ = tokens.encode([answer], "lines", Letters([1]), 99)
    assert Letters().decode(lines.ids[0]) == "Why?\nSo." and learnt(lines) == "So.|"
    chat, *_ = tokens.encode([answer], "chat", Letters([1]), 99)
    assert Letters().decode(chat.ids[0]) == "<user:Why?><assistant:So.>" and learnt(chat) == "So.>"
    for template in ("lines", "roles"):
        talk, *_ = tokens.encode([CHAT], template, Letters(), 999)
        assert learnt(talk) == "4|6|"
    talk, *_ = tokens.encode([CHAT], "chat", Letters(), 999)
    assert learnt(talk) == "4>6>"
    assert tokens.prompt_tokens(answer[:1], "lines", Letters([1])) == [1, *map(ord, "Why?\n")]
    assert tokens.prompt_tokens(answer[:1], "chat", Letters([1])) == [*map(ord, "<user:Why?><assistant:")]


def test_each_token_of_a_long_text_is_predicted_once():
    text = "abcdefghijk"
    encoded, cut, _ = tokens.encode([text], "none", Letters([1]), 4)
    assert "".join(Letters().decode(ids[1:]) for ids in encoded.ids) == text and not cut
    assert max(len(ids) for ids in encoded.ids) == 5


def test_long_answers_are_cut_and_long_prompts_left_out():
    rows = [("p", "a" * 9, "b"), ("p" * 9, "a", "b")]
    encoded, cut, owners = tokens.encode(rows, "lines", Letters(), 6)
    assert cut == 2 and owners == [0, 0] and [learnt(encoded, i) for i in (0, 1)] == ["aaaaa", "b|"]


@pytest.mark.parametrize("template", ["chat", "roles", "lines"])
@pytest.mark.parametrize("chat", [CHAT, CHAT[1:3], CHAT[1:4], CHAT[2:]])
def test_an_answer_is_learnt_behind_what_is_asked_for_it(template, chat):
    model = Letters([1])
    encoded, *_ = tokens.encode([chat], template, model, 999)
    asked, answer = tokens.ask(chat, template, model)
    last = max(i for i, message in enumerate(chat) if message["role"] == "assistant")
    assert encoded.ids[0][: len(asked)].tolist() == asked and answer == chat[last]["content"]
    assert model.decode(encoded.ids[0][len(asked) :]).startswith(answer) and encoded.learnt[0][len(asked) :].all()
    if not any(message["role"] == "assistant" for message in chat[:last]):
        assert tokens.prompt_tokens(chat[:last], template, model) == asked


def test_what_a_chat_template_refuses_is_named():
    class Strict(Letters):
        def render(self, messages, answer):
            raise DataError("the chat template of the model: no system message")

    with pytest.raises(DataError, match=r"the example that begins with 'Be brief\.': the chat template"):
        tokens.encode([CHAT], "chat", Strict(), 99)


@pytest.mark.parametrize(
    ("template", "kind", "has", "found"),
    [
        ("auto", "text", True, "none"),
        ("auto", "chat", True, "chat"),
        ("auto", "response", False, "lines"),
        ("auto", "preference", False, "lines"),
        ("auto", "chat", False, "roles"),
        ("roles", "response", True, "roles"),
        ("lines", "response", True, "lines"),
        ("chat", "chat", False, "no chat template"),
        ("lines", "text", True, "take none"),
        ("none", "chat", True, "take chat, roles or lines"),
    ],
)
def test_templates(template, kind, has, found):
    if " " in found:
        with pytest.raises(UsageError, match=found):
            tokens.choose_template(template, kind, Letters(has_template=has))
    else:
        assert tokens.choose_template(template, kind, Letters(has_template=has)) == found


def test_rows_hold_every_text_once():
    sizes = [int(n) for n in np.random.default_rng(0).integers(1, 33, 200)]
    rows = tokens.pack(sizes, 32)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(sizes[i] for i in row) for row in rows) <= 32
    assert len(rows) <= 1.05 * sum(sizes) / 32 + 1


def test_what_a_row_holds():
    encoded, *_ = tokens.encode(["ab", "c"], "none", Letters([1]), 8)
    inputs, weights = tokens.fill(encoded, [[0, 1]], 8)
    assert inputs["token_ids"][0].tolist() == [1, 97, 98, 1, 99, 0, 0, 0]
    assert inputs["targets"][0].tolist() == [97, 98, 0, 99, 0, 0, 0, 0]
    assert inputs["documents"][0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert weights[0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
