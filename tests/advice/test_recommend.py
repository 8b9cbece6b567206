"""`kopt.recommend`: every row of the table, what each argument changes, and that its answers train."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from keras import layers

import kopt
from kopt.advice import ADDITIONS, SITUATIONS, SMALLER, rates
from kopt.advice.recommend import Advice

RUN = {"batch_size": 16, "dataset_size": 320}
ALL = {"batch_size": 320, "dataset_size": 320}


def dense(*body, **options):
    model = keras.Sequential([keras.Input((10,)), layers.Dense(16, "relu"), *body, layers.Dense(1)], **options)
    model.build()
    return model


def wide():
    body = [layers.Dense(80, "relu"), layers.Dense(80, "relu")]
    return keras.Sequential([keras.Input((10,)), *body, layers.Dense(1)])


def squares():
    model = dense()
    model.compile("sgd", "mse")
    return model


def convolutions():
    body = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((8, 8, 1)), *body, layers.Dense(3)])


def attention():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(30, 8)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(tokens, layers.Dense(30)(layers.Dense(16, "gelu")(x)))


def recurrent(width=8):
    return keras.Sequential([keras.Input((5, 3)), layers.LSTM(width), layers.Dense(1)])


def tables():
    pair = keras.Input((2,), dtype="int32")
    user, item = (layers.Embedding(400, 8)(pair[:, i]) for i in range(2))
    return keras.Model(pair, layers.Dense(1)(layers.Concatenate()([user, item])))


def clicks():
    pair = keras.Input((2,), dtype="int32")
    both = [layers.Embedding(400, 8)(pair[:, i]) for i in range(2)]
    return keras.Model(pair, layers.Dense(1)(layers.Dense(8, "relu")(layers.Concatenate()(both))))


def factors():
    pair = keras.Input((2,), dtype="int32")
    user, item = (layers.Embedding(400, 8, name=name)(pair[:, i]) for i, name in enumerate(("user", "item")))
    return keras.Model(pair, layers.Dot(axes=1)([user, item]))


def adapters():
    model = dense()
    return kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=2, target_modules=[model.layers[0].name]))


def short():
    body = [layers.Dense(16, "relu", dtype="bfloat16"), layers.Dense(1, dtype="bfloat16")]
    return keras.Sequential([keras.Input((10,)), *body])


CASES = {
    "least squares to many digits": (squares, ALL | {"goal": "exact"}, "LevenbergMarquardt"),
    "a loss to many digits": (dense, RUN | {"goal": "exact"}, "LBFGS"),
    "all examples at once": (dense, ALL, "LBFGS"),
    "adapters": (adapters, RUN, "AdamW"),
    "tables that fill the memory": (tables, RUN | {"goal": "memory"}, "Route"),
    "tables before dense layers": (clicks, RUN, "AdaGrad"),
    "tables": (factors, RUN, "LazyAdam"),
    "fine-tuning of a transformer": (attention, RUN | {"pretrained": True}, "AdamW"),
    "fine-tuning of another model": (convolutions, RUN | {"pretrained": True}, "Momentum"),
    "weights in 16 bits": (short, RUN, "StableAdamW"),
    "little memory": (attention, RUN | {"goal": "memory"}, "Adafactor"),
    "no tuning, from weights that are not to be averaged": (convolutions, RUN | {"goal": "no-tuning"}, "Prodigy"),
    "no tuning": (dense, RUN | {"goal": "no-tuning"}, "ScheduleFreeAdamW"),
    "large batches": (dense, {"batch_size": 8192, "dataset_size": 80_000}, "LAMB"),
    "narrow recurrent nets": (recurrent, RUN, "SOAP"),
    "recurrent nets": (lambda: recurrent(80), RUN, "NadamW"),
    "a transformer, for its quality": (attention, RUN | {"goal": "generalize"}, "AdamW"),
    "a transformer from scratch": (attention, RUN, "Muon"),
    "convolutional nets, for their quality": (convolutions, RUN | {"goal": "generalize"}, "NAG"),
    "convolutional nets": (convolutions, RUN, "Muon"),
    "dense nets, for their quality": (dense, RUN | {"goal": "generalize"}, "AdamW"),
    "narrow dense nets": (dense, RUN, "NadamW"),
    "anything else": (wide, RUN, "Muon"),
}
every_case = pytest.mark.parametrize("name", CASES)


def advised(name, **changed):
    make, run, _ = CASES[name]
    return kopt.recommend(make(), **(run | changed))


def made(code):
    return eval(code, {"kopt": kopt, "keras": keras})


def config(optimizer):
    """The arguments of an optimizer and of those inside of it, without the names that Keras makes up."""

    def nameless(value):
        if isinstance(value, dict):
            return {k: nameless(v) for k, v in value.items() if k != "name"}
        return [nameless(v) for v in value] if isinstance(value, (list, tuple)) else value

    return nameless(optimizer.get_config())


# ------------------------------------------------------------------------------------------------- the table


def test_every_situation_has_a_case():
    assert list(CASES) == [row.name for row in SITUATIONS]
    answers = {(row.answer.rule, str(row.answer.arguments), str(row.answer.rate)) for row in SITUATIONS}
    assert len(answers) > 12


@every_case
def test_the_answer_of_each_situation(name):
    advice = advised(name)
    assert advice.situation == name and type(advice.optimizer).__name__ == CASES[name][2]
    assert config(made(advice.code)) == config(advice.optimizer), "what is copied is what was returned"
    assert advice.reasons and advice.alternatives and advice.code in advice.usage
    assert advice.state_bytes < advice.total_bytes


@pytest.mark.parametrize(
    "name", [name if name == "tables" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_answer_trains(name):
    keras.utils.set_random_seed(0)
    model = CASES[name][0]()
    run = CASES[name][1] | ({"batch_size": 8192, "dataset_size": 8192 * 3} if name == "large batches" else {})
    advice = kopt.recommend(model, **(run | {"budget": 4}))
    rng, size = np.random.default_rng(0), run["dataset_size"]
    shape, whole = model.input_shape[1:], model.inputs[0].dtype == "int32"
    x = rng.integers(30, size=(size, *shape)) if whole else rng.normal(size=(size, *shape)).astype("float32")
    outputs = model.output_shape[1:]
    classes = outputs[-1] > 1
    y = rng.integers(outputs[-1], size=(size, *outputs[:-1])) if classes else x.reshape(size, -1)[:, :1] / 3 + 1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if classes else "mse"
    if "minimize" in advice.usage:
        before = float(np.mean((model.predict(x, verbose=0) - y) ** 2))
        assert kopt.minimize(model, x, y, optimizer=advice.optimizer, max_evaluations=4).loss < before
        return
    model.compile(advice.optimizer, loss)
    fit = model.fit(x, y, batch_size=run["batch_size"], epochs=4, callbacks=[*advice.callbacks], verbose=0)
    losses = fit.history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize("row", SITUATIONS, ids=lambda row: row.name)
def test_alternatives_can_be_made(row):
    for other in row.alternatives:
        assert made(other.code) is not None and other.when


def test_every_reason_has_a_source():
    reasons = [r for row in SITUATIONS for r in row.reasons] + [a.reason for a in ADDITIONS] + [r for _, r in SMALLER]
    for reason in reasons:
        for part in reason.source.split("; "):
            assert re.match(r"arXiv:\d{4}\.\d{4,5}|doi:10\.|https://|\w[\w/-]*\.md", part), reason
    papers = {part for r in reasons for part in r.source.split("; ") if part.startswith("arXiv")}
    assert len(papers) > 20


def test_rates_of_large_models_are_those_of_gpt_3():
    """arXiv:2005.14165, table 2.1."""
    published = {125e6: 6e-4, 350e6: 3e-4, 760e6: 2.5e-4, 1.3e9: 2e-4}
    facts = advised("anything else").facts
    for weights, rate in published.items():
        assert rates.BY_SIZE.of(dataclasses.replace(facts, weights=int(weights))) == pytest.approx(rate, rel=0.2)


def test_rates_of_small_models_fall_with_the_length_of_the_run():
    facts = dataclasses.replace(advised("narrow dense nets").facts, budget=1.0)
    of = {n: dataclasses.replace(facts, dataset_size=16 * n) for n in (100, 800, 5000)}
    assert [rates.BY_SIZE.of(of[n]) for n in of] == pytest.approx([0.03, 0.01 * 2.5**0.5, 0.01])
    assert [rates.OF_TABLES.of(of[n]) for n in of] == [rates.BY_SIZE.of(of[n]) for n in of]
    assert [rates.OF_SOAP.of(of[n]) for n in of] == pytest.approx([0.075, 0.025 * 2.5**0.5, 0.025])


def test_updates_are_those_of_the_steps_that_a_budget_was_made_from():
    known = advised("narrow dense nets").facts
    for batches in range(1, 400):
        facts = dataclasses.replace(known, batch_size=1, dataset_size=batches, budget=260 / batches)
        assert facts.updates == 260


def test_tables_before_other_than_dense_layers_keep_their_rule():
    facts = advised("tables before dense layers").facts
    row = next(row for row in SITUATIONS if row.name == "tables before dense layers")
    for kind in ("attention", "convolution", "recurrent"):
        assert row.holds(facts) and not row.holds(dataclasses.replace(facts, **{kind: True}))


def test_a_net_is_as_wide_as_its_widest_matrix():
    assert advised("narrow dense nets").facts.width == 10 and advised("anything else").facts.width == 80
    assert advised("tables").facts.width == 1


def test_least_squares_are_of_one_output_and_of_nothing_else():
    x = keras.Input((3,))
    several = keras.Model(x, [layers.Dense(1)(x), layers.Dense(2)(x)])
    penalized = keras.Sequential([keras.Input((3,)), layers.Dense(1, kernel_regularizer="l2")])
    for model in (several, penalized):
        model.compile("sgd", "mse")
        assert kopt.recommend(model, **ALL, goal="exact").situation == "a loss to many digits"


def test_a_line_search_sees_the_same_batches_where_their_statistics_count():
    normalized = dense(layers.BatchNormalization())
    assert "shuffle=False" in kopt.recommend(normalized, **RUN, goal="exact").usage
    for model, run in ((normalized, ALL), (dense(), RUN)):
        assert "shuffle" not in kopt.recommend(model, **run, goal="exact").usage


def test_tables_of_a_hundred_million_numbers_are_huge():
    huge = next(row for row in SITUATIONS if row.name == "tables that fill the memory")
    facts = advised("tables").facts
    assert not huge.holds(facts) and huge.holds(dataclasses.replace(facts, table_weights=10**8, weights=10**8))


def test_tables_are_routed_by_the_tails_of_their_paths():
    assert advised("tables that fill the memory").optimizer.routes[0][0] == "embeddings$"

    class OwnEmbedding(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(50, 4), name="table")

        def call(self, ids):
            return keras.ops.take(self.table, ids, axis=0)

    ids = keras.Input((), dtype="int32")
    model = keras.Model(ids, layers.Dense(1)(OwnEmbedding(name="users")(ids)))
    advice = kopt.recommend(model, **RUN, goal="memory")
    assert advice.optimizer.routes[0][0] == "users/table$"
    advice.optimizer.build(model.trainable_variables)


def test_a_rule_that_moves_whole_tables_says_so():
    assert advised("little memory").optimizer.sparse == "exact"
    assert advised("a transformer from scratch").optimizer.sparse == "lazy"


# ------------------------------------------------------------------------------------------------- arguments


def test_each_argument_changes_the_answer():
    plain = advised("anything else")
    changes = {
        "batch_size": 32,
        "dataset_size": 3200,
        "budget": 20.0,
        "goal": "generalize",
        "memory_limit": plain.total_bytes - 1.0,
        "pretrained": True,
        "workers": 2,
    }
    for name, value in changes.items():
        other = advised("anything else", **{name: value})
        assert (other.code, other.usage, other.reasons) != (plain.code, plain.usage, plain.reasons), name


@pytest.mark.parametrize(("budget", "trained"), [(0.5, 4), (1.0, 8), (2.5, 24)])
def test_the_lines_of_code_train_for_the_whole_budget(budget, trained):
    x, y = np.ones((64, 2), "float32"), np.ones((64, 1), "float32")
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    advice = kopt.recommend(model, batch_size=8, dataset_size=64, budget=budget)
    exec(advice.usage.replace("loss=...", "loss='mse'"), {"kopt": kopt, "model": model, "x": x, "y": y})
    assert int(model.optimizer.iterations) == trained >= advice.updates


def test_the_schedule_ends_with_the_budget():
    advice = advised("anything else", budget=2.5)
    assert advice.updates == 50 and advice.schedule.steps == 50 and advice.schedule.warmup == 1
    assert advice.schedule.decay == 15
    assert float(advice.schedule(50)) == 0 < float(advice.schedule(49))
    assert advised("anything else", dataset_size=321, budget=1).updates == 21
    assert advised("all examples at once").schedule is None
    whole = advised("a loss to many digits", budget=7)
    assert whole.updates == 7 and whole.optimizer.examples == 320


def test_what_does_not_fit_gives_way():
    free = advised("anything else")
    weights = free.total_bytes - free.state_bytes
    found = []
    for share in (1.0, 0.6, 0.3, 0.2, 0.0):
        advice = advised("anything else", memory_limit=weights + share * free.state_bytes + 1)
        assert advice.total_bytes <= weights + share * free.state_bytes + 1
        found.append((type(advice.optimizer).__name__, getattr(advice.optimizer, "state_dtype", None)))
    assert found[0] == ("Muon", "float32") and ("Muon", "bfloat16") in found and found[-1][0] == "SGD"
    assert ("Muon", "int8") in found or ("Adafactor", "float32") in found
    assert advice.reasons[0].text.startswith("Muon takes") and advice.alternatives[0].code == free.code
    with pytest.raises(ValueError, match=r"weights and gradients alone take [\d,]+ bytes, more than memory_limit=100"):
        advised("anything else", memory_limit=100)


def test_an_answer_without_slots_of_kopt_gives_way_too():
    free = advised("least squares to many digits")
    advice = advised("least squares to many digits", memory_limit=free.total_bytes - 1)
    assert isinstance(advice.optimizer, kopt.Optimizer) and "model.fit" in advice.usage


def test_additions():
    keras.config.set_dtype_policy("mixed_float16")
    advice = kopt.recommend(dense(), **RUN)
    assert isinstance(advice.optimizer, kopt.LossScaleOptimizer) and advice.schedule is not None
    assert config(made(advice.code)) == config(advice.optimizer)
    assert any(reason.source == "arXiv:1710.03740" for reason in advice.reasons)
    shared = advised("anything else", workers=2)
    assert "kopt.distribution.strategy" in shared.usage
    assert any(other.code == "kopt.distribution.LocalSGD" for other in shared.alternatives)
    assert any("2010.06192" in reason.source for reason in advised("weights in 16 bits").reasons)


def test_a_row_is_chosen_by_what_is_trained():
    model = convolutions()
    model.layers[0].trainable = False
    facts = kopt.recommend(model, **RUN).facts
    assert facts.weights == sum(np.prod(v.shape) for v in model.trainable_variables)
    assert facts.gradient_bytes < facts.weight_bytes
    assert not kopt.recommend(dense(layers.Dropout(0.0)), **ALL).facts.noise
    assert kopt.recommend(dense(layers.Dropout(0.1)), **ALL).situation == "narrow dense nets"


# ------------------------------------------------------------------------------------------------- page, errors


def test_the_page_is_short():
    for name in ("anything else", "adapters", "tables that fill the memory"):
        advice = advised(name)
        lines = str(advice).splitlines()
        assert len(lines) <= 32 and lines[0] == f"{name.capitalize()}: {type(advice.optimizer).__name__}"
        usage = len(advice.usage.splitlines())
        assert all(len(line) <= 100 for line in lines[2 + usage :])
        assert all(r.source in " ".join(" ".join(lines).split()) for r in advice.reasons)


def test_what_it_refuses():
    model = dense()
    for other, message in (
        ({"batch_size": 400}, r"a batch of 400 needs as many examples. Received: dataset_size=320"),
        ({"workers": 17}, "17 workers cannot share a batch of 16"),
        ({"goal": "best"}, "goal must be one of 'fast'"),
        ({"budget": 0}, "budget must be a finite number"),
        ({"batch_size": 1.5}, "batch_size must be an integer"),
        ({"memory_limit": -1.0}, "memory_limit must be"),
        ({"goal": "exact", "workers": 2}, "which 2 workers does not allow"),
    ):
        with pytest.raises(ValueError, match=message):
            kopt.recommend(model, **(RUN | other))
    with pytest.raises(ValueError, match="dropout or noise in the model"):
        kopt.recommend(dense(layers.Dropout(0.1)), **RUN, goal="exact")
    with pytest.raises(ValueError, match="is built"):
        kopt.recommend(keras.Sequential([layers.Dense(1)]), **RUN)
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable weights"):
        kopt.recommend(model, **RUN)
    with pytest.raises(ValueError, match=r"takes a Keras model\. Received: model='model\.keras'"):
        kopt.recommend("model.keras", **RUN)


def test_nothing_is_changed():
    model = squares()
    before = [np.array(v) for v in model.variables]
    optimizer = model.optimizer
    assert isinstance(kopt.recommend(model, **ALL, goal="exact"), Advice)
    assert model.optimizer is optimizer
    assert all(np.array_equal(a, np.array(v)) for a, v in zip(before, model.variables, strict=True))
