"""The architecture: imports point downwards only, TensorFlow stands in one file, `import kopt` is cheap."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib

import pytest
import yaml
from problems import rules
from sources import KOPT, ROOT, SOURCES, imports, tree

import kopt
import kopt.tensorboard
from kopt import catalogue

LAYERS = [  # of kopt, from the bottom; a module may import from lower layers only
    r"kopt\.start",
    r"kopt\.declare\.(digest|patterns)",
    r"kopt\.declare\.(kinds|described|registry|path_rules|keras_bases)",
    r"kopt\.declare\.fields",
    r"kopt\.declare",
    r"kopt\.checkpoint\.atomic_files",
    r"kopt\.optimizers\.engine\.(tensor_math|rule_checks)",
    r"kopt\.optimizers\.engine\.(state\.layout|backends\.records)",
    r"kopt\.optimizers\.engine\.state\.slots",
    r"kopt\.optimizers\.engine\.noise",
    r"kopt\.optimizers\.engine\.(contract|state\.codecs|backends\.on_(tensorflow|jax|torch))",
    r"kopt\.optimizers\.engine\.backends\.on_jax_and_torch",
    r"kopt\.optimizers\.engine\.backends\.backend",
    r"kopt\.optimizers\.engine\.(parameter|learning_rate|keras_loss_scale)",
    r"kopt\.optimizers\.engine\.setup",
    r"kopt\.optimizers\.engine\.(clipping|finite|state\.state_file)",
    r"kopt\.optimizers\.engine\.(step|held)",
    r"kopt\.optimizers\.engine\.(accumulation|statistics|state\.start)",
    r"kopt\.optimizers\.engine\.run",
    r"kopt\.optimizers\.optimizer",
    r"kopt\.optimizers\.(inner|matrix\.choice)",
    r"kopt\.optimizers\.(adam_like|by_curvature|composites\.composite|full_batch\.full_batch|wrappers\.wrapper"
    r"|factored\.by_sides|matrix\.by_matrix)",  # bases of rules
    r"kopt\.optimizers(\.composites|\.factored|\.full_batch|\.matrix|\.wrappers)?"  # rules
    r"\.(?!engine|layerwise_decay|memory|minimize|(composites|factored|full_batch|matrix|wrappers)$)[a-z]\w*",
    r"kopt\.optimizers\.engine(\.\w+)?",
    r"kopt\.optimizers\.(full_batch\.minimize|memory)",
    r"kopt\.optimizers\.(composites|factored|full_batch|matrix|wrappers)",
    r"kopt\.optimizers",
    r"kopt\.optimizers\.layerwise_decay",
    r"kopt\.schedules\.curve",
    r"kopt\.schedules\.schedule",
    r"kopt\.schedules\.\w+",
    r"kopt\.schedules",
    r"kopt\.training\.keras_internals",
    r"kopt\.training\.(shown|train_step|sampled_labels)",
    r"kopt\.training\.(sam|curvature|memory_report|remat)",
    r"kopt\.training\.averages",
    r"kopt\.training",
    r"kopt\.peft\.(targets|peft_fields|layers\.(keras_internals|nf4|on_tensorflow))",
    r"kopt\.peft\.layers\.(layer_paths|quantized)",
    r"kopt\.peft\.layers\.site",
    r"kopt\.peft\.layers\.(nf4_layers|attention)",
    r"kopt\.peft\.layers",
    r"kopt\.peft\.adapter",
    r"kopt\.peft\.requirements",
    r"kopt\.peft\.host\.(host_tensors|saving)",
    r"kopt\.peft\.host\.(pickling|creation|in_use|surrounding)",
    r"kopt\.peft\.host\.(host_class|merging)",
    r"kopt\.peft\.host\.adapter_layer",
    r"kopt\.peft\.host",
    r"kopt\.peft\.model\.choice",
    r"kopt\.peft\.model\.(selection|optimizers)",
    r"kopt\.peft\.model\.adapters",
    r"kopt\.peft\.model\.model_class",
    r"kopt\.peft\.model\.(functions|quantization|reports|state)",
    r"kopt\.peft\.model",
    r"kopt\.peft\.methods\.(?!configs$)[a-z]\w*",  # methods
    r"kopt\.peft\.methods\.configs",
    r"kopt\.peft\.methods",
    r"kopt\.peft\.rank_allocation",
    r"kopt\.peft\.starts\.batches",
    r"kopt\.peft\.starts\.(eva|corda|lora_ga|loftq)",
    r"kopt\.peft\.starts\.initialize",
    r"kopt\.peft\.starts",
    r"kopt\.peft\.algebra\.combination",
    r"kopt\.peft\.algebra\.\w+",
    r"kopt\.peft\.algebra",
    r"kopt\.peft\.exchange\.(strict_json|pickled_file|task_names)",
    r"kopt\.peft\.exchange\.kerashub_converter",
    r"kopt\.peft\.exchange\.(tensor_file|config_file)",
    r"kopt\.peft\.exchange\.placement",
    r"kopt\.peft\.exchange\.name_map",
    r"kopt\.peft\.exchange\.(torch_layout|fingerprint|raw_parameters)",
    r"kopt\.peft\.exchange\.(writer|reader)",
    r"kopt\.peft\.exchange\.adapter_folder",
    r"kopt\.peft\.exchange\.config_of_folder",
    r"kopt\.peft\.exchange",
    r"kopt\.peft",
    r"kopt\.advice\.(call|facts)",
    r"kopt\.advice\.parts",
    r"kopt\.advice\.(conditions|rates|reasons)",
    r"kopt\.advice\.tables",
    r"kopt\.advice\.(additions|situations)",
    r"kopt\.advice\.recommend",
    r"kopt\.advice(\.command_line)?",
    r"kopt\.tensorboard\.(event_file|points)",
    r"kopt\.tensorboard\.\w+",
    r"kopt\.tensorboard",
    r"kopt\.distribution\.(cluster|agreement|keras_internals)",
    r"kopt\.distribution\.(peers|sharding)",
    r"kopt\.distribution\.(adaptive_batch|launching|local_sgd|strategies)",
    r"kopt\.distribution",
    r"kopt\.checkpoint\.(plain_values|shuffled_batches)",
    r"kopt\.checkpoint\.snapshot",
    r"kopt\.training\.rate_finder",
    r"kopt\.checkpoint\.snapshot_files",
    r"kopt\.checkpoint\.resume",
    r"kopt\.checkpoint",
    r"kopt\.board\.reader",
    r"kopt\.board\.method_rows",
    r"kopt\.board",
    r"kopt\.catalogue",
    r"kopt",
    r"kopt\.__main__",
]
CATALOGUED = [i for i, pattern in enumerate(LAYERS) if pattern.endswith("[a-z]\\w*")]
"""The layers of the rules and of the methods, of which one may build on another; circles are looked for apart."""
MAY_IMPORT_TENSORFLOW = {
    "kopt.optimizers.engine.backends.on_tensorflow",
    "kopt.peft.layers.on_tensorflow",
    "kopt.training.sam",
    "kopt.training.curvature",
    "kopt.training.remat",
    "kopt.distribution.adaptive_batch",
    "kopt.distribution.agreement",
    "kopt.distribution.sharding",
    "kopt.distribution.strategies",
}


ROOMS = ("recipes.run", "recipes.readers", "recipes.fine_tuning")
"""What recipes share, from the bottom."""


def layer(name):
    """Returns the height of a module of kopt."""
    for height, pattern in enumerate(LAYERS):
        if re.fullmatch(pattern, name):
            return height
    place = "in LAYERS in tests/project/test_structure.py: above all that it imports, below all that import it"
    raise AssertionError(f"{name} has no layer. Give it one {place}.")


@pytest.mark.parametrize("name", KOPT)
def test_imports_point_downwards(name):
    for imported in imports(name) & set(SOURCES):
        assert imported in KOPT, f"{name} imports {imported}"
        kin = layer(name) == layer(imported) and layer(name) in CATALOGUED
        assert kin or layer(imported) < layer(name), f"{name} imports {imported}, which is not below it"


def test_every_module_is_imported():
    packages = {name.rpartition(".")[0] for name in KOPT}
    used = set().union(*(imports(name) for name in KOPT)) | packages | {"kopt.__main__"}
    for name in KOPT:
        folder = str(SOURCES[name].parent.relative_to(ROOT))
        assert name in used, (
            f"Nothing imports {name}, so that no test sees it. Export its class in {folder}/__init__.py."
        )


def test_every_class_of_a_registry_is_exported():
    for family, (_, _, module) in catalogue.FAMILIES.items():
        public, door = sys.modules[module], module.replace(".", "/") + "/__init__.py"
        for cls in catalogue.classes(family).values():
            name = cls.__name__
            line = f"from {cls.__module__} import {name} as {name}"
            advice = (
                f"The {family} {name} is not in {module}. Export it in {door}, by way of the facades between: {line}"
            )
            assert getattr(public, name, None) is cls, advice


def test_imports_are_acyclic():
    graph = {name: imports(name) & set(SOURCES) for name in SOURCES}
    while leaves := [name for name, below in graph.items() if not below & set(graph)]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in a circle: {graph}"


def test_the_wings_do_not_import_each_other():
    for name in KOPT:
        wing = name.split(".")[1] if "." in name else ""
        other = {"optimizers": "kopt.peft", "peft": "kopt.optimizers"}.get(wing)
        assert other is None or not any(i.startswith(other) for i in imports(name)), name


def room(name):
    """Returns the folder of recipes/ that a module is in, or the module itself."""
    return ".".join(name.split(".")[:2])


def test_recipes_do_not_import_each_other():
    recipes = {room(name) for name in SOURCES if name.startswith("recipes.")} - set(ROOMS)
    assert {"recipes.generation", "recipes.mnist", "recipes.recommendation", "recipes.text_classification"} <= recipes
    for name in SOURCES:
        for imported in imports(name):
            if imported.startswith("recipes"):
                below = ROOMS[: ROOMS.index(room(name))] if room(name) in ROOMS else ROOMS
                assert room(imported) in (*below, room(name)), f"{name} imports {imported}"


def test_recipes_work_under_any_name():
    for name in SOURCES.keys() - set(KOPT):
        nodes, documented = list(ast.walk(tree(name))), (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, documented)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                assert "python -m recipes" not in node.value, f"{name}: {node.value}"
                assert not node.value.startswith("recipes."), f"{name}: {node.value}"


def test_folders_of_recipes_are_small():
    entries = [path for path in (ROOT / "recipes").iterdir() if path.is_file()]
    assert len(entries) <= 8
    for folder in (ROOT / "recipes").rglob("*/"):
        assert len(list(folder.glob("*.py"))) <= 15, folder


def test_only_the_roof_and_the_start_know_of_the_recipes():
    def named(name):
        nodes = ast.walk(tree(name))
        words = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        return any(re.fullmatch(r"(kopt\.)?recipes(\.\w+)*\.?", word) for word in words)

    assert [name for name in KOPT if named(name)] == ["kopt.start", "kopt.__main__"]
    assert not [name for name in SOURCES if "kopt.__main__" in imports(name)]


def test_kopt_imports_no_tests():
    tests = {"tests", "references", *(p.stem for p in (ROOT / "tests").rglob("*.py") if p.stem != "__init__")}
    for name in SOURCES:
        assert not {imported.split(".")[0] for imported in imports(name)} & tests, name


def test_tensorflow_stands_in_one_file():
    using = {n for n in KOPT if any(imported.split(".")[0] == "tensorflow" for imported in imports(n))}
    assert using == MAY_IMPORT_TENSORFLOW


def test_facades_only_import():
    rooms = ("composites", "factored", "full_batch", "matrix", "wrappers")
    wings = [f"kopt.optimizers.{room}" for room in rooms]
    facades = [
        name for name in SOURCES if name.startswith(("kopt.peft", "recipes")) and SOURCES[name].stem == "__init__"
    ]
    for name in (
        "kopt",
        "kopt.optimizers",
        *wings,
        "kopt.schedules",
        "kopt.tensorboard",
        "kopt.distribution",
        "kopt.advice",
        *facades,
    ):
        _, *statements = tree(name).body
        for node in statements:
            if isinstance(node, ast.ImportFrom):
                assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)
            else:
                assert ast.unparse(node).startswith(("__version__ = ", "__all__ = ")), ast.unparse(node)


def test_all_is_what_is_public():
    public = {name for name, thing in vars(kopt).items() if not name.startswith("_")} - {"optimizers"}
    exported = {name for name in public if name not in ("advice", "catalogue", "start", "training")}
    missing, unknown = sorted(exported - {*kopt.__all__}), sorted({*kopt.__all__} - exported)
    assert not missing, f"Add to __all__ in kopt/__init__.py, which type checkers read: {missing}"
    assert not unknown, f"__all__ in kopt/__init__.py has what is not imported there: {unknown}"
    assert kopt.tensorboard.OptimizerStats


def test_files_are_small_and_have_names():
    beside = (path for room in ("benchmarks", "docs", "tests") for path in (ROOT / room).rglob("*.py"))
    for path in [*SOURCES.values(), *beside]:
        assert path.stem.strip("_") not in ("utils", "util", "helpers", "common", "misc"), path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


CATALOGUES = ("kopt/optimizers", "kopt/peft/methods")
"""Folders that hold as many modules as there are rules or methods."""


def test_folders_are_small():
    assert len(list((ROOT / "tests").glob("*.py"))) <= 4
    for folder in {path.parent for path in SOURCES.values()}:
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= 15 or str(folder.relative_to(ROOT)) in CATALOGUES, folder


def own(classes):
    """Returns the classes of kopt among others."""
    return [c for c in classes if c.__module__.startswith("kopt.")]


def test_an_optimizer_is_two_classes():
    assert own(kopt.Optimizer.__mro__) == [kopt.Optimizer, kopt.declare.Configurable]


@pytest.mark.parametrize("name", rules())
def test_what_is_called_through_self_is_in_one_chain(name):
    for cls in own(rules()[name].__mro__):
        # ScheduleFree alone is both a wrapper and an average of iterates
        assert len(own(cls.__bases__)) <= 1 or cls is kopt.ScheduleFree, f"{cls.__name__} has several bases"
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
            if isinstance(node, ast.Call) and (found := re.fullmatch(r"self\.(\w+)", ast.unparse(node.func))):
                assert hasattr(cls, found[1]), f"{cls.__name__} calls {found[0]}"


@pytest.mark.slow
def test_import_is_cheap(tmp_path):
    program = """
