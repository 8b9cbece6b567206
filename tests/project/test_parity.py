"""docs/parity.md: every rule against its float64 reference, and against published implementations.

    python tests/project/test_parity.py --write

The differences from the references are computed here, those from the peers by `python -m benchmarks.parity`, which
needs them installed and writes tests/project/parity.json.
"""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
import references
from problems import RATE, descend, own_fields, rules, weights_and_gradients
from test_readme import reference

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "parity.md"
PEERS = json.loads((pathlib.Path(__file__).parent / "parity.json").read_text(encoding="utf-8"))
WITHOUT_PEER = {
    "AdaBoundW": "its peer is that of AdaBound, without the decoupled decay",
    "BGD": "fixed steps are torch's SGD; the line searches are checked against the reference alone",
    "LBFGS": "against SciPy, by evaluations, in tests/optimizers/test_fullbatch.py",
    "LazyAdam": "the rule is Adam's; lazy rows are checked against the rule on those rows",
    "ConditionalGradient": "that of TensorFlow Addons does not run with Keras 3",
    "GradientNoise": "random",
    "Route": "each weight by the rule of its route",
    "Switch": "each step by the rule whose turn it is",
    "ScheduleFree": "its peers are those of ScheduleFreeSGD and ScheduleFreeAdamW",
}
HEAD = """# Parity

Every rule of kopt is written a second time in float64 NumPy, from the paper (tests/support/references). The columns
"float32" are the largest difference of kopt's float32 weights from those of the reference after 20 steps, for a matrix,
a vector and a tensor of four axes together, relative to the largest weight, without decay and with λ = 0.1. The columns
"peer" are the largest difference of float64 weights from those of a published implementation over 20 steps.

The learning rates here are powers of two, 2⁻⁵ or 1: kopt's rate is a float32 number, and holds these exactly. It holds
0.01 to 2e-08, `abs(float(np.float32(0.01)) - 0.01) / 0.01`, so that at this rate the movement of float64 weights agrees
with that of a peer to 2e-08 and no better.

    python -m benchmarks.parity            # the peers; says what to install
    python tests/project/test_parity.py --write    # the references, and this page

| rule | reference | float32 | float32, decay | peer | peer, plain | peer, decay | remark |
|---|---|---:|---:|---|---:|---:|---|
"""


def difference(name, decay):
    """Returns the largest difference from the reference after 20 steps in float32."""
    weights, gradients = weights_and_gradients(20, ((4, 3), (3,), (2, 2, 3, 4)))
    optimizer = rules()[name](learning_rate=RATE, weight_decay=decay)
    config = optimizer.get_config()
    hyper = {k: config[k] for k in own_fields(type(optimizer))} | {"learning_rate": RATE, "weight_decay": decay}
    expected = references.descend(name, weights, gradients, **hyper)
    done = descend(optimizer, weights, gradients)
    scale = max(np.abs(y).max() for y in expected)
    return max(np.abs(x - y).max() for x, y in zip(done, expected, strict=True)) / scale


def row(name):
    """Returns the row of a rule."""
    peer = PEERS.get(name, {"peer": "", "why": WITHOUT_PEER.get(name, "")})
    numbers = [f"{difference(name, decay):.1e}" for decay in (0.0, 0.1)]
    peers = [f"{peer[k]:.1e}" if k in peer else "" for k in ("plain", "decayed")]
    return (
        "| " + " | ".join([f"`{name}`", reference(rules()[name]), *numbers, peer["peer"], *peers, peer["why"]]) + " |"
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", rules())
@pytest.mark.slow
def test_equals_the_reference_in_float32(name, decay):
    assert difference(name, decay) <= 1e-6


def test_every_rule_has_its_row():
    page = PAGE.read_text(encoding="utf-8")
    assert page.startswith(HEAD), "Run `python tests/project/test_parity.py --write`."
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.M)
    assert [name for name, _ in rows] == list(rules())
    for name, cells in rows:
        _, plain, decayed, peer, with_peer, _, why = map(str.strip, cells.split("|"))
        assert float(plain) <= 1e-6 and float(decayed) <= 1e-6
        assert peer == PEERS[name]["peer"] if name in PEERS else why == WITHOUT_PEER[name]
        assert name not in PEERS or float(with_peer) <= 1e-6 or why, f"{name} differs from its peer: say why"


if __name__ == "__main__" and "--write" in sys.argv:
    PAGE.write_text(HEAD + "".join(f"{row(name)}\n" for name in rules()), encoding="utf-8")
