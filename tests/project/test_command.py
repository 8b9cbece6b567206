"""The command `kopt`: recipes, tables, all about one class, errors, and what it imports when."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import types

import pytest
from problems import rules

import kopt
from kopt import catalogue, peft
from kopt.__main__ import INSIDE, load, main, recipes
from kopt.start import filtered_stderr, is_command

ROOT = pathlib.Path(kopt.__file__).parents[1]
CLASSES = [cls for family in catalogue.FAMILIES for cls in catalogue.classes(family).values()]


def ended(*argv):
    """Runs the command and returns its exit code, however it comes."""
    try:
        return main(argv)
    except SystemExit as end:
        return end.code or 0


def python(*arguments, cwd=ROOT, **variables):
    """Starts Python with kopt from here, and returns what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    env |= {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True)


# ------------------------------------------------------------------------------------------------- how it begins


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("python -m kopt mnist", True),
        ("python -P -X dev -m recipes.mnist --epochs 3", True),
        ("python -Werror /usr/bin/kopt optimizers", True),
        ("python /home/me/recipes/compare/__main__.py --processes 2", True),
        ("python /home/me/compare/__main__.py", False),
        ("python train.py -m kopt", False),
        ("python -m pytest -k kopt", False),
        ("python -c pass", False),
        ("python -m", False),
        ("python", False),
    ],
)
def test_which_process_is_a_command(words, found):
    assert is_command(words.split()) is found


def test_notes_of_native_code_are_held_back_and_other_lines_are_not(capfd):
    with filtered_stderr():
        os.write(2, b"I0000 port.cc:153] oneDNN custom operations are on.\nthe disk is full\n")
    assert capfd.readouterr().err == "the disk is full\n"


def test_a_command_prints_nothing_but_its_own():
    done = python("-m", "kopt", "schedules")
    assert done.returncode == 0 and not done.stderr


@pytest.mark.slow
def test_nor_do_the_processes_that_a_command_starts(tmp_path):
    words = "--task test-functions --optimizers adamw --trials 1 --seeds 1 --steps 10 --processes 2 --output-dir"
    done = python("-m", "recipes.compare", *words.split(), str(tmp_path / "out"))
    assert done.returncode == 0 and not done.stderr


# ------------------------------------------------------------------------------------------------- what there is


def test_version_and_help(capsys):
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"kopt {kopt.__version__}\n"
    assert ended("--help") == 0
    page = capsys.readouterr().out
    tables = ("optimizers", "adapters", "schedules", "info", "recommend")
    for word in ("mnist", "recommendation", "text-classification", *tables):
        assert f"  {word} " in page


def test_without_a_command_the_help_goes_to_stderr(capsys):
    assert ended() == 2
    out, err = capsys.readouterr()
    assert not out and "usage: kopt" in err


@pytest.mark.parametrize("argv", [["mnst"], ["info"], ["optimizers", "--jsn"], ["--flag"]])
def test_usage_errors(argv, capsys):
    assert ended(*argv) == 2
    out, err = capsys.readouterr()
    assert not out and "error: " in err


def test_table_of_optimizers(capsys):
    assert ended("optimizers") == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "slots", "bytes/parameter", "row-wise", "about"]
    assert [line.split()[0] for line in lines] == list(rules())
    (sgd,) = [line for line in lines if line.startswith("SGD ")]
    assert sgd.split(maxsplit=4) == ["SGD", "none", "0", "yes", "Stochastic gradient descent"]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("optimizers", rules()),
        ("adapters", {cls.__name__ for cls in peft.adapters().values()}),
        ("schedules", {name for name in vars(kopt.schedules) if name[0].isupper()}),
    ],
)
def test_tables_as_json(command, names, capsys):
    assert ended(command, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    found = {row["name"] for row in rows}
    assert found == set(names), f"registered and not exported, or the reverse: {sorted(found ^ set(names))}"
    assert all(row["about"] and row["reference"] for row in rows)


def test_lines_end_where_the_terminal_does():
    rows = catalogue.optimizers()
    lines = catalogue.as_text(rows, 80).splitlines()
    assert max(map(len, lines)) == 80 and any(line.endswith("…") for line in lines)
    assert len(lines) == len(rows) + 1


def test_bytes_in_the_json_are_those_of_the_slots(capsys):
    ended("optimizers", "--json")
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["AdamW"]["bytes_per_parameter"] == 8 and found["AdamW"]["slots"] == ["m", "v"]
    assert found["SGD"]["bytes_per_parameter"] == 0 and found["AdamW"]["row_wise"] is True


# ------------------------------------------------------------------------------------------------- one of them


def test_info(capsys):
    assert ended("info", "adabound") == 0
    page = capsys.readouterr().out
    for part in (
        "kopt.AdaBound, an optimizer",
        "8 bytes for each float32 parameter",
        "    m ← β₁ m + (1-β₁) g\n",
        "Slots: m, v and n with ams_bound",
        "    beta_1: number in [0, 1) = 0.9\n        β₁ in [0, 1), memory of the gradient.\n",
        "    ams_bound: True or False = False\n",
        "    base_learning_rate: number in (0, inf) or None = None\n",
        "    learning_rate = 0.001\n",
        "Arguments of every optimizer:",
        "Reference: Luo, Xiong, Liu and Sun, 2019, arXiv:1902.09843.",
    ):
        assert part in page, part


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_info_of_each(cls):
    page = catalogue.info(cls.__name__.upper())
    assert "Reference: " in page and "\n\n\n" not in page
    arguments = page.partition("\nArguments")[2]
    for name in cls.fields:
        assert arguments.count(f"\n    {name}: ") + arguments.count(f"\n    {name} = ") == 1, name
    assert "Annotated" not in page and "typing" not in page


def test_the_equations_that_a_rule_builds_on_stand_beside_its_own():
    assert "About `Averaging`:" in catalogue.info("schedulefreeadamw")
    assert "About `Adam`:" in catalogue.info("AdamW")
    assert "About" not in catalogue.info("Adam")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adabond", "Did you mean AdaBound"),
        ("warmupcosin", "WarmupCosine"),
        ("qqqqq", "list the names"),
        ("_warmup", ""),
    ],
)
def test_unknown_names(name, hint, capsys):
    assert ended("info", name) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and repr(name) in err and hint in err


