"""The modules of kopt and of the recipes, and what they import."""

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def module_name(path):
    """Returns the dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_name(p): p for package in ("kopt", "recipes") for p in (ROOT / package).rglob("*.py")}
KOPT = [name for name in SOURCES if name.split(".")[0] == "kopt"]


@functools.cache
def tree(name):
    """Returns the parsed source of a module."""
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


@functools.cache
def imports(name):
    """Returns the modules that a module imports, anywhere in its file."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            assert not any(alias.name.startswith("recipes") for alias in node.names), name
        elif isinstance(node, ast.ImportFrom):
            module = absolute_name(name, node)
            # A wheel holds the recipes as kopt.recipes, so that they cannot know their own name.
            assert bool(node.level) == module.startswith("recipes"), f"{name}: from {module}"
            for alias in node.names:
                child = f"{module}.{alias.name}"
                found.add(child if child in SOURCES else module)
    return found


def absolute_name(name, node):
    """Returns the module from which a statement `from ... import` in the module `name` imports."""
    if not node.level:
        return node.module
    package = name.split(".") if SOURCES[name].stem == "__init__" else name.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module] if node.module else package)
