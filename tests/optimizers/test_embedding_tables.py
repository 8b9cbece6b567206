"""Embedding tables: the rows that were read, in every way to run, and the tables of keras-rs."""

import contextlib

import keras
import keras_rs
import numpy as np
import pytest
import tensorflow as tf

import kopt

ROWS, WIDTH, STEPS = 40, 3, 20
READ = np.array([3, 7, 3, 11, 30, 7, 3, 11], np.int32)  # some of them more than once


def model(optimizer, sparse, **options):
    """Returns a model of one table: sparse gradients by ids, dense ones by a product with one-hot rows."""
    table = keras.layers.Embedding(ROWS, WIDTH, "ones")
    inputs = keras.Input((), dtype="int32")
    if sparse:
        outputs = table(inputs)
    else:
        table.build(())
        outputs = keras.layers.Dense(WIDTH, use_bias=False, kernel_initializer="ones")(
            keras.layers.CategoryEncoding(ROWS, output_mode="one_hot")(inputs)
        )
    made = keras.Model(inputs, outputs)
    made.compile(optimizer, "mse", **options)
    return made


def data():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(STEPS, len(READ), WIDTH)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((np.tile(READ, STEPS), targets.reshape(-1, WIDTH))).batch(len(READ))


def trained(optimizer, sparse, **options):
    made = model(optimizer, sparse, **options)
    made.fit(data(), shuffle=False, verbose=0)
    return made.trainable_variables[0].numpy(), [
        part.numpy() for parts in made.optimizer.setup.parameters[0].slots.values() for part in parts.values()
    ]


in_every_way = pytest.mark.parametrize(
    "how", ["plain", *(pytest.param(how, marks=pytest.mark.slow) for how in ("xla", "replicas"))]
)


