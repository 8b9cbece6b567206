"""Writes docs/board.md from the figures in kopt/board, which `kopt bench` makes."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kopt import board, catalogue

PAGE = pathlib.Path(__file__).parent / "board.md"
AGAIN = board.reader.FOLDER / "again"
"""Rows of some rules with other seeds."""


def page() -> str:
    """Returns the page."""
    rows, problems = board.rows(), board.problems()
    order = sorted(rows.values(), key=lambda row: (-row.passed, row.rule))
    hours = sum(row.seconds for row in order) / 3600
    return "\n\n".join(
        [
            INTRODUCTION.format(rules=len(rows), problems=len(problems), hours=f"{hours:.1f}"),
            _rules(order, problems),
            "\n\n".join(part for part in (_left_out(), missing()) if part),
            _noise(rows),
            PROBLEMS,
            _problems(order, problems),
            *_tasks(),
            LIMITS,
        ]
    )


INTRODUCTION = """# The board: rules on forty problems

<!-- made by `python docs/generate.py` from kopt/board -->

    kopt bench                  # all that follows, in saved_models/bench; the same command goes on where it ended
    kopt bench --rule lion      # one row anew, and how it differs from the one here
    kopt bench --check          # whether all rows are there, and of these problems

{rules} rules, each on {problems} small problems that it passes or fails, took {hours} hours on two cores, most of
which other programs used. Each problem asks for one thing: to leave a saddle, to bear heavy tails, to learn rows that
are seldom read. Each rule has the same budget: on each problem it may try seven learning rates, its own times
1/16, 1/4, 1, 4, 16, 64 and 256, one run each. The best of them is run with three other seeds, that is, other first
weights and other noise. It passes if two of the three end at or below the threshold. All other arguments are the
defaults (GaLore and APOLLO: rank 2, because the kernels here are small). Rules that average are judged at the average,
full-batch rules at their last accepted point.

In Python: `kopt.board.row("lion").passed`; [`kopt/board/reader.py`](../kopt/board/reader.py) describes the files.

![Which rule passes which problem](board.png)

## Rules by family of problems"""

PROBLEMS = """## Problems

An error at or below "to pass" passes. The last column says how many rules pass. Their code is in
[`recipes/bench/vectors.py`](../recipes/bench/vectors.py) and
[`recipes/bench/networks.py`](../recipes/bench/networks.py). The thresholds were set after the first rules had run, so
that problems tell rules apart; the rows hold the errors, so that others can be set without a new run."""

TASKS = """## Twelve rules on five tasks

    kopt bench --part tasks

The recipe `compare` trains each rule with {trials} rates, drawn log-uniformly from its own rate times {low:.2g} to
{high:.3g}, and the best trial with {seeds} other seeds. Time is that to the target of the task, in steps and in seconds
of training without the compilation. The profile of a rule is the share of tasks that it solves within a multiple of the
fastest rule's time (Dolan and Moré, 2002); its score is the area below the profile from 1 to {longest:g}, as AlgoPerf
has it (Dahl et al., 2023). All together took {hours:.1f} hours on one core.

![Performance profiles](board-profiles.png)"""

UNTRIED = """## Twelve rules on five tasks

Not run yet. `kopt bench --part tasks` has the recipe `compare` train twelve rules on five tasks, and draws performance
profiles of the times to the targets."""

LIMITS = """## What the board does not say

- The problems are small, and their steps few: 200 to 500. A rule that is built for long trainings or wide matrices (the
  schedules of AdEMAMix, the low ranks of GaLore) cannot show here what it is for.
- Rates are constant within a run. A rule whose steps do not shrink with the gradient, as Lion's and all by sign, ends
  as far from a minimum as its step is long; with a schedule that falls it would come closer.
- One number, problems passed, weighs all families alike. Choose by the families that your model has.
- Seven rates are a coarse grid. A rule that fails may pass with a rate between two of them, with a schedule, or with
  other arguments.
- Full-batch rules (BGD, L-BFGS) compare whole losses: where each step sees other noise or other examples they cannot do
  what they are for.
"""


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]], numbers: int = 1) -> str:
    """Returns Markdown; the columns from number `numbers` on are aligned to the right."""
    rule = ["---" if i < numbers else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, rule, *lines))


