"""The learning rates of the table of `situations.py`, each in words and as a function; of a schedule the peak."""

import math

from kopt.advice.parts import Rate


def fixed(rate: float) -> Rate:
    """Returns a rate that does not depend on anything."""
    return Rate(f"{rate:g}", lambda facts: rate)


def _of_small_models(updates: int) -> float:
    return min(0.03, max(0.01, 0.01 * math.sqrt(2000 / updates)))


BY_SIZE = Rate(
    "0.002 √(10⁷/weights), at most 0.01, for less than 2,000 updates at most 0.01 √(2,000/updates) and 0.03",
    lambda f: min(_of_small_models(f.updates), 0.002 * math.sqrt(1e7 / f.weights)),
)
OF_SOAP = Rate(
    "0.005 √(10⁷/weights), at most 0.025, for less than 2,000 updates at most 0.025 √(2,000/updates) and 0.075",
    lambda f: 2.5 * BY_SIZE.of(f),
)
BY_BATCH = Rate("0.1 · batch/256, at most 3.2", lambda f: min(3.2, 0.1 * f.batch_size / 256))
BY_ROOT_OF_BATCH = Rate("0.005 √(batch/32,768)", lambda f: 0.005 * math.sqrt(f.batch_size / 32768))
OF_TABLES = Rate(
    "0.01, for less than 2,000 updates 0.01 √(2,000/updates), at most 0.03", lambda f: _of_small_models(f.updates)
)
OF_ADAPTERS = Rate("0.0003; 0.00045 for less than 100 updates", lambda f: 4.5e-4 if f.updates < 100 else 3e-4)
OF_ADAFACTOR = Rate("0.01, pretrained 0.001, as a share of the weights", lambda f: 1e-3 if f.pretrained else 1e-2)
