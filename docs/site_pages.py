"""The pages of the site that are made when it is built: optimizers, adapters, schedules, papers, examples, the API.

A page of a rule says what its docstring says, and what the committed tables have measured of it. Nothing of these pages
is committed: `site_hook.py` gives them to MkDocs.
"""

import ast
import functools
import inspect
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import kopt
from kopt import catalogue
from kopt.declare import Field
from kopt.declare.described import SECTION, own_arguments
from kopt.declare.fields import REQUIRED, as_code

ROOT = pathlib.Path(__file__).parents[1]
MODULES = (
    kopt,
    kopt.board,
    kopt.peft,
    kopt.schedules,
    kopt.checkpoint,
    kopt.distribution,
    kopt.tensorboard,
    kopt.declare,
)
"""What has a page in the API reference, in the order of the reading."""
FOLDERS = {"optimizer": "optimizers", "adapter": "adapters", "schedule": "schedules"}
INDENT = "    "


def made() -> dict[str, str | bytes]:
    """Returns the pages and pictures by their path in the site."""
    found: dict[str, str | bytes] = {}
    for family, folder in FOLDERS.items():
        for cls in catalogue.classes(family).values():
            found[f"{folder}/{cls.__name__}.md"] = page(family, cls)
            if family == "schedule":
                found[f"{folder}/{cls.__name__}.png"] = curve(cls)
    found |= {f"api/{module.__name__}.md": api_page(module) for module in MODULES}
    return found | {"papers.md": papers(), "examples.md": examples()}


def names_of(module: ModuleType) -> list[str]:
    """Returns the public names of a module: what its facade exports, without the modules in it."""
    return sorted(name for name in exported(module) if not inspect.ismodule(getattr(module, name)))


def exported(module: ModuleType) -> set[str]:
    """Returns the names that the file of a module imports by `from ... import name as name`."""
    parts = ast.walk(ast.parse(inspect.getsource(module)))
    return {alias.asname for part in parts if isinstance(part, ast.ImportFrom) for alias in part.names if alias.asname}


@functools.cache
def catalogued() -> dict[str, str]:
    """Returns the page of every class of the registries by its public name, `kopt.peft.LoRA`."""
    return {
        f"{catalogue.FAMILIES[family][2]}.{cls.__name__}": f"{folder}/{cls.__name__}.md"
        for family, folder in FOLDERS.items()
        for cls in catalogue.classes(family).values()
    }


# ------------------------------------------------------------------------------------------------- one class


def page(family: str, cls: Any) -> str:
    """Returns the page of an optimizer, an adapter or a schedule."""
    _, base, module = catalogue.FAMILIES[family]
    parts = SECTION.split(inspect.cleandoc(cls.__doc__))
    head, tail = parts[0], parts[-1] if len(parts) > 1 else ""
    first, _, rest = head.partition("\n")
    own = [f for f in cls.fields.values() if f.name not in base.fields or is_of_interest(f, cls, base)]
    own.sort(key=lambda field: field.name not in cls.leading)
    sections = [
        f"# {cls.__name__} {{ #{module}.{cls.__name__} }}",
        linked(first if family == "schedule" else f"{catalogue.about(cls)}.", cls),
        f"```python\n{signature(module, cls, own)}\n```",
        linked(rest, cls),
        *built_on(cls, head, base),
        drawn(cls) if family == "schedule" else "",
        f"## Arguments\n\n{arguments(own, own_arguments(cls.__doc__))}" if own else "",
        inherited(family, cls, own),
        notes(linked(tail, cls)),
        f"## Facts\n\n{facts(family, cls)}" if family != "schedule" else "",
        f"`kopt info {cls.__name__.lower()}` prints this text in a terminal; [all {family}s](../{FOLDERS[family]}.md).",
    ]
    return "\n\n".join(section.strip("\n") for section in sections if section.strip()) + "\n"


def is_of_interest(field: Field, cls: Any, base: Any) -> bool:
    """Returns whether an argument of the base is shown: the rate, and what has another default or another meaning."""
    name = field.name
    means, meant = (own_arguments(each.__doc__)[name] for each in (cls, base))
    changed = as_code(field.default) != as_code(base.fields[name].default) or not meant.startswith(means.rstrip("."))
    return name == "learning_rate" or changed


def inherited(family: str, cls: Any, shown: list[Field]) -> str:
    """Returns the sentence on the arguments of the base."""
    _, base, module = catalogue.FAMILIES[family]
    place = f"{module}.{base.__name__}" if family != "schedule" else f"{base.__module__}.{base.__name__}"
    names = [f"`{name}`" for name in base.fields if name != "name" and name not in [field.name for field in shown]]
    return f"As in every {family}: {', '.join(names)}. [`{base.__name__}`][{place}] describes them."


