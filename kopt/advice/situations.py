"""The rules of `kopt.recommend`, as one table: when, what, why, from where, and what else.

The first situation whose conditions all hold is the answer, and so the order counts. docs/choosing.md is made from this
table, too. A source is a paper, an address, or a page of this repository, whose figures were measured by the command
beside them.
"""

from kopt.advice import conditions as when
from kopt.advice import rates
from kopt.advice.parts import Alternative, Answer, Reason, Situation
from kopt.advice.reasons import BASELINE, HELD, SMALL_MODELS
from kopt.advice.tables import TABLES

SITUATIONS: tuple[Situation, ...] = (
    Situation(
        "least squares to many digits",
        (when.goal("exact"), when.FULL_BATCH, when.FEW_WEIGHTS, when.SQUARES),
        Answer("LevenbergMarquardt", arguments={"radius": 0.1}),
        (
            Reason(
                "It sees the residuals one by one, and ends at six and more digits where sums of squares are to be "
                "small: as often as MINPACK on the regressions of NIST.",
                "benchmarks/README.md#least-squares",
            ),
            Reason("Steps within a region of trust, as long as they keep what they promise.", "doi:10.1007/BFb0067700"),
        ),
        (
            Alternative("kopt.LBFGS()", "the loss is no sum of squares, or millions of residuals do not fit"),
            Alternative("kopt.LBFGSB(lower=0.0, upper=1.0)", "weights have bounds; with kopt.minimize"),
        ),
    ),
    Situation(
        "a loss to many digits",
        (when.goal("exact"),),
        Answer("LBFGS", whole=True),
        (
            Reason(
                "On physics-informed networks Adam alone ends far higher than L-BFGS does after it.",
                "arXiv:2402.01868",
            ),
            Reason("Its line search sets the length of each step: there is no rate to tune.", "doi:10.1007/BF01589116"),
        ),
        (
            Alternative(
                "kopt.Switch(kopt.Adam(1e-3), second=kopt.LBFGS(), after=1000)",
                "the start is far off: batches first, then a second fit with all examples",
            ),
            Alternative("kopt.LevenbergMarquardt()", "the loss is the mean of squared errors, of one batch"),
        ),
    ),
    Situation(
        "all examples at once",
        (when.goal("fast", "no-tuning"), when.FULL_BATCH, when.FEW_WEIGHTS, when.STEADY),
        Answer("LBFGS", whole=True),
        (
            Reason(
                "Without noise in the gradient, its differences tell the curvature, and no rate is to be tuned.",
                "doi:10.1007/BF01589116",
            ),
            Reason(
                "LBFGSB, its kin, needs as many evaluations as SciPy's: 299 against 317.",
                "benchmarks/README.md#within-bounds",
            ),
        ),
        (
            Alternative("kopt.Rprop()", "the loss has kinks, or memory is short"),
            Alternative("kopt.AdamW(1e-3)", "the model overfits: with batches, as goal generalize"),
        ),
    ),
    Situation(
        "adapters",
        (when.goal("fast", "generalize", "memory"), when.ADAPTERS),
        Answer(
            "AdamW", rates.OF_ADAPTERS, "WarmupLinear", 0.06, arguments={"weight_decay": 0.0, "global_clipnorm": 1.0}
        ),
        (
            Reason(
                "Adapters want about ten times the rate of full fine-tuning, whatever their rank, fifteen times for "
                "less than 100 updates; small batches are better than large ones.",
                "https://thinkingmachines.ai/blog/lora/",
            ),
            Reason(
                "Here LoRA was trained best at 0.0007 and full fine-tuning at 0.0001.",
                "recipes/README.md#results",
            ),
        ),
        (
            Alternative("kopt.Prodigy(1.0)", "no rate is known; with a schedule that falls to 0"),
            Alternative("kopt.AdamW(3e-4, multipliers=[(r'lora_B', 16.0)])", "LoRA+, arXiv:2402.12354"),
            Alternative("kopt.AdamW(3e-4, state_dtype='int8')", "the adapters are large themselves"),
        ),
    ),
    *TABLES,
    Situation(
        "fine-tuning of a transformer",
        (when.goal("fast", "generalize"), when.PRETRAINED, when.ATTENTION),
        Answer(
            "AdamW", rates.fixed(3e-5), "WarmupLinear", 0.1, arguments={"weight_decay": 0.01, "global_clipnorm": 1.0}
        ),
        (
            Reason("BERT's own choice of rates: 5e-5, 3e-5 and 2e-5, with a linear fall.", "arXiv:1810.04805"),
            Reason(
                "Small rates with a warm-up, the bias corrected, keep runs from failing by chance.",
                "arXiv:2006.04884",
            ),
        ),
        (
            Alternative(
                "kopt.peft.LoRA(r=8, target_modules=['query', 'value'])",
                "1 % of the weights are enough, or memory is short",
            ),
            Alternative("kopt.AdamW(1e-4)", "a small one: MiniLM was best at 0.0001, recipes/README.md#results"),
        ),
    ),
    Situation(
        "fine-tuning of another model",
        (when.goal("fast", "generalize"), when.PRETRAINED),
        Answer("Momentum", rates.fixed(3e-3), "WarmupCosine", 0.05),
        (Reason("One rate for twenty tasks: 0.003 with momentum 0.9, falling to the end.", "arXiv:1912.11370"),),
        (
            Alternative("kopt.AdamW(1e-4)", "the new task is far from the old one, or has no batch normalization"),
            Alternative("kopt.SGD(3e-3)", "not even one slot fits"),
        ),
    ),
    Situation(
        "weights in 16 bits",
        (when.goal("fast", "generalize"), when.SHORT),
        Answer("StableAdamW", rates.BY_SIZE, "WarmupCosine", 0.05, arguments={"weight_decay": 0.1}),
        (
            Reason(
                "Steps are clipped by how far Adam's second moment lags behind: no spikes in low precision.",
                "arXiv:2304.13013",
            ),
            SMALL_MODELS,
        ),
        (Alternative("kopt.Lion(1e-4)", "half of the state; rates three to ten times smaller than AdamW's"),),
    ),
    Situation(
        "little memory",
        (when.goal("memory"),),
        Answer("Adafactor", rates.OF_ADAFACTOR, "WarmupCosine", 0.05),
        (
            Reason(
                "The second moment of a kernel is that of its rows and columns: nearly no state.", "arXiv:1804.04235"
            ),
            Reason("T5 was trained with it at 0.01, and fine-tuned at 0.001.", "arXiv:1910.10683"),
            Reason("With momentum, beta_1=0.9, it is as good as Adam where both are tuned.", "arXiv:2407.07972"),
            Reason("Bytes a parameter of every rule are listed.", "docs/optimizers.md#rules-that-save-memory"),
        ),
        (
            Alternative("kopt.AdamMini(1e-3)", "Adam's quality at half of its state"),
            Alternative(
                "kopt.AdamW(1e-3, state_dtype='int8')", "a quarter of the state, and two to three times its step"
            ),
            Alternative("kopt.GaLore(kopt.AdamW(1e-3), rank=128)", "kernels are large, of a thousand inputs and more"),
            Alternative("kopt.Lion(1e-4, state_dtype='bfloat16')", "2 bytes a weight are there"),
        ),
    ),
    Situation(
        "no tuning, from weights that are not to be averaged",
        (when.goal("no-tuning"), when.NO_AVERAGE),
        Answer("Prodigy", rates.fixed(1.0), "WarmupCosine"),
        (
            Reason("It finds the rate itself: the peak of its schedule is 1.", "arXiv:2306.06101"),
            Reason(
                "Rules without a rate come close to NadamW at numbers that fit all tasks of AlgoPerf.",
                "arXiv:2505.24005",
            ),
            Reason(
                "The weights are not averaged, so that the statistics of batch normalization fit them.",
                "arXiv:1803.05407",
            ),
        ),
        (
            Alternative("kopt.DAdaptAdam()", "Prodigy's rate turns out too large"),
            Alternative("kopt.LearningRateFinder()", "a sweep of 100 steps is allowed: then goal fast at that rate"),
        ),
    ),
    Situation(
        "no tuning",
        (when.goal("no-tuning"),),
        Answer("ScheduleFreeAdamW", rates.fixed(2.5e-3), "WarmupStableDecay", 0.05, shape={"decay": 1}, averaged=True),
        (
            Reason(
                "It won the track of AlgoPerf in which nothing is tuned, 8 % faster than the baseline.",
                "arXiv:2502.15015",
            ),
            Reason("An average in place of a schedule: training can end at any time.", "arXiv:2405.15682"),
        ),
        (
            Alternative("kopt.Prodigy(1.0)", "the rate itself is in doubt; with a schedule that falls to 0"),
            Alternative("kopt.COCOB()", "small and nearly convex: not even a first rate"),
        ),
    ),
    Situation(
        "large batches",
        (when.goal("fast", "generalize"), when.LARGE_BATCH),
        Answer("LAMB", rates.BY_ROOT_OF_BATCH, "WarmupLinear", 0.1, arguments={"weight_decay": 0.01}),
        (
            Reason(
                "Each layer moves in units of its own length; the rate grows with the root of the batch, and 32,768 "
                "examples a step trained BERT without another change.",
                "arXiv:1904.00962",
            ),
            Reason("Well-tuned Adam and Nesterov do as well: worth it only if you tune.", "arXiv:2102.06356"),
        ),
        (
            Alternative("kopt.AdamW(1e-3)", "five trials and more are allowed"),
            Alternative("kopt.LARS(1.0, momentum=0.9)", "convolutional nets"),
            Alternative("kopt.distribution.AdaptiveBatch", "the batch may begin small, and grow with the noise"),
        ),
    ),
    Situation(
        "narrow recurrent nets",
        (when.RECURRENT, when.NARROW),
        Answer("SOAP", rates.OF_SOAP, "WarmupStableDecay", 0.02, 0.3, arguments={"global_clipnorm": 1.0}),
        (
            Reason("In the eigenbases of Shampoo, Adam needs 40 % fewer steps on language models.", "arXiv:2409.11321"),
            Reason(
                "A step in time waits for the one before, so that the optimizer is a small part of a training step; on "
                "a GRU of 32 a third of NadamW's steps was enough.",
                "benchmarks/README.md#what-recommend-gives",
            ),
            Reason("Gradients through time explode now and then: their norm is clipped.", "arXiv:1211.5063"),
            HELD,
        ),
        (
            Alternative("kopt.NadamW(0.01, global_clipnorm=1.0)", "products of matrices are slow on the device"),
            Alternative("kopt.RMSprop(1e-3, global_clipnorm=1.0)", "the targets drift"),
        ),
    ),
    Situation(
        "recurrent nets",
        (when.RECURRENT,),
        Answer("NadamW", rates.BY_SIZE, "WarmupStableDecay", 0.02, 0.3, arguments={"global_clipnorm": 1.0}),
        (
            Reason("Gradients through time explode now and then: their norm is clipped.", "arXiv:1211.5063"),
            Reason("The rate matters most by far, momentum hardly.", "arXiv:1503.04069"),
            BASELINE,
            SMALL_MODELS,
            HELD,
        ),
        (
            Alternative("kopt.RMSprop(1e-3, global_clipnorm=1.0)", "the targets drift"),
            Alternative("kopt.AdaptiveClip(kopt.NadamW(1e-3))", "no bound is known"),
        ),
    ),
    Situation(
        "a transformer, for its quality",
        (when.goal("generalize"), when.ATTENTION),
        Answer(
            "AdamW",
            rates.BY_SIZE,
            "WarmupCosine",
            0.05,
            arguments={"beta_2": 0.95, "weight_decay": 0.1, "global_clipnorm": 1.0},
        ),
        (
            Reason(
                "Of Lion, Sophia and AdamW at 2.7 billion weights, AdamW was best on other tasks.", "arXiv:2507.08472"
            ),
            Reason("A decay of 0.1 is good for all rules and lengths.", "arXiv:2509.01440"),
            SMALL_MODELS,
        ),
        (
            Alternative(
                "kopt.AdEMAMix(1e-3, weight_decay=0.1)", "the training is long: first at scale, arXiv:2509.01440"
            ),
            Alternative("kopt.Muon(1e-3, weight_decay=0.1)", "the loss in the least time is what counts"),
        ),
    ),
    Situation(
        "a transformer from scratch",
        (when.ATTENTION,),
        Answer(
            "Muon",
            rates.BY_SIZE,
            "WarmupStableDecay",
            0.02,
            0.3,
            arguments={"weight_decay": 0.1, "global_clipnorm": 1.0},
        ),
        (
            Reason(
                "Rules for matrices are the fastest: 1.4 times AdamW at 0.1 billion weights, 1.1 times at 1.2 billion.",
                "arXiv:2509.02046",
            ),
            Reason("Its steps are as long as AdamW's, so that AdamW's rate and decay hold.", "arXiv:2502.16982"),
            SMALL_MODELS,
            HELD,
        ),
        (
            Alternative("kopt.SOAP(3e-3)", "steps are dear beside the optimizer, as with long sequences"),
            Alternative(
                "kopt.EMANesterov(kopt.Hyperball(kopt.Muon(0.01)))", "you like records: modded-nanogpt, track 3"
            ),
            Alternative("kopt.AdamW(1e-3, weight_decay=0.1)", "results are to be compared with others'"),
        ),
    ),
    Situation(
        "convolutional nets, for their quality",
        (when.goal("generalize"), when.CONVOLUTION),
        Answer("NAG", rates.BY_BATCH, "WarmupCosine", 0.05, arguments={"weight_decay": 5e-4}),
        (
            Reason("SGD with momentum ends with better test errors than adaptive rules.", "arXiv:1705.08292"),
            Reason("Its rate grows with the batch, after a warm-up.", "arXiv:1706.02677"),
            Reason("Tuned well, NadamW is as good: the difference is one of the budget.", "arXiv:1910.05446"),
        ),
        (
            Alternative("kopt.SAM.of", "twice the time is allowed: a flat minimum, arXiv:2010.01412"),
            Alternative("kopt.AdamW(1e-3, weight_decay=0.05)", "no batch normalization, or blocks as in ConvNeXt"),
        ),
    ),
    Situation(
        "convolutional nets",
        (when.CONVOLUTION,),
        Answer("Muon", rates.BY_SIZE, "WarmupStableDecay", 0.02, 0.3, arguments={"weight_decay": 0.01}),
        (
            Reason(
                "Kernels as matrices of fan-in and fan-out: 94 % on CIFAR-10 in 2.6 s of an A100 in place of 3.3.",
                "https://kellerjordan.github.io/posts/muon/",
            ),
            SMALL_MODELS,
            HELD,
        ),
        (
            Alternative("kopt.NAG(0.05, weight_decay=5e-4)", "the test error is what counts: goal generalize"),
            Alternative("kopt.NadamW(1e-3)", "products of matrices are slow on the device"),
        ),
    ),
    Situation(
        "dense nets, for their quality",
        (when.goal("generalize"),),
        Answer("AdamW", rates.BY_SIZE, "WarmupCosine", 0.05, arguments={"weight_decay": 0.1}),
        (
            Reason(
                "Well-regularized dense nets beat trees on tables: decay is a part of each of the best mixtures.",
                "arXiv:2106.11189",
            ),
            SMALL_MODELS,
        ),
        (
            Alternative("kopt.SWA(start=5)", "as a callback: the mean of the last epochs, arXiv:1803.05407"),
            Alternative("kopt.SAM.of", "twice the time is allowed, arXiv:2010.01412"),
        ),
    ),
    Situation(
        "narrow dense nets",
        (when.NARROW,),
        Answer("NadamW", rates.BY_SIZE, "WarmupStableDecay", 0.02, 0.3),
        (
            Reason(
                "On three spirals, with layers of 32, the trials of NadamW needed 69 steps, those of Muon 147.",
                "benchmarks/README.md#what-recommend-gives",
            ),
            BASELINE,
            SMALL_MODELS,
            HELD,
        ),
        (
            Alternative("kopt.SOAP(0.05)", "steps are dear beside the optimizer"),
            Alternative("kopt.Prodigy(1.0)", "no rate is known: goal no-tuning"),
        ),
    ),
    Situation(
        "anything else",
        (),
        Answer("Muon", rates.BY_SIZE, "WarmupStableDecay", 0.02, 0.3),
        (
            Reason(
                "A rule that sees kernels as matrices won AlgoPerf, in seconds too: 28 % faster than NadamW.",
                "arXiv:2502.15015",
            ),
            Reason("Its steps are as long as AdamW's, so that AdamW's rate holds.", "arXiv:2502.16982"),
            SMALL_MODELS,
            HELD,
        ),
        (
            Alternative("kopt.NadamW(1e-3)", "kernels are so large that their products take long: AlgoPerf's baseline"),
            Alternative("kopt.SOAP(3e-3)", "steps are dear beside the optimizer"),
            Alternative("kopt.Prodigy(1.0)", "no rate is known: goal no-tuning"),
        ),
    ),
)
