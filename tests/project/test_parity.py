"""docs/parity.md: every rule against its float64 reference, and against published implementations."""

import re

import pytest
import references
from generate import COMMAND, PARITY, PEERS, WITHOUT_PEER, difference
from problems import rules


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", rules())
@pytest.mark.slow
def test_equals_the_reference_in_float32(name, decay):
    assert difference(name, decay) <= references.allowed(name, 1e-6)


def test_every_rule_has_its_row():
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PARITY.read_text(encoding="utf-8"), re.M)
    assert [name for name, _ in rows] == list(rules()), f"Run `{COMMAND}`."
    for name, cells in rows:
        _, plain, decayed, peer, with_peer, _, why = map(str.strip, cells.split("|"))
        assert max(float(plain), float(decayed)) <= references.allowed(name, 1e-6)
        assert name in PEERS or name in WITHOUT_PEER, (
            f"{name} has no peer. Give it one in benchmarks/parity.py, and run that; or say in WITHOUT_PEER of "
            f"docs/generate.py why there is none. Then run `{COMMAND}`."
        )
        assert peer == PEERS[name]["peer"] if name in PEERS else why == WITHOUT_PEER[name], f"Run `{COMMAND}`."
        assert name not in PEERS or float(with_peer) <= 1e-6 or why, f"{name} differs from its peer: say why"
