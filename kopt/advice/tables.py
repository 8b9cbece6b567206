"""The rows of the table of `situations.py` for models whose weights are mostly in embedding tables."""

from kopt.advice import conditions as when
from kopt.advice import rates
from kopt.advice.parts import Alternative, Answer, Reason, Situation
from kopt.advice.reasons import HELD, ROWS

TABLES: tuple[Situation, ...] = (
    Situation(
        "tables that fill the memory",
        (when.TABLES, when.HUGE_TABLES),
        Answer(
            "AdamW", rates.BY_SIZE, "WarmupStableDecay", 0.02, 0.3, tables=Answer("RowwiseAdaGrad", rates.fixed(0.02))
        ),
        (
            Reason(
                "One number a row in place of two a weight: a table of width 64 has 1/128 of Adam's state.",
                "arXiv:2104.05158",
            ),
            ROWS,
        ),
        (
            Alternative("kopt.LazyAdam(0.01)", "Adam's two slots fit"),
            Alternative("kopt.LazyAdam(0.01, state_dtype='int8')", "they fit in 8 bits"),
            Alternative("kopt.FTRL(0.05)", "a linear model whose rare columns are to be 0"),
        ),
    ),
    Situation(
        "tables before dense layers",
        (when.goal("fast", "generalize"), when.TABLES, when.HEAD),
        Answer("AdaGrad", rates.fixed(0.07), "WarmupStableDecay", 0.02, 0.3),
        (
            ROWS,
            Reason(
                "A row that is read often gets short steps, one that is read seldom long ones: it does not learn the "
                "noise of its few examples by heart.",
                "https://jmlr.org/papers/v12/duchi11a.html",
            ),
            Reason("Wide & Deep trains tables and dense layers with it.", "arXiv:1606.07792"),
            Reason(
                "Clicks were learnt in 0.6 times the steps of LazyAdam.",
                "benchmarks/README.md#what-recommend-gives",
            ),
            HELD,
        ),
        (
            Alternative("kopt.LazyAdam(0.01)", "the dense layers are deep, and most of what is to be learnt is there"),
            Alternative("kopt.RowwiseAdaGrad(0.02)", "the tables fill the memory"),
        ),
    ),
    Situation(
        "tables",
        (when.goal("fast", "generalize"), when.TABLES),
        Answer("LazyAdam", rates.OF_TABLES, "WarmupStableDecay", 0.02, 0.3),
        (
            ROWS,
            Reason(
                "Rows are read seldom, and bear a larger rate than kernels: 0.03 was best for the small factorization.",
                "benchmarks/README.md#first-learning-rates",
            ),
            HELD,
        ),
        (
            Alternative("kopt.AdaGrad(0.05)", "rows are read once or twice, as with DLRM, arXiv:1906.00091"),
            Alternative("kopt.RowwiseAdaGrad(0.02)", "the tables fill the memory"),
        ),
    ),
)
