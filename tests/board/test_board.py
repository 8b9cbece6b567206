"""The committed board: a row for every rule, of the problems that there are, and what is computed from it."""

import math

import board_page
import pytest

import kopt
from kopt import board, catalogue
from recipes.bench import recipe, rows, tasks
from recipes.bench.thresholds import THRESHOLDS


def test_rows_are_of_these_problems_and_what_has_none_is_told():
    known, protocol = board.rows(), rows.protocol(recipe._listed())
    advice = "Run `python -m recipes.bench --part problems --output-dir kopt/board`, then `python docs/generate.py`."
    assert {row.protocol for row in known.values()} == {protocol} == {board.protocol()}, advice
    assert {name: problem.threshold for name, problem in board.problems().items()} == THRESHOLDS, advice
    for name, row in known.items():
        assert list(row.verdicts) == list(board.problems()) and row.class_name == kopt.registry()[name].__name__
        assert row.own_rate == rows.own_rate(kopt.registry()[name])
    for name, cls in catalogue.classes("optimizer").items():
        told = name in board.left_out() or f"`{cls.__name__}`" in board_page.missing()
        assert (name in known) != told, advice


def test_a_row_is_told_with_the_rule():
    row = board.row("Lion")
    assert f"Passes {row.passed} of 40 small problems" in catalogue.info("lion")
    assert sum(passed for passed, _ in row.by_family().values()) == row.passed
    assert board.row("madam") is None


def result(rule, steps, reached=2):
    return board.TaskResult(rule, 0.1, reached, 2, steps, 2 * steps, 0.5)


def test_profiles_are_those_of_dolan_and_more():
    results = {
        "one": {"a": result("a", 10.0), "b": result("b", 20.0)},
        "two": {"a": result("a", 30.0), "b": result("b", 10.0)},
        "three": {"a": result("a", 10.0), "b": result("b", 90.0, reached=1)},
        "four": {"a": result("a", 90.0, reached=0), "b": result("b", 90.0, reached=0)},
    }
    assert board.profile(results, "a") == [1.0, 3.0, 1.0, math.inf]
    assert board.profile(results, "b", "seconds") == [2.0, 1.0, math.inf, math.inf]
    assert board.score([1.0, 3.0, 1.0, math.inf]) == pytest.approx((1 + 1 / 3 + 1) / 4)
    assert board.score([1.0, 5.0]) == 0.5 and board.score([]) == 0
    assert board.score([1.5], longest=2.0) == 0.5


def test_tasks_are_those_of_the_twelve():
    for found in board.tasks().values():
        assert set(found) <= set(tasks.RULES)
