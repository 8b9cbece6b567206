"""Each method beside torch peft, on a layer of each kind."""

import pytest
from method_peers import CASES, KINDS, NOT_HERE, compare

pytest.importorskip("torch")
pytest.importorskip("peft")


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LIMIT = 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_both_ways(case, kind):
    pytest.importorskip("peft")
    found = compare(case, kind)
    if found is None:
        assert kind in ("Conv2D", "Embedding") or (case, kind) in NOT_HERE
        return
    ours, theirs = found["count"]
    assert ours == theirs
    assert found["effect"] > 0.01
    for way in ("peft to kopt", "kopt to peft", "merged"):
        assert found[way] < LIMIT * max(1, found["effect"]), way
