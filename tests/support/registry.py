"""The rules of the registry as parameters of tests."""

import pytest
from problems import BESIDE, SMALL, other_value, own_fields, rules

import kopt

RULES = rules()
PLAIN = {name: SMALL.get(name, {}) for name in RULES}
"""For each rule what it is made with where its arguments do not matter."""
VARIANTS = [*PLAIN.items()] + [
    (name, PLAIN[name] | BESIDE.get(k, {}) | {k: other_value(h)})
    for name, cls in RULES.items()
    for k, h in own_fields(cls).items()
]
every_rule = pytest.mark.parametrize("name", RULES)


def engine_path(cls):
    """Returns what tells the way of a rule through the engine."""
    optimizer = cls()
    own_step = cls.advance is not kopt.Optimizer.advance
    return optimizer.row_wise, bool(optimizer.shared), own_step, bool(optimizer.slots), optimizer.state_dtype


ALONE = {name: cls for name, cls in RULES.items() if not hasattr(cls, "observe")}
"""The rules that a gradient is enough for; the others need `kopt.Curvature`."""
FIRST = {engine_path(cls): name for name, cls in reversed(ALONE.items())}.values()
"""One rule for each way through the engine; with the others the longer tests are slow tests."""


def sampled(names):
    """Parametrizes a longer test."""
    marks = {name: () if name in FIRST else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


every_rule_in_turn = sampled(RULES)
one_of_each = pytest.mark.parametrize("name", sorted(set(FIRST)))
"""For what is the business of the engine alone."""
every_row_wise_rule = sampled([name for name, cls in RULES.items() if cls.row_wise])
every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda x: x if isinstance(x, str) else str(x)
)
