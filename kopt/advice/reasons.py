"""The reasons that several rows of the table of `situations.py` have."""

from kopt.advice.parts import Reason

SMALL_MODELS = Reason(
    "The best rates of small models are 0.01 to 0.03, those of large ones fall: GPT-3's, of 125 million to 1.3 billion "
    "weights, are within a fifth of this rule.",
    "arXiv:2005.14165, table 2.1; benchmarks/README.md#first-learning-rates; benchmarks/README.md#what-recommend-gives",
)
HELD = Reason(
    "A rate that stays high until the last third, and falls then, ends where a cosine does, with longer steps before.",
    "arXiv:2405.18392",
)
BASELINE = Reason(
    "It is the baseline of AlgoPerf, whose tasks have nets of all kinds, recurrent ones among them.", "arXiv:2306.07179"
)
ROWS = Reason(
    "Only the rows that a batch reads are moved: hundreds of times faster than the whole table.",
    "benchmarks/README.md#embedding-tables",
)
