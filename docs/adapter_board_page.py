"""Writes docs/board-adapters.md from the figures in kopt/board/adapters, which `kopt bench --part adapters` makes."""

import pathlib
from collections.abc import Sequence

from kopt import board
from recipes.bench import adapters

PAGE = pathlib.Path(__file__).parent / "board-adapters.md"
INTRODUCTION = """# The board of adapters

<!-- made by `python docs/generate.py` from kopt/board/adapters -->

    kopt bench --part adapters --data sst2     # the same command goes on where it ended
    kopt bench --part adapters --adapter-task sentences --method lora     # one row anew

Methods of fine-tuning under one small budget, each in a process of its own, one run a method with seed 0. The learning
rate is the one that the recipe has for the method. Of sentences, those of six methods were [chosen on validation
sets](../benchmarks/README.md#learning-rates-of-the-methods); the others nobody has tuned for this budget, and a method
with few parameters would often take a larger one. So the order says what the defaults give, not what a method can do;
with other seeds neighbours change places. Seconds were measured beside other work, and tell a long training from a
short one alone.

In Python: `kopt.board.adapters()["sentences"]["lora"]`; [`kopt/board/method_rows.py`](../kopt/board/method_rows.py)
describes the files, and [peft.md](peft.md) the methods."""
PICTURE = "![What each method reaches over the parameters that it trains](board-adapters.png)"
ABOUT = {
    "sentences": """MiniLM, 22.7 million parameters, learns in one epoch the sentiment of 2,000 phrases of SST-2, in
batches of 16 of at most 64 tokens; the accuracy is that on the 872 sentences of its development set. Trained are an
adapter and the head, the head alone, or everything. Without `--data` the texts are those that the recipe has in a
package.""",
    "language": """SmolLM2, 135 million parameters, learns pages of Python's language reference for 40 steps of 4 rows
of 256 tokens; the perplexity is that of pages held out.""",
}
HEAD = "| method | {metric} | trained parameters | file, kB | peak memory, MB | seconds | learning rate |"


def page() -> str:
    """Returns the page."""
    found = board.adapters()
    parts = [INTRODUCTION, *([PICTURE] if found else [])]
    for name, task in adapters.TASKS.items():
        parts.append(f"## {name.capitalize()}\n\n{ABOUT[name]}")
        if name in found:
            parts.append(_table(adapters.best_first(name, found[name])))
        if missing := [method for method in task.methods if method not in found.get(name, {})]:
            parts.append(
                f"Not measured yet: {', '.join(f'`{method}`' for method in missing)}. "
                f"`kopt bench --part adapters --adapter-task {name}` goes on with them."
            )
    return "\n\n".join(parts) + "\n"


def _table(order: Sequence[board.MethodResult]) -> str:
    lines = [HEAD.format(metric=order[0].metric), "|---|---:|---:|---:|---:|---:|---:|"]
    for row in order:
        size = "the model" if row.file_bytes is None else f"{row.file_bytes / 1e3:,.0f}"
        memory = "unknown" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.0f}"
        cells = [
            f"`{row.method}`",
            f"{row.value:.4f}",
            f"{row.trained_parameters:,}",
            size,
            memory,
            f"{row.seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} | {row.learning_rate:g} |")
    if order[0].before is not None:
        lines += ["", f"Before the training: {order[0].before:.4f}."]
    return "\n".join(lines)
