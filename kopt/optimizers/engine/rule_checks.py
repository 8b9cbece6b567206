"""Mistakes of a rule's author, as errors that name the class and what it returned."""

from collections.abc import Mapping
from typing import Any

RESERVED = ("learning_rate", "multiplier", "weight_decay", "index", "layout", "update", "loss")
"""What a rule finds in its namespace beside slots and shared values."""


def stepped(rule: Any, g: Any, w: Any, s: Any, t: Any) -> tuple[Any, dict[str, Any]]:
    """Returns what `advance` of a rule returns, or raises an error saying what it should."""
    name = type(rule).__name__
    moved, new = check_step(name, "advance", rule.advance(g, w, s, t))
    check_slots(name, rule.slots, {k: getattr(s, k) for k in rule.slots}, new, w, moved)
    return moved, dict(new)


def direction(rule: Any, g: Any, w: Any, s: Any, t: Any) -> tuple[Any, dict[str, Any]]:
    """Returns what `rule` of a rule returns, or raises an error saying what it should."""
    name = type(rule).__name__
    u, new = check_step(name, "rule", rule.rule(g, w, s, t))
    check_slots(name, rule.slots, {k: getattr(s, k) for k in rule.slots}, new, w, w)
    return u, dict(new)


def settled(rule: Any, sums: dict[str, Any], s: Any, t: Any) -> dict[str, Any]:
    """Returns what `settle` of a rule returns, or raises an error saying what it should."""
    new = rule.settle(sums, s, t)
    check_shared(type(rule).__name__, rule.shared, new)
    return dict(new)


def check_names(owner: str, slots: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """Raises `ValueError` if slots and shared values cannot stand side by side in the namespace of a rule."""
    if not isinstance(slots, Mapping) or not all(hasattr(slot, "shape_for") for slot in slots.values()):
        raise TypeError(f"{owner}.slots must be a dictionary of slots, as {{'m': kopt.Slot()}}. Received: {slots!r}")
    for name in (*slots, *shared):
        if name in RESERVED or not name.isidentifier():
            raise ValueError(
                f"{owner}: {name!r} cannot be the name of a slot or shared value. Take an identifier other than "
                f"{', '.join(RESERVED)}."
            )
    if both := {*slots} & {*shared}:
        raise ValueError(f"{owner}: {', '.join(sorted(both))} are slots and shared values at once. Rename one of each.")


def check_step(owner: str, method: str, returned: Any) -> tuple[Any, Mapping[str, Any]]:
    """Returns what a rule returned: a tensor and a mapping.

    Raises:
        TypeError: it returned something else.
    """
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
        shown = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else type(returned).__name__
        first = "the direction" if method == "rule" else "the new weight"
        raise TypeError(
            f"{owner}.{method} must return {first} and a dictionary of the new slots: "
            f"`return u, {{'m': m}}`, or `return u, {{}}` without slots. Received: {shown}"
        )
    return returned


def check_slots(
    owner: str, slots: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], like: Any, moved: Any
) -> None:
    """Raises `ValueError` if the new slots are not those declared, or the shape of one, or of the weight, differs.

    Only a slot that remembers the first weights may be left out: it stays as it is.
    """
    declared = ", ".join(map(repr, old)) or "none"
    for name in new:
        if name not in old:
            raise ValueError(f"{owner} returned a slot {name!r} that it does not declare. Declared: {declared}.")
    for name in old:
        if name not in new and not slots[name].from_weight:
            raise ValueError(
                f"{owner} must return every slot: {name!r} is missing. Return it unchanged if it stays, as "
                f"{{'{name}': s.{name}}}. Declared: {declared}."
            )
    pairs = [("the new weight", like, moved), *((f"slot {name!r}", old[name], new[name]) for name in new)]
    for what, before, after in pairs:
        shape, expected = tuple(getattr(after, "shape", ())), tuple(before.shape)
        same = len(shape) == len(expected) and all(
            a is None or b is None or a == b for a, b in zip(shape, expected, strict=True)
        )
        if not same:
            raise ValueError(f"{owner} returned {what} of shape {shape}, where it is {expected}.")


def check_stack(owner: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a rule changed a slot that is one number for all weights that it moves together."""
    for name, value in new.items():
        if not len(value.shape) and value is not old[name]:
            raise ValueError(
                f"{owner} moves several weights together, for which its slot {name!r} is one number. Let `stacks` "
                "return False, or let the shape of the slot begin with the length of layout.stacks."
            )


def check_shared(owner: str, declared: Mapping[str, Any], settled: Mapping[str, Any]) -> None:
    """Raises `ValueError` if `settle` returned a shared value that is not declared."""
    if not isinstance(settled, Mapping):
        raise TypeError(f"{owner}.settle must return a dictionary of shared values. Received: {settled!r}")
    for name in settled:
        if name not in declared:
            known = ", ".join(map(repr, declared)) or "none"
            raise ValueError(f"{owner}.settle returned {name!r}, which is not a shared value. Declared: {known}.")