import json, sys, time
began = time.process_time()
import keras
whole = time.process_time() - began
before, seconds = set(sys.modules), []
for _ in range(3):
    for name in [name for name in sys.modules if name.split(".")[0] == "kopt"]:
        del sys.modules[name]
    began = time.process_time()  # other work on the machine does not count
    import kopt
    seconds.append(time.process_time() - began)
print(json.dumps([min(seconds) / whole, sorted({name.split(".")[0] for name in set(sys.modules) - before})]))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    share, added = json.loads(done.stdout)
    assert share <= 0.03  # of the time that Keras takes
    assert "kopt" in added
    assert not {"torch", "transformers", "matplotlib", "tensorboard"} & set(added)


def test_everything_public_is_documented():
    public = {name: thing for name, thing in vars(kopt).items() if not name.startswith("_") and callable(thing)}
    public["OptimizerStats"] = kopt.tensorboard.OptimizerStats
    assert len(public) > 12
    for name, thing in public.items():
        assert thing.__doc__, name
        for key, member in vars(thing).items() if isinstance(thing, type) else ():
            if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(thing, key)), f"{name}.{key}"


def test_types_are_published():
    assert (ROOT / "kopt" / "py.typed").exists()


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == kopt.__version__ == citation["version"]
    assert project["license"] == citation["license"]
    assert f"## {kopt.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_contract_names_no_rule():
    for name in ("test_contract", "test_rows", "test_low_precision"):
        text = (ROOT / "tests" / "optimizers" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.findall(rf"\b({'|'.join(rules())})\b", text)
