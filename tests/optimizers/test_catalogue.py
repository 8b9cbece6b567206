"""The files of the rules are short, and their docstrings complete."""

import ast
import inspect
import pathlib
import re
import statistics
import sys

import pytest
import references
from registry import RULES, every_rule

from kopt.declare.described import own_arguments

NO_PEER = ("AdaBound", "BGD", "ConditionalGradient", "GradientNoise", "QHAdam", "Route", "Switch")
"""Rules whose docstring says in other words what other code does, or that have no arithmetic or no peer."""
LONGER = {
    "adahessian": "a mean over positions, and its slot",
    "adan": "three averages",
    "asgd": "the average that is evaluated",
    "ademamix": "two warm-ups",
    "cocob": "five slots, and what the learning rate is here",
    "conditional_gradient": "the power iteration",
    "ftrl": "two penalties, and a rate that may overflow",
    "lars": "three libraries that differ",
    "mars": "two forms",
    "novograd": "two ways to average",
    "prodigy": "sums over all weights",
    "rmsprop": "two options with a slot each",
    "tiger": "an option that changes what the rule is",
}
"""Files of one rule of more than 45 lines, and what takes the room."""

EXTENDING = {
    "AdaBoundW": "another default, and the unit of its decay",
    "AdamW": "another default",
    "Grams": "the direction of Adam, with other signs",
    "KLSOAP": "how the products are weighed, and the sizes for that",
    "LazyAdam": "fewer values of an argument",
    "NadamW": "another default",
    "SophiaH": "another default, and what is estimated",
    "StableAdamW": "the direction of AdamW, at another rate",
}
"""Rules that extend one that can be used itself, and what they change; others share an abstract base."""


def rule_files():
    """Returns the rules by the file of `kopt/optimizers` that they stand in; wrappers and the like are apart."""
    found = {}
    for cls in RULES.values():
        if re.fullmatch(r"kopt\.optimizers\.\w+", cls.__module__):
            found.setdefault(pathlib.Path(sys.modules[cls.__module__].__file__), []).append(cls.__name__)
    return found


def code_lines(text):
    """Returns how many lines of a source are neither blank nor comment nor docstring."""
    lines = {i for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


@every_rule
def test_a_docstring_has_all_parts(name):
    doc = inspect.cleandoc(RULES[name].__doc__)
    about = doc.partition("\nSlots:")[0]
    kin = {other for other in re.findall(r"`(\w+)`", about) if other in RULES or other == "Averaging"}
    assert re.search(r"\n\n    \S", about) or kin, "no equations, and no rule that has them"
    assert "\nSlots:" in doc
    assert {*own_arguments(doc)} == {*RULES[name].fields}
    assert doc.rpartition("\nReference: ")[2].count("\n\n") == 0
    assert bool(re.search(r"\b(Differs|Agrees|agrees)\b", doc)) != (name in NO_PEER)


def test_files_of_rules_are_short():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in rule_files()}
    assert statistics.median(map(code_lines, texts.values())) <= 25
    assert len(texts["lion"].splitlines()) <= 38
    alone = {path.stem for path, names in rule_files().items() if len(names) == 1}
    assert {name for name in alone if len(texts[name].splitlines()) > 45} == {*LONGER}


def test_rules_share_abstract_bases():
    found = {name for name, cls in RULES.items() if {*cls.__mro__[1:]} & {*RULES.values()}}
    assert found == {*EXTENDING}


def test_a_rule_without_a_reference_is_told_where_to_put_it():
    with pytest.raises(LookupError, match=r"Mine has no reference.*tests/support/references/.*RULES"):
        references.descend("Mine", [], [])
