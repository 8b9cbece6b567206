"""The tables of choosing.md, from the rules of `kopt.recommend`: the page cannot say what that does not do."""

import re

from kopt.advice import ADDITIONS, SITUATIONS, SMALLER
from kopt.advice.parts import Alternative, Answer, Reason

SCHEDULES = {
    "WarmupCosine": "cosine",
    "WarmupLinear": "linear",
    "WarmupStableDecay": "constant",
    None: "constant",
}
"""What the fall of a schedule is called."""


def decision_table() -> str:
    """Returns the situations as Markdown, in the order in which they are looked at."""
    lines = ["| when | optimizer |", "|---|---|"]
    for number, row in enumerate(SITUATIONS, 1):
        when = "; ".join(condition.words for condition in row.when) or "none of the above"
        rules = f"`{row.answer.rule}`" + (f", tables `{row.answer.tables.rule}`" if row.answer.tables else "")
        lines.append(f"| {number}. **{row.name}**: {when} | {rules} |")
    return "\n".join([*lines, ""])


def explanations() -> str:
    """Returns as Markdown, for each situation, the answer with its rate, the reasons, and what else there is."""
    lines = list[str]()
    for number, row in enumerate(SITUATIONS, 1):
        lines.append(f"{number}. **{row.name}**: {answer_text(row.answer)}")
        reasons = map(_reason, row.reasons)
        lines += [f"    - {text}" for text in (*reasons, *(f"Or {other}" for other in _alternatives(row.alternatives)))]
    return "\n".join([*lines, ""])


def addition_table() -> str:
    """Returns what is added to any answer, and what takes the place of one that does not fit, as Markdown."""
    lines = ["| when | what | or |", "|---|---|---|"]
    for addition in ADDITIONS:
        cells = (addition.when.words, _reason(addition.reason), *_alternatives((addition.alternative,)))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| what does not fit within `memory_limit` gives way to | why |", "|---|---|"]
    for answer, reason in SMALLER:
        given = ", ".join(f"`{k}={v!r}`" for k, v in answer.items()) if not isinstance(answer, Answer) else ""
        text = f"the same rule with {given}" if given else answer_text(answer)
        lines.append(f"| {text} | {_reason(reason)} |")
    return "\n".join([*lines, ""])


def answer_text(answer: Answer) -> str:
    """Returns a rule with its arguments, its rate and its schedule in words."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in answer.arguments.items())
    text = f"`{answer.rule}({arguments})`" if arguments else f"`{answer.rule}`"
    if answer.rate is not None:
        warmup = f", {answer.warmup:.0%} warm-up" if answer.warmup else ""
        text += f": {answer.rate.words}{warmup}, {SCHEDULES[answer.schedule]}"
        text += f", {answer.fall:.0%} fall" if answer.fall else ""
    if answer.whole:
        text += "; the batches of an epoch are added up for one update"
    if answer.averaged:
        text += "; evaluated by `AveragedWeights`"
    return text if answer.tables is None else f"tables {answer_text(answer.tables)}; the rest {text}"


def linked(source: str) -> str:
    """Returns a source with links: papers, addresses, and pages of this repository."""
    parts = []
    for part in source.split("; "):
        name, comma, rest = part.partition(", ")
        if name.startswith("arXiv:"):
            text = f"[{name}](https://arxiv.org/abs/{name.removeprefix('arXiv:')})"
        elif name.startswith("doi:"):
            text = f"[{name}](https://doi.org/{name.removeprefix('doi:')})"
        elif name.startswith("https://"):
            text = f"[{name.removeprefix('https://').partition('/')[0]}]({name})"
        else:
            page = name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}"
            text = f"[{name.partition('#')[0]}]({page})"
        parts.append(text + comma + rest)
    return "; ".join(parts)


def _reason(reason: Reason) -> str:
    return f"{reason.text} {linked(reason.source)}"


def _alternatives(alternatives: tuple[Alternative, ...]) -> list[str]:
    return [
        f"`{other.code}`: {re.sub(r'arXiv:[0-9.]+[0-9]|[a-z]+/README.md#[a-z-]+', lambda m: linked(m[0]), other.when)}"
        for other in alternatives
    ]
