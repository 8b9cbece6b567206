"""Mistakes of a rule's author are errors that name class and slot, on its own and inside of other optimizers."""

import numpy as np
import pytest
from keras import ops
from problems import one_step

import kopt
from kopt.declare.registry import OPTIMIZERS


@pytest.fixture(autouse=True)
def _own_classes_are_forgotten():
    """Other tests look at all that is registered."""
    kept = dict(OPTIMIZERS._classes)
    yield
    OPTIMIZERS._classes.clear()
    OPTIMIZERS._classes.update(kept)


def mine(**members):
    """Returns a rule with one slot and one shared value, or with these members in their place."""

    def rule(self, g, w, s, t):
        return g, {name: g for name in self.slots}

    body = {"slots": {"moment": kopt.Slot()}, "shared": {"mass": 0.0}, "rule": rule, "__module__": "mine"}
    return type("Mine", (kopt.Optimizer,), body | members)


def step(optimizer):
    return one_step(optimizer, np.ones((3, 2)), np.ones((3, 2)))


WAYS = {
    "alone": lambda rule: rule,
    "Cautious": kopt.Cautious,
    "ScheduleFree": kopt.ScheduleFree,
    "Lookahead": kopt.Lookahead,
    "twice": lambda rule: kopt.Lookahead(kopt.Cautious(rule)),
    "Route": lambda rule: kopt.Route([("", rule)]),
    "Switch": kopt.Switch,
}
MISTAKES = {
    "forgotten": (
        {"rule": lambda self, g, w, s, t: (g, {})},
        ValueError,
        "Mine must return every slot: 'moment' is miss",
    ),
    "unknown": (
        {"rule": lambda self, g, w, s, t: (g, {"moment": g, "momnt": g})},
        ValueError,
        "Mine returned a slot 'momnt' that it does not declare. Declared: 'moment'",
    ),
    "a number": (
        {"rule": lambda self, g, w, s, t: (g, {"moment": ops.sum(g)})},
        ValueError,
        r"Mine returned slot 'moment' of shape \(\), where it is \(3, 2\)",
    ),
    "a row": (
        {"rule": lambda self, g, w, s, t: (g, {"moment": g[:1]})},
        ValueError,
        r"Mine returned slot 'moment' of shape \(1, 2\), where it is \(3, 2\)",
    ),
    "direction alone": (
        {"rule": lambda self, g, w, s, t: g},
        TypeError,
        "Mine.rule must return the direction and a dictionary of the new slots",
    ),
    "nothing": ({"rule": lambda self, g, w, s, t: None}, TypeError, "Mine.rule must return the direction and a dict"),
    "three": ({"rule": lambda self, g, w, s, t: (g, {}, 1)}, TypeError, "Mine.rule must .*Received: a tuple of 3"),
    "settled": (
        {"settle": lambda self, sums, s, t: {"mas": t}},
        ValueError,
        "Mine.settle returned 'mas', which is not a shared value. Declared: 'mass'",
    ),
    "no rule": ({"rule": kopt.Optimizer.rule}, NotImplementedError, "Mine must define rule"),
}
STEPS = {  # of rules that are no step along a direction, which Cautious and ScheduleFree refuse
    "weight alone": (lambda self, g, w, s, t: w, TypeError, "Mine.advance must return the new weight and a dict"),
    "a number for a weight": (
        lambda self, g, w, s, t: (ops.sum(w), {"moment": g}),
        ValueError,
        r"Mine returned the new weight of shape \(\), where it is \(3, 2\)",
    ),
    "a slot forgotten": (lambda self, g, w, s, t: (w, {}), ValueError, "Mine must return every slot: 'moment'"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_rule_names_class_and_slot(mistake, way):
    members, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        step(WAYS[way](mine(**members)()))


@pytest.mark.parametrize("way", ["alone", "Lookahead", "Route", "Switch"])
@pytest.mark.parametrize("mistake", STEPS)
def test_a_mistake_of_an_own_step_names_class_and_slot(mistake, way):
    advance, error, message = STEPS[mistake]
    with pytest.raises(error, match=message):
        step(WAYS[way](mine(advance=advance)()))


@pytest.mark.parametrize("way", ["Cautious", "ScheduleFree"])
def test_an_own_step_is_refused_where_a_direction_is_needed(way):
    with pytest.raises(ValueError, match=rf"{way} takes .* along a direction. Received: Mine\(\)"):
        WAYS[way](mine(advance=lambda self, g, w, s, t: (w, {}))())


@pytest.mark.parametrize("name", ["learning_rate", "multiplier", "weight_decay", "index", "loss", "a b", "1", "m.v"])
@pytest.mark.parametrize("kind", ["slots", "shared"])
def test_names_that_cannot_be_used(kind, name):
    value = kopt.Slot() if kind == "slots" else 0.0
    with pytest.raises(ValueError, match=f"Mine: {name!r} cannot be the name of a slot or shared value"):
        mine(**{kind: {name: value}})


def test_names_that_a_property_gives_are_looked_at_in_build():
    cls = mine(slots=property(lambda self: {"index": kopt.Slot()}))
    with pytest.raises(ValueError, match="Mine: 'index' cannot be the name"):
        step(cls())
    with pytest.raises(ValueError, match="Mine: mass are slots and shared values at once"):
        mine(slots={"mass": kopt.Slot()})
    with pytest.raises(ValueError, match=r"Lookahead and Mine.* both have a slot 'slow'"):
        kopt.Lookahead(mine(slots={"slow": kopt.Slot()})())


@pytest.mark.parametrize("name", ["residual", "average", "averaged_at", "accumulator", "read", "value"])
def test_slots_with_names_of_the_state_are_saved(name):
    cls = mine(slots={name: kopt.Slot()})
    optimizer, store = cls(), {}
    step(optimizer)
    optimizer.save_own_variables(store)
    fresh, again = cls(), {}
    fresh.load_own_variables(store)
    fresh.save_own_variables(again)
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in store.items()}


def test_what_is_no_slot_is_refused():
    with pytest.raises((TypeError, ValueError), match="Mine"):
        step(mine(slots={"moment": 0.0})())
    with pytest.raises((TypeError, ValueError), match="Mine"):
        step(mine(slots=["moment"])())


def test_without_a_mistake_all_ways_work():
    for make in WAYS.values():
        assert np.isfinite(step(make(mine()()))).all()
