"""A sample of the kills of `python -m benchmarks.kills`."""

import random

import pytest

from benchmarks import kills


@pytest.mark.slow
def test_a_sample_of_kills():
    found = list(kills.kill_and_restart("mnist", 3, random.Random(3)))
    assert len(found) == 3 and not [kill.wrong for kill in found if kill.wrong]
    assert kills.table(found)[2].startswith("| mnist | 3 |")


def test_what_is_lost_is_noted():
    class Life:
        def __init__(self, begin, *steps):
            self.told = {"from": [begin], "step": list(steps)}

        def places(self, what):
            return self.told[what]

    def kill():
        return kills.Kill("mnist", "SIGKILL", "training", False)

    several = []
    reached = kills.note_loss(several, 0, Life((0, 0), (0, 5), (1, 3)), 6)
    several.append(kill())
    assert reached == 9
    assert kills.note_loss(several, reached, Life((1, 1), (1, 2)), 6) == 8
    assert several[0].lost == 2 and not several[0].wrong
    several.append(kill())
    kills.note_loss(several, 30, Life((0, 4)), 6)
    assert several[1].lost == 26 and several[1].wrong == "26 steps lost"


def test_what_differs_is_named():
    whole = {"a": 1.0, "b": 2.0, "history": [{"epoch": "1"}]}
    assert not kills.differs(whole, dict(whole))
    assert kills.differs(whole | {"b": 2.0000001}, whole) == "other than without kills: b"
    assert "history" in kills.differs(whole | {"history": []}, whole)


def test_kills_in_a_file_count(monkeypatch, capsys):
    asked = []

    def kill(recipe, count, draw):
        asked.append((recipe, count))
        for i in range(count):
            if i == 2:
                raise KeyboardInterrupt
            yield kills.Kill(recipe, "SIGTERM", "training", True, lost=i)

    monkeypatch.setattr(kills, "kill_and_restart", kill)
    both = ["--recipes", "mnist", "recommendation"]
    monkeypatch.setattr("sys.argv", ["kills", "--kills", "6", *both, "--found", "kills.jsonl"])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            kills.main()
    assert kills.main() == 0
    assert asked == [("mnist", 3), ("mnist", 1), ("recommendation", 3), ("mnist", 0), ("recommendation", 1)]
    row = "| recommendation | 3 | SIGKILL 0, SIGTERM 3, SIGINT 0, SIGHUP 0 | 0, 3, 0 | 3 | 1 of 4 | 0 |"
    assert row in capsys.readouterr().out
