"""The conditions of the table of `situations.py`, each in words and as a function."""

from kopt.advice.parts import Condition

LARGE = 8192
"""Examples of a batch from which on one rate for all layers stops to be enough, of the two papers at that row."""


def goal(*names: str) -> Condition:
    """Returns the condition that the goal is one of these."""
    return Condition(f"goal {' or '.join(names)}", lambda facts: facts.goal in names)


FULL_BATCH = Condition("all examples in one batch", lambda facts: facts.full_batch and facts.workers == 1)
FEW_WEIGHTS = Condition("at most a million weights", lambda facts: facts.weights <= 10**6)
STEADY = Condition("neither dropout nor batch normalization", lambda facts: not facts.noise and not facts.batch_norm)
SQUARES = Condition("compiled with mean squared error alone", lambda facts: facts.squares)
ADAPTERS = Condition("adapters of kopt.peft", lambda facts: facts.adapters)
TABLES = Condition(
    "at least half of the weights in embedding tables (nine tenths beside attention)",
    lambda facts: facts.table_share >= (0.9 if facts.attention else 0.5),
)
HUGE_TABLES = Condition(
    "tables of 100 million numbers and more, or goal memory",
    lambda facts: facts.table_weights >= 10**8 or facts.goal == "memory",
)
HEAD = Condition(
    "dense layers behind them, without attention, convolutions or recurrent layers",
    lambda facts: facts.width > 1 and not (facts.attention or facts.convolution or facts.recurrent),
)
SHORT = Condition("weights in bfloat16 or float16", lambda facts: facts.short)
PRETRAINED = Condition("pretrained", lambda facts: facts.pretrained)
ATTENTION = Condition("attention", lambda facts: facts.attention)
CONVOLUTION = Condition("convolutions", lambda facts: facts.convolution)
NARROW = Condition("no kernel of more than 64 inputs and outputs", lambda facts: facts.width <= 64)
RECURRENT = Condition("recurrent layers", lambda facts: facts.recurrent)
NO_AVERAGE = Condition(
    "batch normalization, adapters or pretrained",
    lambda facts: facts.batch_norm or facts.adapters or facts.pretrained,
)
LARGE_BATCH = Condition(f"at least {LARGE:,} examples a step", lambda facts: facts.batch_size >= LARGE)
SEVERAL_WORKERS = Condition("several workers", lambda facts: facts.workers > 1)
FLOAT16 = Condition("layers that compute in float16", lambda facts: facts.float16)