@in_every_way
def test_twenty_steps_with_repeated_ids(how, request):
    expected, slots = trained(kopt.Adam(0.1), sparse=False, jit_compile=False)
    if how == "replicas":
        with request.getfixturevalue("two_devices").scope():
            table, found = trained(kopt.Adam(0.1), sparse=True)
    else:
        table, found = trained(kopt.Adam(0.1), sparse=True, jit_compile=how == "xla")
    untouched = np.setdiff1d(np.arange(ROWS), READ)
    np.testing.assert_allclose(table[READ], expected[READ], rtol=1e-5)
    assert np.abs(table[READ] - 1).min() > 1e-3
    np.testing.assert_array_equal(table[untouched], 1)
    for slot, dense in zip(found, slots, strict=True):
        np.testing.assert_allclose(slot[READ], dense[READ], rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(slot[untouched], 0)


def uneven():
    """Returns batches of all sizes, which read now these rows, now others."""
    rng = np.random.default_rng(1)
    sizes = [8, 8, 3, 8, 8, 1, 8, 3, 8, 8, 1, 8]
    ids = np.concatenate([rng.integers(0, 12, size) for size in sizes]).astype("int32")
    targets = rng.normal(size=(len(ids), WIDTH)).astype("float32")
    splits = np.cumsum(sizes)[:-1]
    batches = list(zip(np.split(ids, splits), np.split(targets, splits), strict=True))
    signature = (tf.TensorSpec([None], "int32"), tf.TensorSpec([None, WIDTH]))
    made = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    return made.apply(tf.data.experimental.assert_cardinality(len(batches)))


KEPT = [
    {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 5},
    {"gradient_accumulation_steps": 3, "use_ema": True, "on_nonfinite": "skip"},
    *(
        pytest.param(options, marks=pytest.mark.slow)
        for options in (
            {"use_ema": True, "ema_momentum": 0.9},
            {"use_ema": True, "ema_momentum": 0.0},
            {"gradient_accumulation_steps": 4, "global_clipnorm": 0.5},
            {"gradient_accumulation_steps": 4, "loss_scale_factor": 8.0},
        )
    ),
]


@pytest.mark.slow
@in_every_way
@pytest.mark.parametrize("options", KEPT, ids=str)
def test_what_keeps_the_path_of_rows_gives_what_a_dense_update_gives(how, options, request):
    def run(**given):
        made = model(kopt.SGD(0.4, **given), sparse=True, jit_compile=how == "xla")
        made.fit(uneven(), shuffle=False, verbose=0)
        averages = made.optimizer._model_variables_moving_average if options.get("use_ema") else []
        # At the end of fit the average has taken the place of the weight.
        return [v.numpy() for v in (*averages, *made.trainable_variables)]

    # The replicas' parts of a batch are of unequal size, so that one device gives something else.
    with request.getfixturevalue("two_devices").scope() if how == "replicas" else contextlib.nullcontext():
        expected, found = run(**options | {"sparse": "exact"}), run(**options)
    assert np.abs(expected[-1] - 1).max() > 0.05
    np.testing.assert_array_equal(found[-1][12:], 1)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("how", ["plain", pytest.param("xla", marks=pytest.mark.slow)])
def test_accumulation_moves_the_rows_that_were_read(how):
    made = model(kopt.Momentum(0.1, gradient_accumulation_steps=2), sparse=True, jit_compile=how == "xla")
    ones = np.ones((2, WIDTH), "float32")
    for ids in ([1, 2], [2, 3], [4, 5], [4, 4]):
        made.train_on_batch(np.array(ids), 0 * ones)
    table = made.trainable_variables[0].numpy()[:, 0]
    ((slot,),) = (parts.values() for parts in made.optimizer.setup.parameters[0].slots.values())
    moved = [i for i in range(ROWS) if table[i] != 1]
    assert moved == [1, 2, 3, 4, 5] == [i for i in range(ROWS) if slot.numpy()[i, 0] != 0]
    before = table
    for ids in ([4, 5], [5, 4]):
        made.train_on_batch(np.array(ids), ones)
    table = made.trainable_variables[0].numpy()[:, 0]
    assert [i for i in range(ROWS) if table[i] != before[i]] == [4, 5]


def test_accumulation_refuses_to_mix_rows_and_wholes():
    table = keras.Variable(np.ones((ROWS, WIDTH), "float32"))
    optimizer = kopt.SGD(0.1, gradient_accumulation_steps=2)
    optimizer.apply([tf.IndexedSlices(tf.ones((1, WIDTH)), tf.constant([3]))], [table])
    with pytest.raises(ValueError, match=r"rows from some batches.*sparse='exact'"):
        optimizer.apply([tf.ones((ROWS, WIDTH))])


def test_a_table_of_numbers_is_accumulated_too():
    table, optimizer = (
        keras.Variable(np.ones(ROWS, "float32")),
        kopt.SGD(1.0, gradient_accumulation_steps=2, use_ema=True),
    )
    for row in (3, 4):
        optimizer.apply([tf.IndexedSlices(tf.constant([1.0, 1.0]), tf.constant([row, row]))], [table])
    assert table.numpy().tolist() == [0 if row in (3, 4) else 1 for row in range(ROWS)]
    assert optimizer._model_variables_moving_average[0].numpy().tolist() == table.numpy().tolist()


def test_a_step_that_is_skipped_forgets_the_rows_it_accumulated():
    table = keras.Variable(np.ones((ROWS, WIDTH), "float32"))
    optimizer = kopt.SGD(0.1, gradient_accumulation_steps=2, on_nonfinite="skip")
    for value, row in ((np.nan, 1), (1.0, 2), (1.0, 3), (1.0, 4)):
        optimizer.apply([tf.IndexedSlices(tf.fill((1, WIDTH), value), tf.constant([row]))], [table])
    assert np.flatnonzero((table.numpy() != 1).any(1)).tolist() == [3, 4]
    assert int(optimizer.nonfinite_steps) == 1 == int(optimizer.iterations)


@pytest.mark.slow
def test_an_average_that_is_owed_goes_on_from_a_file():
    def run(cut):
        table, optimizer = keras.Variable(np.ones((ROWS, WIDTH), "float32")), kopt.Adam(0.1, use_ema=True)
        for step, (ids, targets) in enumerate(uneven()):
            if step == cut:
                store: dict = {}
                optimizer.save_own_variables(store)
                optimizer = kopt.Adam(0.1, use_ema=True)
                optimizer.load_own_variables(store)
            optimizer.apply([tf.IndexedSlices(targets, ids)], [table])
        return optimizer._model_variables_moving_average[0].numpy()

    np.testing.assert_array_equal(run(5), run(None))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "xla", "replicas"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_short_slots_by_rows(how, dtype, request):
    wide = 16

    def run(jit=False, **options):
        table = keras.layers.Embedding(ROWS, wide, "ones")
        inputs = keras.Input((), dtype="int32")
        made = keras.Model(inputs, table(inputs))
        made.compile(kopt.Adam(0.1, **options), "mse", jit_compile=jit)
        made.fit(uneven().map(lambda ids, y: (ids, tf.tile(y, [1, 6])[:, :wide])), shuffle=False, verbose=0)
        return made

    with request.getfixturevalue("two_devices").scope() if how == "replicas" else contextlib.nullcontext():
        expected, made = run(), run(how == "xla", state_dtype=dtype)
    found, exact = (m.trainable_variables[0].numpy() for m in (made, expected))
    np.testing.assert_array_equal(found[12:], 1)
    difference, moved = (np.abs(x)[:12].mean() for x in (found - exact, exact - 1))
    assert 0 < difference < {"bfloat16": 0.02, "int8": 0.1}[dtype] * moved
    for parts in made.optimizer.setup.parameters[0].slots.values():
        assert all(not part.numpy()[12:].any() and part.numpy()[:12].any() for part in parts.values())


OPTIONS = [{"weight_decay": 0.1}, {"state_dtype": "bfloat16"}]


@pytest.mark.parametrize(
    "options", [{"global_clipnorm": 0.5}, *(pytest.param(o, marks=pytest.mark.slow) for o in OPTIONS)], ids=str
)
def test_tables_of_keras_rs(options):
    def distributed():
        config = keras_rs.layers.TableConfig(
            name="table", vocabulary_size=ROWS, embedding_dim=WIDTH, initializer="ones", optimizer="sgd"
        )
        feature = keras_rs.layers.FeatureConfig(
            name="feature", table=config, input_shape=(8, 1), output_shape=(8, WIDTH)
        )
        inputs = keras.Input((1,), batch_size=8, dtype="int32")
        return keras.Model(inputs, keras_rs.layers.DistributedEmbedding(feature)(inputs))

    made = distributed()
    made.compile(kopt.Adam(0.1, **options), "mse")
    targets = next(iter(data()))[1].numpy()
    for _ in range(3):
        made.train_on_batch(READ[:, None], targets)
    plain = model(kopt.Adam(0.1, **options), sparse=True)
    for _ in range(3):
        plain.train_on_batch(READ, targets)
    (table,) = made.trainable_variables
    np.testing.assert_allclose(table.numpy(), plain.trainable_variables[0].numpy(), rtol=1e-5)
    np.testing.assert_array_equal(table.numpy()[0], 1)
