"""Checkpoints as files: whole or not there, the newest whole one counts, and what does not fit is an error."""

import collections
import errno
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest

import kopt
from kopt.checkpoint import Checkpoint, ShuffledBatches, atomic_file, atomic_folder, remove_leftovers
from kopt.checkpoint import snapshot_files as files

X, Y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")


def make(units=3, optimizer="adam"):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    model.compile(kopt.get(optimizer), "mse")
    return model


def trained(folder, epochs=3, **options):
    model, checkpoint = make(), Checkpoint(folder, **options)
    model.fit(X, Y, epochs=epochs, verbose=0, shuffle=False, callbacks=[*checkpoint.callbacks, checkpoint])
    return model


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_ones_stay(tmp_path):
    trained(tmp_path, epochs=5, keep=2)
    assert names(tmp_path) == ["000004", "000005"]
    model = make()
    assert Checkpoint(tmp_path).restore(model) == 5
    trained(tmp_path / "all", epochs=3, keep=5)
    assert names(tmp_path / "all") == ["000001", "000002", "000003"]
    trained(tmp_path / "end", epochs=5, every=3)
    assert Checkpoint(tmp_path / "end").restore(make()) == 5


class Stop(keras.callbacks.Callback):
    """Ends the training, after an epoch or after a batch."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at, self.epoch, self.batches = (epoch, batch), None, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if (self.epoch, batch) == self.at:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.at:
            self.model.stop_training = True


def test_what_a_callback_has_ended_stays_ended(tmp_path):
    def fit(stop):
        model, checkpoint = make(), Checkpoint(tmp_path)
        epoch = checkpoint.restore(model)
        model.fit(X, Y, 1, epochs=9, initial_epoch=epoch, verbose=0, shuffle=False, callbacks=[stop, checkpoint])
        return stop.batches, checkpoint.place

    assert fit(Stop(2, 1)) == (2 * 4 + 2, (2, 2))  # in the middle of an epoch: the next one goes on there
    assert fit(Stop(4)) == (3 * 4, (5, 0))
    assert fit(Stop(8))[0] == 0


def test_an_end_before_the_place_to_go_on_is_no_checkpoint(tmp_path):
    for stop, place in ((Stop(1, 2), (1, 3)), (Stop(1, 0), (1, 3))):
        model, checkpoint = make(), Checkpoint(tmp_path)
        epoch = checkpoint.restore(model)
        model.fit(X, Y, 1, epochs=9, initial_epoch=epoch, verbose=0, shuffle=False, callbacks=[stop, checkpoint])
        assert checkpoint.place == place
    assert names(tmp_path) == ["000001", "000002"]


@pytest.mark.few(1)
@pytest.mark.parametrize("file", ["state.json", "arrays.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_one_is_skipped(file, damage, tmp_path):
    trained(tmp_path)
    path = tmp_path / "000003" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "bit" else content[:-3])
    with pytest.warns(UserWarning, match=r"(?s)000003: .*000002 is used"):
        assert Checkpoint(tmp_path).restore(make()) == 2
    shutil.rmtree(tmp_path / "000002")
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        Checkpoint(tmp_path).restore(make())


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    trained(tmp_path)
    before = names(tmp_path)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    model, checkpoint = make(), Checkpoint(tmp_path)
    begin = checkpoint.restore(model)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", full)
        model.fit(X, Y, initial_epoch=begin, epochs=begin + 1, verbose=0, callbacks=[checkpoint])
    assert names(tmp_path) == before
    assert Checkpoint(tmp_path).restore(make()) == 3


def test_what_was_half_written_goes(tmp_path):
    trained(tmp_path)
    (tmp_path / ".part-1").mkdir()
    (tmp_path / ".part-1" / "arrays.safetensors").write_bytes(b"half")
    (tmp_path / ".part-2.json").write_bytes(b"half")
    model, checkpoint = make(), Checkpoint(tmp_path)
    begin = checkpoint.restore(model)
    model.fit(X, Y, initial_epoch=begin, epochs=begin + 1, verbose=0, callbacks=[checkpoint])
    assert names(tmp_path) == ["000003", "000004"]


def test_files_and_folders_are_whole(tmp_path):
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.json") as path:
        path.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "b") as path:
        (path / "c").write_text("half")
        raise RuntimeError
    assert not names(tmp_path)
    with atomic_file(tmp_path / "a.json") as path:
        assert path.suffix == ".json"
        path.write_text("whole")
    with atomic_folder(tmp_path / "b") as path:
        (path / "c").write_text("whole")
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b" / "c").read_text() == "whole"
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.json", "b"]


def test_another_training_does_not_write_beside_it(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match="there are checkpoints already"):
        trained(tmp_path)
    assert names(tmp_path) == ["000002", "000003"]


def test_the_epoch_must_be_given(tmp_path):
    trained(tmp_path)
    model, checkpoint = make(), Checkpoint(tmp_path)
    checkpoint.restore(model)
    with pytest.raises(ValueError, match=r"of epoch 3, and fit began with 0"):
        model.fit(X, Y, verbose=0, callbacks=[checkpoint])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: make(units=4), r"the model is another one .* Variable 0 was .*kernel.*\[2, 3\] and is .*\[2, 4\]"),
        (lambda: make(optimizer="sgd"), r"the optimizer is another one"),
    ],
)
def test_another_model_is_an_error(model, message, tmp_path):
    trained(tmp_path)
    other = model()
    before = [w.copy() for w in other.get_weights()]
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path).restore(other)
    for was, now in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_other_callbacks_are_an_error(tmp_path):
    trained(tmp_path, callbacks=[keras.callbacks.EarlyStopping("loss", patience=9)])
    model, checkpoint = make(), Checkpoint(tmp_path)
    begin = checkpoint.restore(model)
    with pytest.raises(ValueError, match=r"callbacks EarlyStopping. Received: none"):
        model.fit(X, Y, initial_epoch=begin, epochs=begin + 1, verbose=0, callbacks=[checkpoint])


def test_arguments_of_callbacks_may_change(tmp_path):
    stopping = keras.callbacks.EarlyStopping("loss", patience=9, start_from_epoch=0)
    trained(tmp_path, callbacks=[stopping])
    model, later = make(), keras.callbacks.EarlyStopping("loss", patience=1)
    checkpoint = Checkpoint(tmp_path, callbacks=[later])
    begin = checkpoint.restore(model)
    model.fit(X, Y, initial_epoch=begin, epochs=begin, verbose=0, callbacks=[later, checkpoint])
    assert (later.patience, later.best, later.best_epoch) == (1, stopping.best, stopping.best_epoch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every"),
        ({"every": "5"}, None),
        ({"every": "0s"}, "every"),
        ({"every": "fast"}, "every"),
        ({"every": True}, "every"),
        ({"keep": 0}, "keep"),
        ({"callbacks": [1]}, "callbacks"),
        ({"data": X}, "set_epoch"),
    ],
)
def test_arguments(options, message, tmp_path):
    if message is None:
        assert Checkpoint(tmp_path, **options).every == 5
        return
    with pytest.raises(ValueError, match=message):
        Checkpoint(tmp_path, **options)


def test_values_keep_their_kinds(tmp_path):
    class Odd(keras.callbacks.Callback):
        value = None

        def on_epoch_end(self, epoch, logs=None):
            self.value = {("a", 1): [np.float32(1.5), (float("nan"), None)], "b": np.arange(3, dtype="int16")}
            self.file = pathlib.Path("not plain")

    trained(tmp_path, callbacks=[Odd()])
    model, odd = make(), Odd()
    checkpoint = Checkpoint(tmp_path, callbacks=[odd])
    begin = checkpoint.restore(model)
    model.fit(X, Y, initial_epoch=begin, epochs=begin, verbose=0, callbacks=[odd, checkpoint])
    number, (nan, none) = odd.value[("a", 1)]
    assert isinstance(number, np.float32)
    assert number == 1.5
    assert nan != nan
    assert none is None
    np.testing.assert_array_equal(odd.value["b"], np.arange(3))
    assert odd.value["b"].dtype == "int16"
    assert not hasattr(odd, "file")


Pair = collections.namedtuple("Pair", "a b")


class Collector(keras.callbacks.Callback):
    """Has attributes of many classes, all of which change."""

    def __init__(self):
        super().__init__()
        self.seen, self.last, self.rows = set(), collections.deque(maxlen=2), collections.defaultdict(list)
        self.count, self.pair, self.names = collections.Counter(), Pair(0, 0), np.array(["a"])
        self.wave, self.when, self.turned = np.zeros(1, complex), np.zeros(1, "M8[s]"), np.zeros(1, ">f8")
        self.total = keras.Variable(0.0)

    def on_epoch_end(self, epoch, logs=None):
        self.seen.add(epoch)
        self.last.append(epoch)
        self.rows[f"epoch {epoch}"].append(epoch)
        self.count.update([epoch])
        self.pair = Pair(self.pair.a + 1, epoch)
        self.names = np.append(self.names, f"b{epoch}")
        self.wave, self.when, self.turned = self.wave + 1j, self.when + np.timedelta64(1, "s"), self.turned + epoch
        self.turned = self.turned.astype(">f8")
        self.total.assign_add(1.0)


def test_values_keep_their_classes(tmp_path):
    trained(tmp_path, callbacks=[Collector()])
    model, collector = make(), Collector()
    checkpoint = Checkpoint(tmp_path, callbacks=[collector])
    begin = checkpoint.restore(model)
    model.fit(X, Y, initial_epoch=begin, epochs=begin + 1, verbose=0, callbacks=[collector, checkpoint])
    assert (collector.seen, collector.last) == ({0, 1, 2, 3}, collections.deque([2, 3], 2))
    assert collector.last.maxlen == 2
    assert collector.rows == {f"epoch {i}": [i] for i in range(4)}
    assert collector.count == collections.Counter(range(4))
    assert collector.pair == Pair(4, 3)
    assert list(collector.names) == ["a", "b0", "b1", "b2", "b3"]
    assert (collector.wave[0], collector.turned[0], float(collector.total)) == (4j, 6, 4)
    assert collector.when[0] == np.datetime64(4, "s")


def test_what_get_state_may_not_return(tmp_path):
    class Own(keras.callbacks.Callback):
        def get_state(self):
            return {"path": pathlib.Path("x")}

        def set_state(self, state):
            pass

    with pytest.raises(TypeError, match=r"Own\.get_state: expected numbers.*Received: .*Path"):
        trained(tmp_path, callbacks=[Own()])


def test_folders_of_others_stay(tmp_path):
    for name in ("0", "1", "²", "202401"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.png").write_bytes(b"mine")
    trained(tmp_path, keep=1)
    assert names(tmp_path) == ["0", "000003", "1", "202401", "²"]


def test_a_folder_that_cannot_be_written_to_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    counter = Stop(None)
    with pytest.raises(OSError, match="file"):
        make().fit(X, Y, verbose=0, callbacks=[counter, Checkpoint(tmp_path / "file")])
    assert counter.batches == 0


def test_a_failed_restore_leaves_the_checkpoints(tmp_path):
    trained(tmp_path)
    model, checkpoint = make(units=4), Checkpoint(tmp_path)
    with pytest.raises(ValueError, match="another one"):
        checkpoint.restore(model)
    with pytest.raises(ValueError, match="there are checkpoints already"):
        model.fit(X, Y, verbose=0, callbacks=[checkpoint])
    assert names(tmp_path) == ["000002", "000003"]


def test_two_trainings_do_not_write_to_one_folder(tmp_path):
    class Other(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                shutil.copytree(tmp_path / "000001", tmp_path / "000002")

    with pytest.raises(ValueError, match="another training writes there"):
        make().fit(X, Y, epochs=3, verbose=0, shuffle=False, callbacks=[Other(), Checkpoint(tmp_path)])
    assert names(tmp_path) == ["000001", "000002"]


def test_types_that_numpy_lacks(tmp_path):
    model, checkpoint = make(), Checkpoint(tmp_path)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="bfloat16")])
    model.compile(kopt.Adam(0.1), "mse")
    model.fit(X, Y, epochs=2, verbose=0, shuffle=False, callbacks=[checkpoint])
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="bfloat16")])
    other.compile(kopt.Adam(0.1), "mse")
    assert Checkpoint(tmp_path).restore(other) == 2
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours.astype("float32"), theirs.astype("float32"))
    snapshot = files.newest(tmp_path)
    assert "bfloat16" in {str(array.dtype) for array in snapshot.arrays.values()}


def test_orders_follow_from_seed_and_epoch():
    x = np.arange(10)
    data = ShuffledBatches(x, batch_size=4, seed=1)

    def epoch(number):
        data.set_epoch(number)
        return np.concatenate([data[i][0] for i in range(len(data))])

    first, second = epoch(0), epoch(1)
    assert sorted(first) == sorted(second) == list(x)
    assert list(first) != list(second)
    assert list(epoch(0)) == list(first)
    assert [len(data[i][0]) for i in range(len(data))] == [4, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": np.ones(3)}, "one length"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"sample_weight": np.ones(4)}, "needs y"),
    ],
)
def test_arguments_of_batches(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShuffledBatches(np.ones((4, 2)), **arguments)


def test_a_snapshot_that_is_sent_is_the_one_that_is_written(tmp_path):
    arrays = {"model.0": np.arange(6, dtype=np.float32).reshape(2, 3), "seed.0": np.array([7], "uint32")}
    snapshot = files.Snapshot(2, 3, {"model": ["a"], "seed": ["s"]}, arrays, {"logs": {"loss": 0.5}})
    read = files.read(files.write(tmp_path, snapshot, keep=1))
    sent = files.unpacked(files.packed(snapshot))
    for found in (read, sent):
        assert (found.epoch, found.batch, found.paths, found.others) == (2, 3, snapshot.paths, snapshot.others)
        assert all(found.arrays[name].tobytes() == array.tobytes() for name, array in arrays.items())
