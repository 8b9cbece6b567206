"""The table of the times of all rules is complete, and compared as its page says; no time is measured here."""

import kopt
from benchmarks import rules

NAMES = [cls.__name__ for cls in kopt.registry().values() if cls.__module__.startswith("kopt.")]


def test_the_table_names_every_rule():
    assert sorted(rules.written()) == sorted(NAMES)


def test_a_rule_is_slower_only_if_it_is_again_and_again():
    asked = []

    def ratio(name, rounds):
        asked.append((name, rounds))
        return {"Adam": 1.0, "Lion": 9.0 if rounds == rules.FEW else 1.5, "SGD": 0.9}[name]

    found = rules.faults({"Adam": 1.0, "Lion": 1.0, "SGD": 0.5, "Gone": 1.0}, ["Adam", "Lion", "SGD", "New"], ratio)
    assert [
        (fault.split()[0], words in fault) for fault, words in zip(found, ("0.90", "--write", "no rule"), strict=True)
    ] == [
        ("SGD", True),
        ("New", True),
        ("Gone", True),
    ]
    few, many = rules.FEW, 3 * rules.FEW
    assert asked == [("Adam", few), ("Lion", few), ("Lion", many), ("SGD", few), ("SGD", many), ("SGD", many)]


def test_streams_are_those_of_the_slots():
    counts = {"SGD": 3, "Lion": 7, "Adam": 11, "AdamW": 11, "COCOB": 23, "DoG": None, "LBFGS": None, "Cautious": None}
    assert {name: rules.streams(getattr(kopt, name)()) for name in counts} == counts