# ------------------------------------------------------------------------------------------------- recipes


def test_every_recipe_is_found():
    named = {"bench", "compare", "generation", "images", "mnist", "recommendation", "text_classification", "tune"}
    assert set(recipes()) == named
    assert all(recipes().values())


@pytest.mark.parametrize("name", ["mnist", "recommendation", "text-classification", "text_classification"])
def test_recipes_answer(name, capsys):
    assert ended(name, "--help") == 0
    assert "--epochs" in capsys.readouterr().out
    assert ended(name, "--no-such-flag") == 2


def test_the_exit_code_is_that_of_the_recipe(tmp_path, capsys):
    assert ended("mnist", "evaluate", "--model", str(tmp_path / "none")) == 3
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("mnist", "recipes"),
        ("recommendation", "recipes,recommendation"),
        ("text-classification", "recipes,text"),
        ("generation", "recipes,generation"),
        ("tune", "recipes,tune"),
    ],
)
def test_a_package_that_a_recipe_needs_is_named(name, extras, monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'tyro'", name="tyro")

    monkeypatch.setattr("kopt.__main__.load", missing)
    assert ended(name) == 1
    assert capsys.readouterr().err == f'error: this recipe needs tyro: pip install "keras-kopt[{extras}]"\n'
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(optional)


def test_a_fault_in_a_recipe_is_not_called_a_missing_package(monkeypatch):
    def faulty(name):
        raise ModuleNotFoundError("No module named 'kopt.recipes.gone'", name="kopt.recipes.gone")

    monkeypatch.setattr("kopt.__main__.load", faulty)
    with pytest.raises(ModuleNotFoundError, match="gone"):
        main(["mnist"])


def test_in_a_clone_the_recipes_beside_kopt_are_taken():
    assert not INSIDE.exists()
    recipe = load("mnist")
    assert recipe.__name__ == "recipes.mnist" and pathlib.Path(recipe.__file__) == ROOT / "recipes" / "mnist.py"


@pytest.mark.slow
def test_inside_of_kopt_they_come_first(tmp_path):
    for folder in ("kopt", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / ("kopt/recipes" if folder == "recipes" else folder))
    done = python("-m", "kopt", "mnist", "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and "usage: kopt mnist" in done.stdout, done.stderr


def test_strangers_that_have_been_imported_are_named(monkeypatch):
    stranger = types.ModuleType("recipes")
    stranger.__file__ = "elsewhere/recipes/__init__.py"
    monkeypatch.setitem(sys.modules, "recipes", stranger)
    with pytest.raises(ImportError, match=r"elsewhere.recipes.__init__\.py was imported"):
        load("mnist")


@pytest.mark.slow
def test_a_strangers_recipes_are_not_taken(tmp_path):
    package = tmp_path / "recipes"
    package.mkdir()
    for name in ("__init__", "mnist"):
        (package / f"{name}.py").write_text("raise RuntimeError('a stranger')\n")
    done = python("-m", "kopt", "mnist", "--help", cwd=tmp_path)
    assert done.returncode == 0 and "--epochs" in done.stdout, done.stderr


@pytest.mark.slow
def test_recipes_are_imported_when_one_is_run():
    program = """
import sys
from kopt.__main__ import main
main(["optimizers"])
assert not {"tyro", "yaml"} & set(sys.modules) and not [name for name in sys.modules if "recipes" in name]
"""
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_closed_pipe_is_quiet():
    program = "import sys; from kopt.__main__ import main; sys.exit(main(['optimizers']))"
    read, write = os.pipe()
    os.close(read)
    env = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 141
    assert "BrokenPipe" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_greek_letters_there_are_question_marks():
    done = python("-m", "kopt", "info", "lion", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "m ? " in done.stdout, done.stderr
