"""Mistakes of users, one a line; the type checkers find each and nothing else (test_typed.py). Nobody runs it."""

from typing import Any

import kopt
from kopt import peft


class Mine(kopt.Optimizer):
    """A rule of one's own."""

    beta: kopt.Fraction = 0.9

    def rule(self, g: Any, w: Any, s: Any, t: Any) -> tuple[Any, dict[str, Any]]:
        return g, {}


kopt.Adam(1e-3, beta1=0.9)  # expect
peft.LoRA(rank=4)  # expect
kopt.schedules.WarmupLinear(1e-3, steps=80, warm=8)  # expect
kopt.Adam(on_nonfinite="stop")  # expect
kopt.Adam(1e-3, 0.9)  # expect
kopt.SWA(begin=3)  # expect
Mine(1e-3, betta=0.5)  # expect
kopt.Lion(beta_1="x")  # expect
kopt.Lookahead(kopt.Adam(), steps=5)  # expect
kopt.schedules.OneCycle(1e-3)  # expect
kopt.minimize(None, tolerence=1e-4)  # expect
peft.lora_plus("16")  # expect
