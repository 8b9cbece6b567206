"""The command `kopt recommend`."""

import argparse
import dataclasses
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from typing import Any, get_args

import keras

from kopt.advice.facts import Goal
from kopt.advice.recommend import Advice, recommend

DONE, USAGE, DATA = 0, 2, 3
"""Exit codes, those of the recipes."""


def main(argv: Sequence[str]) -> int:
    """Recommends an optimizer for the model of a file, prints why, and returns the exit code.

    Raises:
        SystemExit: `--help`, or an argument is unknown or malformed (code 2).
    """
    flags = vars(_parser().parse_args(argv))
    path, as_json = flags.pop("model"), flags.pop("json")
    try:
        model = _load(path)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, TypeError):  # it knows no class of the user's
            reason = f"classes of your own? Call kopt.recommend(model) in a program that has them. {reason[:300]}"
        print(f"error: --model {path}: {reason}", file=sys.stderr)
        return DATA
    try:
        advice = recommend(model, **flags)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    print(json.dumps(_plain(advice), indent=2, ensure_ascii=False) if as_json else advice)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kopt recommend",
        description="Recommends an optimizer, its rate and its schedule for a model, with reasons and their sources.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FILE.keras", help="model that Keras has saved; if compiled, with its loss")
    add("--batch-size", required=True, type=int, metavar="N", help="examples a step, of all workers together")
    add("--dataset-size", required=True, type=int, metavar="N", help="examples of the training set")
    add(
        "--budget",
        type=float,
        default=10.0,
        metavar="EPOCHS",
        help="epochs that the schedule is made for (default: 10)",
    )
    add("--goal", choices=get_args(Goal), default="fast", help="what counts most (default: fast)")
    add("--memory-limit", type=float, metavar="BYTES", help="for weights, gradients and state, as in 2e9")
    add("--pretrained", action="store_true", help="the weights were trained on other data before")
    add("--workers", type=int, default=1, metavar="N", help="processes that share each batch (default: 1)")
    add("--json", action="store_true", help="print JSON")
    return parser


def _load(path: str) -> Any:
    if not os.path.exists(path):
        raise FileNotFoundError("no such file")
    return keras.saving.load_model(path)


def _plain(advice: Advice) -> dict[str, Any]:
    """Returns what JSON can hold of an answer."""
    names = ("situation", "code", "usage", "updates", "total_bytes", "state_bytes")
    parts = {name: [vars(part) for part in getattr(advice, name)] for name in ("reasons", "alternatives")}
    return {name: getattr(advice, name) for name in names} | parts | {"facts": dataclasses.asdict(advice.facts)}
