"""Fifty files that are damaged or made to do damage: each ends in one line, in little time and memory."""

import io
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from recipes.readers import delimited, files
from recipes.readers.arrays import read_idx, read_image, read_npy, read_npz
from recipes.readers.files import read_json
from recipes.readers.formats import Format
from recipes.readers.rows import read_rows
from recipes.recommendation.data.interactions import Columns, read_interactions
from recipes.run import command_line
from recipes.run.errors import RecipeError
from recipes.text_classification import corpus, labelled_texts

MEMORY = 512 * 2**20
"""Bytes that a case may take beside what the process has."""
SECONDS = 5


@pytest.fixture
def bounded(monkeypatch):
    """Lets the process allocate little more than it has, where the system can limit it."""
    monkeypatch.setattr(files, "UNPACKED", 2**24)  # which takes less time to reach
    if not Path("/proc/self/statm").exists():
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# --------------------------------------------------------------------------------------------------- contents of files


def npy(header, content=b"", version=1, length=None):
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + content


def shaped(shape, kind="|u1", content=b"123"):
    return npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}", content)


def npz(content, change=None, kind=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("x.npy", content)
    whole = bytearray(file.getvalue())
    for mark, offset, value in change or ():
        at = whole.index(mark) + offset
        whole[at : at + len(value)] = value
    return bytes(whole)


def idx(sizes, content=b"123", dimensions=None):
    return b"\0\0\x08" + bytes([dimensions or len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + content


def packed(start, part, count):
    """Returns, packed, a start and then `count` times the same part."""
    packer = zlib.compressobj(1, wbits=31)
    return packer.compress(start) + b"".join(packer.compress(part) for _ in range(count)) + packer.flush()


MEGABYTE = bytes(2**20)
BOMB = packed(b"text,item,label\n", b"x" * 100_000 + b",1,1\n", 600)


def png(width, height, content=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def parquet(change=None):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1, 2]}), file)
    whole = bytearray(file.getvalue())
    return change(whole) if change else bytes(whole)


def repeating(text, count=2_000):
    """One long text in many rows, in about a kilobyte."""
    file = io.BytesIO()
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([text]))
    table = pyarrow.table({"text": column, "label": pyarrow.array([1] * count)})
    pyarrow.parquet.write_table(table, file, compression="zstd", store_schema=False)
    return file.getvalue()


def flipped(whole):
    for i in range(8, len(whole), 7):
        whole[i] ^= 255
    return bytes(whole)


# ------------------------------------------------------------------------------------------------------------ readers


COLUMNS = labelled_texts.Columns("text", None, "label")


def read_texts(name, policy="error", **flags):
    return labelled_texts.read_table(Path(name), COLUMNS, policy, Format(**flags))


def train_on(name):
    return corpus.load(corpus.TextFlags(train_file=Path(name)))


def rate(name):
    return read_interactions(Path(name), Columns("user", "item", "rating", "time"), "error")


