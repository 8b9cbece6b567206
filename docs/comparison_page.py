"""Writes docs/comparison.md from docs/comparison-*.json, what `kopt compare` has found on MNIST."""

import json
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

from recipes.compare import protocol, results

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER / "comparison.md"
TEXT = """# Optimizers on MNIST

<!-- made by `python docs/generate.py` from docs/comparison-*.json: `metrics.json` of `kopt compare` -->

A dense model 784-256-10 of 203,530 weights learns the 60,000 digits of MNIST in batches of {batch}. For each optimizer
{trials} learning rates are tried, between its own times 1/{edge:.3g} and {edge:.3g}, at the same places for all;
nothing else is tuned. The best one is judged with seeds that have not chosen it. Those that begin with `keras.` are
Keras' own. Seconds are those of training alone, on one thread of a CPU, two runs at a time.

## Twenty, {many_steps:,} steps

{many_command}

{many}

Steps and seconds are those to an accuracy of {many_target:g}, means of three seeds. p: the probability of such a lead
over `{base}`, in steps, without a true one (one-sided z-test). The seconds of `muon` and `soap` are those of a model so
small that its own products cost no more than theirs.

![Test accuracy over steps and seconds](comparison-curves.png)

How much a wrong rate costs: what the trials end with.

![Last test accuracy over the learning rate](comparison-sensitivity.png)

![Steps and seconds to the target](comparison-times.png)

`tensorboard --logdir FOLDER/logs` has the curves of all runs, and a line of HParams for each:

![The runs in TensorBoard](comparison-tensorboard.png)

## {percent:g} % as soon as possible

The first of that table against the optimizers of Keras. A rate is chosen by the mean of three seeds, seeds 0 to 2, and
judged with seeds 3 to 7, at most {best_steps:,} steps each.

{best_command}

{best}

{verdict}

Most of these are held back by a rate that never falls, which Schedule-Free does without. So they had a second chance,
and some of kopt beside them, with a rate that falls to 0 by a cosine within {cosine_steps:,} steps, a number that has
to be known beforehand:

{cosine_command}

{cosine}

{second}

So the lead is that of a rule that needs no schedule over rules that lack one. With a fall of the right length the plain
rules are as good, and those of kopt are where their namesakes in Keras are.
"""


def read(name: str) -> dict[str, Any]:
    """Returns the metrics of a comparison."""
    found: dict[str, Any] = json.loads((FOLDER / f"comparison-{name}.json").read_text(encoding="utf-8"))
    return found


def page() -> str:
    """Returns the page."""
    many, best, cosine = read("many"), read("best"), read("cosine")
    judged = f"--target {best['target']:g} --trial-seeds 3 --seeds 5"
    return TEXT.format(
        batch=many["batch_size"],
        trials=many["trials"],
        edge=many["span"] ** 0.5,
        base=next(row["optimizer"] for row in many["rows"] if row["p"] is None),
        many_steps=many["steps"],
        many_target=many["target"],
        many_command=_command(many, ""),
        many=results.table(many["rows"], many["metric"]),
        percent=100 * best["target"],
        best_steps=best["steps"],
        best_command=_command(best, f"{judged} --steps {best['steps']}"),
        best=results.table(best["rows"], best["metric"]),
        verdict=_verdict(best["rows"][0], best["rows"][1:]),
        cosine_steps=cosine["steps"],
        cosine_command=_command(cosine, f"{judged} --lr-schedule cosine"),
        cosine=results.table(cosine["rows"], cosine["metric"]),
        second=_verdict(best["rows"][0], cosine["rows"]),
    )


def _command(found: Mapping[str, Any], flags: str) -> str:
    """Returns a command as a block; of its optimizers the one that others are compared with is first."""
    names = [row["optimizer"] for row in sorted(found["rows"], key=lambda row: row["p"] is not None)]
    first = " ".join(filter(None, ["kopt compare --task mnist --data mnist.npz --processes 2", flags]))
    listed = textwrap.wrap(", ".join(names), 100, break_long_words=False, break_on_hyphens=False)
    return "    " + "\n        ".join([f"{first} \\", f'--optimizers "{listed[0]}', *listed[1:]]) + '"'


def _verdict(ours: Mapping[str, Any], theirs: list[Mapping[str, Any]]) -> str:
    """Returns how an optimizer fares beside the best of Keras' in steps and in seconds."""
    whole = [row for row in theirs if row["optimizer"].startswith("keras.") and row["reached"] == row["seeds"]]
    fewest, soonest = (min(whole, key=lambda row: row[by]) for by in ("steps", "seconds"))
    p = protocol.p_value(ours["steps_of_seeds"], fewest["steps_of_seeds"])
    text = (
        f"Of Keras' optimizers that always arrive, `{fewest['optimizer']}` has the fewest steps and "
        f"`{soonest['optimizer']}` the fewest seconds. `{ours['optimizer']}` takes "
        f"{ours['steps'] / fewest['steps']:.2f} of these steps (p {'< 1e-9' if p < 1e-9 else f'= {p:.1g}'}) and "
        f"{ours['seconds'] / soonest['seconds']:.2f} of these seconds."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False)
