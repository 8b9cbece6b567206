"""What is added to the answer of any situation, and what takes its place where it does not fit."""

from collections.abc import Mapping
from typing import Any

from kopt.advice import conditions as when
from kopt.advice import rates
from kopt.advice.parts import Addition, Alternative, Answer, Reason

ADDITIONS: tuple[Addition, ...] = (
    Addition(
        "rounding",
        when.SHORT,
        Reason(
            "kopt keeps the rounding error of each weight, without which small steps are lost.",
            "arXiv:2010.06192; docs/decisions/0004-kahan-rounding.md",
        ),
        Alternative("kopt.AdamW(1e-3, rounding='stochastic')", "2 bytes a weight for the errors are too many"),
    ),
    Addition(
        "loss scale",
        when.FLOAT16,
        Reason("Small gradients vanish in float16, so that the loss is multiplied.", "arXiv:1710.03740"),
        Alternative("keras.config.set_dtype_policy('mixed_bfloat16')", "the device has bfloat16: no scale"),
    ),
    Addition(
        "workers",
        when.SEVERAL_WORKERS,
        Reason(
            "The workers share each batch, and come to the weights of one process.",
            "docs/distribution.md",
        ),
        Alternative("kopt.distribution.LocalSGD", "the network is slow: a mean each 16 steps, arXiv:1805.09767"),
    ),
)

SMALLER: tuple[tuple[Answer | Mapping[str, Any], Reason], ...] = (
    ({"state_dtype": "bfloat16"}, Reason("Slots in bfloat16 are half as large.", "benchmarks/README.md#memory")),
    ({"state_dtype": "int8"}, Reason("Slots in 8 bits are a quarter as large, in blocks.", "arXiv:2110.02861")),
    (
        Answer("Adafactor", rates.OF_ADAFACTOR, "WarmupCosine", 0.05),
        Reason("The second moment of a kernel is that of its rows and columns.", "arXiv:1804.04235"),
    ),
    (
        Answer("SGD", rates.BY_BATCH, "WarmupCosine", 0.05, arguments={"global_clipnorm": 1.0}),
        Reason("Without any state.", "docs/optimizers.md#rules"),
    ),
)
"""What takes the place of an answer that does not fit within `memory_limit`, in turn: options for it, or answers."""