READERS = {
    "npy": lambda name: read_npy(Path(name)),
    "npz": lambda name: read_npz(Path(name), ["x"]),
    "idx": lambda name: read_idx(Path(name)),
    "image": lambda name: read_image(Path(name), 28, 28),
    "yaml": lambda name: command_line.read_mapping(Path(name)),
    "json": lambda name: read_json(Path(name)),
    "text": read_texts,
    "train": train_on,
    "rate": rate,
}
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)
)
DEEP = "[" * 100_000
DIGITS = "1" * 5_000
HEAD = "text,label\n"
CASES = [  # reader, name, content, what is said
    ("npy", "a.npy", shaped("(1000000000000,)"), "1,000,000,000,000 bytes; expected at most"),
    ("npy", "a.npy", shaped("(1000000,)"), r"bytes do not hold an array of shape \(1000000,\)"),
    ("npy", "a.npy", shaped("(-1, 28, 28)"), "expected numbers"),
    ("npy", "a.npy", shaped("(4294967296, 4294967296)"), "expected at most"),
    ("npy", "a.npy", shaped("(2,)", "|O", b"cos\nsystem\n(S'echo'\ntR."), "expected numbers"),
    ("npy", "a.npy", shaped("(1000000000000,)", "|V0"), "expected numbers"),
    ("npy", "a.npy", shaped("(" + "1, " * 60 + ")"), "expected numbers"),
    ("npy", "a.npy", shaped("(2, 2)", "|u1", b"1234")[:-2], r"not a readable \.npy"),
    ("npy", "a.npy", npy("(" * 5_000), r"not a readable \.npy"),
    ("npy", "a.npy", npy("{}", version=2, length=2**32 - 1), r"not a readable \.npy"),
    ("npy", "a.npy", npy("{'descr': '<f8', 'fortran_order': 1, 'shape': 'x'}"), r"not a readable \.npy"),
    ("npy", "a.npy", b"\x93NUMPY\x09\x00", r"not a readable \.npy"),
    ("npz", "a.npz", npz(shaped("(2000000000,)")), "expected at most"),
    ("npz", "a.npz", npz(shaped("(200000000,)"), [(b"PK\x01\x02", 24, struct.pack("<I", 2**30))]), "do not hold"),
    ("npz", "a.npz", npz(shaped("(3,)"), [(b"PK\x01\x02", 8, b"\x01\x00"), (b"PK\x03\x04", 6, b"\x01\x00")]), r"\.npz"),
    ("npz", "a.npz", npz(shaped("(3,)"), [(b"PK\x01\x02", 10, b"\x63\x00")]), r"not a readable \.npz"),
    ("npz", "a.npz", npz(shaped("(3,)"), [(b"PK\x01\x02", 16, b"\x00\x00\x00\x00")]), r"not a readable \.npz"),
    ("npz", "a.npz", npz(shaped("(3,)"), [(b"PK\x01\x02", 42, b"\xff\xff\xff\x7f")]), r"not a readable \.npz"),
    ("npz", "a.npz", npz(shaped("(3,)"), kind=zipfile.ZIP_LZMA), r"not a readable \.npz"),
    ("npz", "a.npz", npz(shaped("(3,)"))[:-30], r"not a readable \.npz"),
    ("idx", "a", idx([2**31, 2**31, 4]), "expected at most"),
    ("idx", "a", idx([60_000, 28, 28]), "do not make an array"),
    ("idx", "a", idx([1] * 20, b"1", 255), "do not make an array"),
    ("idx", "a.gz", packed(idx([3], b""), MEGABYTE, 300), r"do not make an array of shape \(3,\)"),
    ("idx", "a.gz", packed(idx([2**20], b""), MEGABYTE, 1)[:-20], "cut short"),
    ("image", "a.png", png(50_000, 50_000), "pixels|not a readable image"),
    ("image", "a.png", png(9_000, 9_000, zlib.compress(bytes(1000))), "pixels; expected at most"),
    ("image", "a.png", png(28, 28, b"123"), "not a readable image"),
    (
        "image",
        "a.png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch owned) (w) file\n",
        "not a readable image",
    ),
    ("yaml", "a.yaml", LAUGHS, "aliases"),
    ("yaml", "a.yaml", "a: &a {b: 1}\nc: {<<: *a}\n", "aliases"),
    ("yaml", "a.yaml", "[" * 50_000, "not valid YAML"),
    ("yaml", "a.yaml", f"epochs: {DIGITS}\n", "not valid YAML"),
    ("yaml", "a.yaml", "when: 2001-99-99\n", "not valid YAML"),
    ("yaml", "a.yaml", "a: b\0\n", "not valid YAML"),
    ("yaml", "a.yaml", "? [1]\n: 2\n? {a: b}\n: 3\n", "not valid YAML"),
    ("yaml", "a.yaml", "a: !!python/object/apply:os.system [touch owned]\n", "not valid YAML"),
    ("yaml", "a.yaml", "a: b\n" * 10**6, "more than 65,536 bytes"),
    ("yaml", "a.yaml", b"\xff\xfe\x00", "not valid YAML"),
    ("json", "a.json", DEEP, "not valid JSON"),
    ("json", "a.json", f'{{"a": {DIGITS}}}', "not valid JSON"),
    ("text", "a.csv.gz", packed(b"", MEGABYTE, 128), "more than 16,777,216 characters|UTF-16|unpacks"),
    ("text", "a.csv.gz", BOMB, "unpacks to more than 200 times its size"),
    (
        "text",
        "a.csv",
        ",".join(map(str, range(10**6))) + "\n1\n",
        "names: a row of more than 1,048,576 char",
    ),
    ("text", "a.csv", HEAD + "x" * (2**24 + 9), "line 2 has more than 16,777,216 characters"),
    ("text", "a.csv", HEAD.encode() + bytes(10**6), "1 cells instead of 2"),
    ("text", "a.csv", "\0" * 10**6, "is no text"),
    ("text", "a.csv", HEAD + "a\0b,1\n", "'text' holds a NUL byte"),
    ("text", "a.jsonl", f'{{"text": {DEEP}\n', "not valid JSON"),
    ("text", "a.jsonl", f'{{"text": "a", "label": {DIGITS}}}\n', "not valid JSON"),
    ("text", "a.json", f"[{DEEP}", "too deep"),
    ("text", "a.json", f'[{{"text": "a", "label": {DIGITS}}}]', "a number too long"),
    ("text", "a.json", '[\n{"text": "' + "abc\\n" * 10**6, "cut short|not valid JSON"),
    ("text", "a.json", "[\n" + "1\n" * 10**6, "not valid JSON"),
    ("text", "a.parquet", repeating("x" * 2**25), "a text of more than 16,777,216 characters"),
    ("text", "a.parquet", parquet(flipped), "not a readable Parquet file"),
    ("text", "a.parquet", parquet(lambda whole: bytes(whole[:-8]) + b"\xff\xff\xff\x7fPAR1"), "not a readable Parquet"),
    ("text", "a.parquet", parquet(lambda whole: bytes(whole[: len(whole) // 2])), "not a readable Parquet file"),
    ("train", "a.csv", HEAD + "".join(f"{i} x,{i}\n" for i in range(100_000)), "100,000 labels for 100,000 texts"),
    ("train", "a.csv", HEAD + "".join(f"{i} x,{i // 2}\n" for i in range(100_000)), "50,000 labels for 100,000 texts"),
    ("train", "a.csv", HEAD + f"a,{DIGITS}\nb,2\nc,2\n", "more than 1000 characters"),
    ("rate", "a.jsonl", f'{{"user": 1, "item": 1, "rating": 1, "time": 1{"0" * 400}}}\n', "neither a finite number"),
    ("rate", "a.csv", "user,item,rating,time\n1,2,3,9999-12-32\n", "line 2: 'time' is neither"),
]


@pytest.mark.parametrize("reader, name, content, says", CASES, ids=[f"{i} {case[0]}" for i, case in enumerate(CASES)])
def test_a_hostile_file_ends_in_one_line(reader, name, content, says, bounded):
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    began = time.monotonic()
    with pytest.raises(RecipeError, match=says) as error:
        READERS[reader](name)
    assert time.monotonic() - began < SECONDS
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not Path("owned").exists()


def test_a_huge_id_is_an_id():
    Path("a.jsonl").write_text(f'{{"user": 1{"0" * 400}, "item": 1, "rating": 1, "time": 1}}\n')
    assert rate("a.jsonl").users.keys == ["1" + "0" * 400]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_what_is_no_file_is_not_waited_for():
    os.mkfifo("a.csv")
    Path("b.csv").mkdir()
    for name, says in (("a.csv", "no regular file"), ("b.csv", "is a folder"), ("/dev/zero", "no regular file")):
        with pytest.raises(RecipeError, match=says):
            read_texts(name, delimiter="comma")
    with pytest.raises(RecipeError, match="is no file"):
        command_line.read_mapping(Path("a.csv"))


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_broken_quotes_do_not_cost_the_square_of_their_number(policy, monkeypatch):
    monkeypatch.setattr(delimited, "READ_AGAIN", 2**23)
    Path("a.csv").write_text(HEAD + 'x","y\n' * 300_000)
    began = time.monotonic()
    with pytest.raises(RecipeError, match="too many rows with broken quotes"):
        read_texts("a.csv", policy)
    assert time.monotonic() - began < 4 * SECONDS


@pytest.mark.slow
def test_long_texts_that_a_file_repeats_are_read_in_small_batches(bounded):
    Path("a.parquet").write_bytes(repeating("x" * 2**22, 140))  # 560 MB at once
    assert sum(len(record["text"]) for _, record in read_rows(Path("a.parquet"))) == 140 * 2**22


def test_texts_that_do_not_fit_in_memory(monkeypatch):
    Path("a.parquet").write_bytes(repeating("x" * 1000, 10))
    monkeypatch.setattr(labelled_texts, "LARGEST", 10_000)
    assert len(read_texts("a.parquet")) == 10
    monkeypatch.setattr(labelled_texts, "LARGEST", 9_999)
    with pytest.raises(RecipeError, match="more than 9,999 characters of text"):
        read_texts("a.parquet")


def test_arrays_that_are_right_are_read(tmp_path):
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.eye(3, 2)), np.zeros((0, 28), ">u2"), np.float32(3)):
        np.save("a.npy", array)
        np.savez_compressed("a.npz", x=array)
        for found in (read_npy(Path("a.npy")), *read_npz(Path("a.npz"), ["x"])):
            np.testing.assert_array_equal(found, array)
            assert found.dtype == np.asarray(array).dtype and found.shape == np.shape(array)


@pytest.mark.slow
def test_through_the_command():
    for i, (flags, name, content) in enumerate(
        [
            ("mnist --data", "a.npz", npz(shaped("(2000000000,)"))),
            ("mnist --config", "a.yaml", LAUGHS.encode()),
            (
                "recommendation --label-column label --user-column text --item-column item --interactions",
                "a.csv.gz",
                packed(b"text,item,label\n", b"x" * 100_000 + b",1,1\n", 700),  # more than `UNPACKED`
            ),
            ("text_classification --train-file", "a.json", f"[{DEEP}".encode()),
        ]
    ):
        Path(name).write_bytes(content)
        recipe, *rest = flags.split()
        argv = [sys.executable, "-m", f"recipes.{recipe}", *rest, str(Path(name).resolve())]
        env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        root = Path(command_line.__file__).parents[2]
        done = subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == (2 if "config" in flags else 3), (i, done.stderr)
        assert [line.startswith("error: ") for line in done.stderr.splitlines()][-1:] == [True]
        assert "Traceback" not in done.stderr
