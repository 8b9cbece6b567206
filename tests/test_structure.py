"""The architecture: imports point downwards only, TensorFlow stands in one file, `import kopt` is cheap."""

import ast
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from problems import rules

import kopt
import kopt.tensorboard

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = [  # of kopt, from the bottom; a module may import from lower layers only
    r"kopt\.declare\.(kinds|described|registry|path_rules|keras_bases)",
    r"kopt\.declare\.fields",
    r"kopt\.declare",
    r"kopt\.optimizers\.engine\.(tensor_math|rule_checks)",
    r"kopt\.optimizers\.engine\.slots",
    r"kopt\.optimizers\.engine\.parameter",
    r"kopt\.optimizers\.engine\.(learning_rate|keras_loss_scale|state_file|accumulation|average)",
    r"kopt\.optimizers\.engine\.step",
    r"kopt\.optimizers\.engine\.start",
    r"kopt\.optimizers\.engine\.(on_tensorflow|on_jax_and_torch)",
    r"kopt\.optimizers\.optimizer",
    r"kopt\.optimizers\.wrappers\.wrapper",
    r"kopt\.optimizers(\.composites|\.wrappers|\.full_batch)?\.(?!engine|layerwise_decay|minimize)[a-z]\w*",  # rules
    r"kopt\.optimizers\.engine",
    r"kopt\.optimizers",
    r"kopt\.optimizers\.(full_batch\.minimize|layerwise_decay)",
    r"kopt\.schedules\.schedule",
    r"kopt\.schedules\.\w+",
    r"kopt\.schedules",
    r"kopt\.training\.keras_internals",
    r"kopt\.training\.(shown|sam)",
    r"kopt\.training\.averages",
    r"kopt\.training",
    r"kopt\.peft\.(targets|layers\.keras_internals)",
    r"kopt\.peft\.layers\.\w+",
    r"kopt\.peft\.layers",
    r"kopt\.peft\.adapter",
    r"kopt\.peft\.host\.host_class",
    r"kopt\.peft\.host\.adapter_layer",
    r"kopt\.peft\.host",
    r"kopt\.peft\.model\.selection",
    r"kopt\.peft\.model\.adapters",
    r"kopt\.peft\.model\.model_class",
    r"kopt\.peft\.model\.functions",
    r"kopt\.peft\.model",
    r"kopt\.peft\.methods\.(bitfit|bottleneck|ia3|layer_norm_tuning|lora|prompt)",
    r"kopt\.peft\.methods\.dora",
    r"kopt\.peft\.methods\.configs",
    r"kopt\.peft\.methods",
    r"kopt\.peft\.exchange\.(tensor_file|kerashub_converter)",
    r"kopt\.peft\.exchange\.placement",
    r"kopt\.peft\.exchange\.name_map",
    r"kopt\.peft\.exchange\.(torch_layout|fingerprint)",
    r"kopt\.peft\.exchange\.(writer|reader)",
    r"kopt\.peft\.exchange\.adapter_folder",
    r"kopt\.peft\.exchange",
    r"kopt\.peft",
    r"kopt\.tensorboard\.event_file",
    r"kopt\.tensorboard\.\w+",
    r"kopt\.tensorboard",
    r"kopt",
]
RULES = next(i for i, pattern in enumerate(LAYERS) if "composites" in pattern)
MAY_IMPORT_TENSORFLOW = {"kopt.optimizers.engine.on_tensorflow", "kopt.training.sam"}


def module_name(path):
    """Returns the dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(p): p for package in ("kopt", "recipes") for p in (ROOT / package).rglob("*.py")}
KOPT = [name for name in SOURCES if name.split(".")[0] == "kopt"]


def imports(name):
    """Returns the modules that a module imports, anywhere in its file."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            for alias in node.names:
                child = f"{node.module}.{alias.name}"
                found.add(child if child in SOURCES else node.module)
    return found


def layer(name):
    """Returns the height of a module of kopt."""
    for height, pattern in enumerate(LAYERS):
        if re.fullmatch(pattern, name):
            return height
    raise AssertionError(f"{name} has no layer. Give it one in {__file__}.")


@pytest.mark.parametrize("name", KOPT)
def test_imports_point_downwards(name):
    for imported in imports(name) & set(SOURCES):
        assert imported in KOPT, f"{name} imports {imported}"
        kin = layer(name) == layer(imported) == RULES  # a rule may build on another
        assert kin or layer(imported) < layer(name), f"{name} imports {imported}, which is not below it"


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


def test_recipes_do_not_import_each_other():
    recipes = {name for name in SOURCES if re.fullmatch(r"recipes\.[a-z]\w*", name)}
    assert recipes
    for name in SOURCES:
        assert not imports(name) & (recipes - {name}), name


def test_kopt_imports_no_tests():
    tests = {"tests", *(p.stem for p in (ROOT / "tests").glob("*.py"))}
    for name in SOURCES:
        assert not {imported.split(".")[0] for imported in imports(name)} & tests, name


def test_tensorflow_stands_in_one_file():
    using = {n for n in KOPT if any(imported.split(".")[0] == "tensorflow" for imported in imports(n))}
    assert using == MAY_IMPORT_TENSORFLOW


def test_facades_only_import():
    peft = [name for name in KOPT if name.startswith("kopt.peft") and SOURCES[name].stem == "__init__"]
    for name in ("kopt", "kopt.optimizers", "kopt.schedules", "kopt.tensorboard", *peft):
        _, *statements = ast.parse(SOURCES[name].read_text(encoding="utf-8")).body
        for node in statements:
            if isinstance(node, ast.ImportFrom):
                assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)
            else:
                assert ast.unparse(node).startswith(("__version__ = ", "__all__ = ")), ast.unparse(node)


def test_all_is_what_is_public():
    public = {name for name, thing in vars(kopt).items() if not name.startswith("_")} - {"optimizers"}
    assert set(kopt.__all__) == {name for name in public if name not in ("training",)}
    assert kopt.tensorboard.OptimizerStats


def test_files_are_small_and_have_names():
    for path in [*SOURCES.values(), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert path.stem.strip("_") not in ("utils", "util", "helpers", "common", "misc"), path
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


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
    for name in ("test_optimizers", "test_rows", "test_low_precision"):
        text = (ROOT / "tests" / f"{name}.py").read_text(encoding="utf-8")
        assert not re.findall(rf"\b({'|'.join(rules())})\b", text)
