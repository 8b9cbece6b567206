"""The command `kopt`: runs the recipes, and says what there is.

kopt mnist --epochs 3
kopt optimizers
kopt info adabound
kopt launch --workers 2 mnist --epochs 3
kopt recommend --model model.keras --batch-size 64 --dataset-size 50000

This is the roof of the house: nothing imports it, and it alone of kopt knows of the recipes.
"""

import argparse
import ast
import importlib
import importlib.util
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import kopt
from kopt import catalogue

DONE, FAILED, USAGE, PIPE_CLOSED = 0, 1, 2, 141
"""Exit codes; those of a recipe are its own. The last one is what shells give for other programs."""
TABLES = {
    "optimizers": (catalogue.optimizers, "the optimizers: slots, bytes per parameter, whether row-wise"),
    "adapters": (catalogue.adapters, "the adapters: whether they merge, their file in Hugging Face peft"),
    "schedules": (catalogue.schedules, "the schedules: their arguments"),
}
EXTRAS = {
    "generation": ["generation"],
    "recommendation": ["recommendation"],
    "text_classification": ["text"],
    "tune": ["tune"],
}
"""What of pyproject.toml's optional dependencies a recipe needs beside `recipes`."""
ALONE = ("bench", "compare", "generation", "tune")
"""Recipes that `kopt launch` cannot start: they train on one device, or start processes of their own."""
INSIDE, BESIDE = Path(__file__).parent / "recipes", Path(__file__).parents[1] / "recipes"
"""Where the recipes are: inside of kopt where it was installed from a wheel, beside it in a clone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code.

    Raises:
        SystemExit: `--help`, `--version`, or an argument is unknown or malformed (code 2).
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # as by `kopt optimizers | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return PIPE_CLOSED
    return code


def _run(argv: list[str]) -> int:
    name = argv[0].replace("-", "_") if argv else ""
    if name in recipes():
        return _run_recipe(name, argv[1:])
    if name == "launch":
        return _launch(argv[1:])
    if name == "recommend":
        from kopt.advice.command_line import main as recommend

        return recommend(argv[1:])
    parser = _parser()
    if not argv:
        parser.print_help(sys.stderr)
        return USAGE
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Greek letters where a terminal has none
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if arguments.command == "info":
        try:
            print(catalogue.info(arguments.name, min(columns or 100, 100)))
        except LookupError as error:
            print(f"error: {error.args[0]}", file=sys.stderr)
            return USAGE
        return DONE
    rows = TABLES[arguments.command][0]()
    print(json.dumps(rows, indent=2, ensure_ascii=False) if arguments.json else catalogue.as_text(rows, columns))
    return DONE


def _parser() -> argparse.ArgumentParser:
    names = {name.replace("_", "-"): about for name, about in recipes().items()}
    tables = {name: f"table of {about}" for name, (_, about) in TABLES.items()}
    one = {
        "info": "all about an optimizer, an adapter or a schedule: equations, arguments, reference",
        "launch": "several processes on this machine that train one recipe: kopt launch --workers 2 mnist ...",
        "recommend": "an optimizer for the model of a file, with its rate, its schedule and the reasons",
    }
    parser = argparse.ArgumentParser(
        prog="kopt",
        usage="kopt [-h] [--version] COMMAND ...",
        description=kopt.__doc__,
        epilog=f"{_listed('what there is', tables | one)}\n\n"
        + _listed("recipes, each with flags of its own, as in kopt mnist --help", names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kopt {kopt.__version__}")
    commands = parser.add_subparsers(
        prog="kopt", dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for name, about in tables.items():
        table = commands.add_parser(name, description=f"Prints a {about}.")
        table.add_argument("--json", action="store_true", help="print JSON, with the references")
    info = commands.add_parser("info", description=f"Prints {one['info']}.")
    info.add_argument("name", metavar="NAME", help="name of a class, in any case")
    for name in (*names, "launch", "recommend"):
        commands.add_parser(name)  # to be named where a command is unknown
    return parser


def _launch(argv: list[str]) -> int:
    from kopt.distribution import launch

    parser = argparse.ArgumentParser(
        prog="kopt launch", description="Trains a recipe by several processes on this machine, as one process would."
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        metavar="N",
        help="start all again from their common checkpoint, at most so often, if one is killed; needs --run-name or "
        "--output-dir of the recipe",
    )
    known = [name.replace("_", "-") for name in recipes() if name not in ALONE]
    parser.add_argument("recipe", help=", ".join(known))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="flags of the recipe")
    given = parser.parse_args(argv)
    if (recipe := given.recipe.replace("_", "-")) not in known:
        why = "not started by launch" if recipe.replace("-", "_") in ALONE else "no recipe"
        parser.error(f"{given.recipe}: {why}. Give one of {', '.join(known)}")
    if given.workers < 1 or given.restarts < 0:
        parser.error("--workers is at least 1, --restarts at least 0")
    names = [word.partition("=")[0].replace("_", "-") for word in given.arguments]  # flags may have either
    if taken := {"--distribute", "--worker-index", "--workers"} & set(names):
        parser.error(f"{', '.join(sorted(taken))}: set by launch; leave it out")
    if given.restarts and not {"--run-name", "--output-dir"} & set(names):
        parser.error("--restarts: give --run-name or --output-dir too, so that the next start finds the checkpoint")
    command = [sys.executable, "-m", "kopt", given.recipe, *given.arguments, "--distribute", "multiworker"]
    return launch(command, given.workers, given.restarts, again=["--resume", "auto"])


def _listed(title: str, lines: Mapping[str, str]) -> str:
    return "\n".join([f"{title}:", *(f"  {name:21} {about}" for name, about in lines.items())])


# ------------------------------------------------------------------------------------------------- recipes


def recipes() -> dict[str, str]:
    """Returns the first line of each recipe by the name of its module, sorted. Nothing is imported.

    A recipe is a module whose name begins with a letter, or a package with a `__main__`.
    """
    found = {}
    folder = INSIDE if INSIDE.exists() else BESIDE
    for path in sorted(folder.glob("[a-z]*")):
        is_recipe = (path / "__main__.py").exists() if path.is_dir() else path.suffix == ".py"
        if is_recipe:
            source = path / "__init__.py" if path.is_dir() else path
            doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
            found[path.stem] = doc.partition("\n")[0]
    return found


def load(name: str) -> ModuleType:
    """Imports a recipe, as `kopt.recipes.NAME` or, in a clone, as `recipes.NAME`.

    Raises:
        ImportError: another package called `recipes` has been imported before.
    """
    if INSIDE.exists():
        return importlib.import_module(f"kopt.recipes.{name}")
    init = BESIDE / "__init__.py"
    if "recipes" not in sys.modules:  # by its file, whatever else of that name there is to be found
        spec = importlib.util.spec_from_file_location("recipes", init)
        assert spec is not None and spec.loader is not None
        sys.modules["recipes"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["recipes"])
    there = Path(str(sys.modules["recipes"].__file__))
    if there.resolve() != init.resolve():
        raise ImportError(f"The recipes are those of {init}, but {there} was imported. Run `python -m kopt {name}`.")
    return importlib.import_module(f"recipes.{name}")


def _run_recipe(name: str, argv: list[str]) -> int:
    try:
        code: int = load(name).main(argv)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("kopt", "recipes"):
            raise
        extras = ",".join(["recipes", *EXTRAS.get(name, [])])
        print(f'error: this recipe needs {error.name}: pip install "keras-kopt[{extras}]"', file=sys.stderr)
        return FAILED
    return code


if __name__ == "__main__":
    sys.exit(main())
