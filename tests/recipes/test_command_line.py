"""What all recipes have in common on the command line: quick help, bounds of numbers, their name in a wheel."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Annotated

import pytest
import tyro

import recipes
from recipes import generation, mnist, recommendation, text_classification
from recipes.run import signals
from recipes.run.command_line import _exit_code, parse, program
from recipes.run.errors import UsageError
from recipes.run.flags import Count, CountOrZero, Fraction, NonNegative, OpenFraction, OptionalPositive, Range

NAMES = ("generation", "mnist", "recommendation", "text_classification")


@dataclasses.dataclass(frozen=True)
class Inner:
    """Flags in flags."""

    positive: OptionalPositive = None
    zero: CountOrZero = 0
    many: tyro.conf.UseAppendAction[tuple[Count, ...]] = ()


@dataclasses.dataclass(frozen=True)
class Train:
    """Flags of every kind."""

    count: Count = 1
    fraction: Fraction = 0.0
    open_fraction: OpenFraction = 0.5
    amount: NonNegative = 0.0
    three: Annotated[int, Range(3)] = 3
    inner: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--count 0", "--count 0: expected at least 1."),
        ("--fraction 1", "--fraction 1.0: expected 0 or more and less than 1."),
        ("--fraction=-0.1", "--fraction -0.1: expected 0 or more and less than 1."),
        ("--open-fraction 0", "--open-fraction 0.0: expected more than 0 and less than 1."),
        ("--amount=-1", "--amount -1.0: expected at least 0."),
        ("--amount nan", "--amount nan: expected a finite number."),
        ("--amount inf", "--amount inf: expected a finite number."),
        ("--three 2", "--three 2: expected at least 3."),
        ("--positive 0", "--positive 0.0: expected more than 0."),
        ("--zero=-1", "--zero -1: expected at least 0."),
        ("--many 2 --many 0", "--many 0: expected at least 1."),
    ],
)
def test_numbers_out_of_bounds(flags, says):
    with pytest.raises(UsageError) as error:
        parse(flags.split(), {"train": Train}, "x")
    assert str(error.value) == says


def test_numbers_at_their_bounds():
    found = parse(
        ["--fraction", "0", "--amount", "0", "--zero", "0", "--many", "1", "--many", "7", "--positive", "1e-9"],
        {"train": Train},
        "x",
    )
    assert found.inner == Inner(1e-9, 0, (1, 7))


@pytest.mark.parametrize("recipe", [generation, mnist, recommendation, text_classification])
def test_defaults_are_within_their_bounds(recipe):
    assert parse([], {"train": recipe.Train}, "x") == recipe.Train()
    assert callable(recipe.main)


def run_help(name, folder):
    """Returns the help of a recipe, called by its module name, which must not import Keras."""
    code = (
        f"import sys, runpy\nsys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({name!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'keras', 'tensorflow', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_help_needs_no_keras_and_names_the_command(name):
    assert program(name) == f"python -m recipes.{name}"
    assert f"usage: python -m recipes.{name} " in run_help(f"recipes.{name}", Path(recipes.__file__).parents[1])


def test_help_names_the_command_in_a_wheel(tmp_path):
    (tmp_path / "kopt").mkdir()
    (tmp_path / "kopt" / "__init__.py").touch()
    shutil.copytree(Path(recipes.__file__).parent, tmp_path / "kopt" / "recipes")
    for name in NAMES:
        assert f"usage: kopt {name.replace('_', '-')} " in run_help(f"kopt.recipes.{name}", tmp_path)


def test_a_reader_that_has_seen_enough(monkeypatch, capfd):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert _exit_code(lambda: print("a line") or 0) == 141
        print("more")  # Python itself would fail at its end
        pipe.flush()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("early", [False, True])
def test_a_signal_that_is_swallowed_comes_again(early, monkeypatch, capfd):
    class Thing:
        pass

    def run():
        thing = Thing()
        watched = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        del thing  # an exception in this callback is ignored
        assert watched() is None
        time.sleep(20)
        return 0

    def ask(repeater, number):
        patch.undo()
        signal.raise_signal(number)  # while Python would ignore it once more

    with monkeypatch.context() as patch:
        if early:
            patch.setattr(signals._Repeater, "ask", ask)
        assert _exit_code(run) == 143
    assert capfd.readouterr().err == "interrupted: nothing was saved.\n"


def test_signals_when_all_is_said(monkeypatch, capfd):
    class Left:
        def __str__(self):
            signal.raise_signal(signal.SIGHUP)

    def run():
        raise signals.Interrupted(signal.SIGTERM, Left())

    assert _exit_code(run) == 129
    close = signals._Repeater.close
    monkeypatch.setattr(signals._Repeater, "close", lambda self: signal.raise_signal(signal.SIGTERM) or close(self))
    assert _exit_code(lambda: 0) == 0
    assert capfd.readouterr().err == ""