def _rules(order: Sequence[board.Row], problems: Mapping[str, board.Problem]) -> str:
    families = list(dict.fromkeys(problem.family for problem in problems.values()))
    lines = []
    for row in order:
        found = row.by_family()
        rates = sum(verdict.rates_passed for verdict in row.verdicts.values())
        cells = [found[family][0] for family in families]
        lines.append([f"`{row.class_name}`", row.passed, *cells, rates, f"{row.seconds:.0f}"])
    each = next(iter(order)).by_family() if order else {}
    head = ["rule", "passed", *(f"{family} ({each[family][1]})" for family in families if each), "rates", "seconds"]
    return (
        _table(head, lines)
        + "\n\nRates: of all pairs of a problem and one of the seven rates, those that pass: the higher, the less a "
        "rate has to be right."
    )


def _left_out() -> str:
    return "\n".join(f"Without a row: `{name}`: {why}." for name, why in board.left_out().items())


def missing() -> str:
    """Returns a sentence on the rules whose rows have not been made, if there are any."""
    known = {*board.rows(), *board.left_out()}
    names = [f"`{cls.__name__}`" for name, cls in catalogue.classes("optimizer").items() if name not in known]
    return f"Not run yet: {', '.join(names)}. `kopt bench --part problems` goes on with them." if names else ""


def _noise(rows: Mapping[str, board.Row]) -> str:
    again = board.rows(AGAIN)
    close = sum(v.is_close for row in rows.values() for v in row.verdicts.values())
    count = sum(len(row.verdicts) for row in rows.values())
    lines = []
    for name, row in again.items():
        before = rows[name].verdicts
        changed = [problem for problem, v in row.verdicts.items() if v.passed != before[problem].passed]
        sums = f"{rows[name].passed}, {row.passed}"
        lines.append([f"`{row.class_name}`", sums, ", ".join(changed) or "none"])
    text = f"""## Noise

A run repeats: the same seeds give the same verdicts on the same machine and versions. Other machines round otherwise,
and other seeds are other runs. The seeds disagree with each other in {close} of {count} cells: these are the ones that
may change. `kopt bench --rule lion` says of each verdict that differs whether it is within this noise, or beyond it."""
    if lines:
        table = _table(["rule", "passed here, with other seeds", "problems with another verdict"], lines, 3)
        text += f"\nThe same rule with other seeds (`kopt bench --rule lion --part problems --seed 100`):\n\n{table}"
    return text


def _problems(order: Sequence[board.Row], problems: Mapping[str, board.Problem]) -> str:
    lines = [
        [p.family, name, p.why, f"{p.threshold:g}", p.steps, sum(row.verdicts[name].passed for row in order)]
        for name, p in problems.items()
    ]
    return _table(["family", "problem", "what it is", "to pass", "steps", f"pass, of {len(order)}"], lines, 3)


def _tasks() -> list[str]:
    facts, results = board.reader.facts_of_tasks(), board.tasks()
    if not results:
        return [UNTRIED]
    first = next(iter(facts.values()))
    span, trials, seeds = first["span"] ** 0.5, first["trials"], first["seeds"]
    hours = sum(found["minutes"] for found in facts.values()) / 60
    text = TASKS.format(trials=trials, seeds=seeds, low=1 / span, high=span, longest=board.reader.LONGEST, hours=hours)
    rules = list(dict.fromkeys(rule for found in results.values() for rule in found))
    scores = {r: [board.score(board.profile(results, r, by)) for by in ("steps", "seconds")] for r in rules}
    lines = [
        [f"`{rule}`", *(f"{x:.2f}" for x in scores[rule]), *(_steps(found.get(rule)) for found in results.values())]
        for rule in sorted(rules, key=lambda rule: -scores[rule][0])
    ]
    table = _table(["rule", "score, steps", "score, seconds", *(f"{t}: steps" for t in results)], lines)
    listed = [
        [name, f["about"], f"{f['metric']} {f['target']:g}", f["steps"], f["batch_size"]] for name, f in facts.items()
    ]
    return [text, table, _table(["task", "data and model", "target on the test set", "steps", "batch"], listed, 3)]


def _steps(result: board.TaskResult | None) -> str:
    if result is None:
        return "not run"
    return "fails" if not result.solved or result.steps is None else f"{result.steps:.0f}"