def linked(text: str, cls: Any) -> str:
    """Returns the prose of a docstring with links to the pages of the classes that it names."""
    pages = {name.rpartition(".")[2]: path for name, path in catalogued().items()}

    def link(match: re.Match[str]) -> str:
        name = match[1]
        here = name == cls.__name__ or name not in pages
        return match[0] if here else f"[`{name}`](../{pages[name]})"

    lines = (line if line.startswith(INDENT) else re.sub(r"`(\w+)`", link, line) for line in text.split("\n"))
    return arxiv("\n".join(lines))


def arxiv(text: str) -> str:
    """Returns a text with links to papers."""
    text = re.sub(r"(?<!\[)arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    text = re.sub(r"(?<!\[)doi:(10\.[^\s;,]+[^\s;,.])", r"[doi:\1](https://doi.org/\1)", text)
    return re.sub(r"(?<![/\w])((?:[\w-]+\.)+(?:org|net|press|com|io)/[^\s;,)]+[^\s;,.)])", r"[\1](https://\1)", text)


def built_on(cls: Any, head: str, base: Any) -> Iterator[str]:
    """Yields the equations of the classes that the text is built on, as `Adam` for `AdamW`."""
    for above in cls.__mro__[1:]:
        if f"`{above.__name__}`" in head and above not in base.__mro__:
            text = SECTION.split(inspect.cleandoc(above.__doc__))[0].partition("\n")[2]
            equations = "\n".join(line for line in text.split("\n") if line.startswith(INDENT))
            if equations:
                yield f"With the equations of {linked(f'`{above.__name__}`', cls)}:\n\n{equations}"


def signature(module: str, cls: Any, fields: list[Field]) -> str:
    """Returns the call that makes it, with the defaults."""
    words = [f.name if f.default is REQUIRED else f"{f.name}={as_code(f.default)}" for f in fields]
    call = f"{module}.{cls.__name__}({', '.join(words)})"
    if len(call) <= 100:
        return call
    inner = "\n".join(f"{INDENT}{word}," for word in words)
    return f"{module}.{cls.__name__}(\n{inner}\n)"


def arguments(fields: list[Field], described: Mapping[str, str]) -> str:
    """Returns a table of arguments: name, what it can be, default, meaning."""
    lines = ["| argument | can be | default | |", "|---|---|---|---|"]
    for field in fields:
        default = "required" if field.default is REQUIRED else f"`{as_code(field.default)}`"
        text = re.sub(rf"^{field.name}: ", "", described[field.name])
        cells = (f"`{field.name}`", catalogue.kind_of(field) or "as described", default, text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def notes(tail: str) -> str:
    """Returns what stands behind the arguments in a docstring, with a paragraph for each label."""
    errors = re.search(r"^Raises:\n((?: +.*\n?)+)", tail, re.MULTILINE)
    if errors:
        entries = own_arguments(f"\nArgs:\n{errors[1]}").items()  # of the same form
        said = "; ".join(f"`{error}`, {text.rstrip('.')}" for error, text in entries)
        tail = tail.replace(errors[0], f"\nRaises {said}.\n")
    tail = re.sub(r"\n(?=(?:Differs|Agrees|Raises|Reference|Reads|With)\b)", "\n\n", tail)
    return re.sub(r"^(Differs from|Agrees with|Reference:|Raises)", r"**\1**", tail, flags=re.MULTILINE)


# ------------------------------------------------------------------------------------------------- facts


def facts(family: str, cls: Any) -> str:
    """Returns a table of what is known about a class beside its docstring."""
    rows = of_optimizer(cls) if family == "optimizer" else of_adapter(cls)
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def of_adapter(cls: Any) -> dict[str, str]:
    """Returns what can be done with an adapter."""
    return {
        "can be merged": "yes" if cls.mergeable else "no, there is no kernel to merge it into",
        "file of `peft`": f"`{cls.peft_type}`, read and written" if cls.in_peft else "none: `peft` has no such method",
    }


def of_optimizer(cls: Any) -> dict[str, str]:
    """Returns the memory, the cost and the parity of an optimizer, from the registry and the committed tables."""
    optimizer = cls()
    rows = {
        "slots": ", ".join(f"`{name}`" for name in catalogue.slots_of(optimizer)) or "none",
        "state": f"{catalogue.state_bytes(optimizer):.2g} bytes for each float32 parameter, with the defaults",
        "embeddings": "only the rows that a batch read are updated" if optimizer.row_wise else "every row is updated",
    }
    if optimizer.scale_free:
        rows["scale"] = "multiplying all gradients by one number changes nothing"
    if cost := costs().get(cls.__name__):
        rows["a step"] = f"{cost} × that of `Adam` ([python -m benchmarks.rules](../benchmarks.md#every-rule))"
    return rows | parity(cls.__name__)


@functools.cache
def costs() -> dict[str, str]:
    """Returns what a step of each rule costs beside `Adam`, as benchmarks/README.md has it."""
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- rules -->")[1].split("<!-- /rules -->")[0]
    return dict(re.findall(r"\| `(\w+)` \| ([\d.]+) \|", table))


def parity(name: str) -> dict[str, str]:
    """Returns how far a rule is from its reference and its peer, as docs/parity.md has it."""
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{name}` \|(.*)\|$", text, re.MULTILINE)
    if not row:
        return {}
    _, plain, decayed, peer, beside, beside_decayed, remark = (cell.strip() for cell in row[1].split("|"))
    page = "[parity](../parity.md)"
    found = {"beside its float64 reference": f"{plain} in float32, with decay {decayed} ({page})"}
    if peer:
        found[f"beside {peer}"] = f"{beside or '-'}, with decay {beside_decayed or '-'}"
    return found | ({"remark": remark} if remark else {})


# ------------------------------------------------------------------------------------------------- schedules


STEPS = 1000
EXAMPLES = {"Cyclical": {"steps": 250}, "default": {"steps": STEPS, "warmup": 100}}


def example(cls: Any) -> dict[str, Any]:
    """Returns arguments that show what a schedule does."""
    known = EXAMPLES.get(cls.__name__, EXAMPLES["default"])
    return {name: value for name, value in known.items() if name in cls.fields}


def drawn(cls: Any) -> str:
    """Returns the curve of a schedule, and the code that draws it."""
    name, words = cls.__name__, ", ".join(f"{name}={value}" for name, value in example(cls).items())
    code = f'```python\nkopt.schedules.{name}(1e-3, {words}).plot("{name}.png")\n```'
    return f"![{name}: the learning rate over the updates]({name}.png)\n\n{code}"


def curve(cls: Any) -> bytes:
    """Returns the picture of a schedule, a PNG file."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "curve.png")
        cls(1e-3, **example(cls)).plot(path)
        return path.read_bytes()


# ------------------------------------------------------------------------------------------------- lists


def api_page(module: ModuleType) -> str:
    """Returns the reference of a module: links for what has a page of its own, the documentation of the rest."""
    name = module.__name__
    parts = [f"# {name} {{ #{name} }}", str(inspect.getdoc(module)), f"```python\n{_import(name)}\n```"]
    own, listed = [], []
    for public in names_of(module):
        full = f"{name}.{public}"
        if full in catalogued():
            listed.append(f"[`{public}`](../{catalogued()[full]})")
        else:
            own.append(full)
    if listed:
        parts.append("## With a page of their own\n\n" + ", ".join(listed))
    elsewhere = [other.__name__ for n in exported(module) if (other := getattr(module, n)) in MODULES]
    if elsewhere:
        parts.append("Modules: " + ", ".join(f"[`{other}`]({other}.md)" for other in sorted(elsewhere)))
    if module is kopt.schedules:
        own.append("kopt.schedules.schedule.Schedule")
    options = "    options:\n      heading_level: 2"
    return "\n\n".join([*parts, *(f"::: {full}\n{options}" for full in own)]) + "\n"


def _import(name: str) -> str:
    package, _, last = name.rpartition(".")
    return f"from {package} import {last}" if package else f"import {name}"


def papers() -> str:
    """Returns every paper that a docstring refers to, with what was written from it."""
    lines = ["# Papers", "What kopt is written from: the references of its docstrings.", ""]
    for family, folder in FOLDERS.items():
        lines += ["", f"## {folder.capitalize()}", "", f"| {family} | reference |", "|---|---|"]
        for cls in catalogue.classes(family).values():
            link = f"[`{cls.__name__}`]({folder}/{cls.__name__}.md)"
            lines.append(f"| {link} | {arxiv(catalogue.reference(cls))} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def examples() -> str:
    """Returns the scripts in examples/, each with its first line as heading."""
    parts = ["# Examples", "Each is a file in `examples/` that runs as it is, on data that need no network."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text(encoding="utf-8")
        doc = str(ast.get_docstring(ast.parse(code)))
        first, _, rest = doc.partition("\n")
        body = code.split('"""', 2)[2].strip("\n")
        parts += [f"## {first.rstrip('.')}", rest.strip("\n"), f"```python\n{body}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"
