"""docs/choosing.md keeps its word: its code runs, and comes to what the text beside it says."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "choosing.md"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the blocks of the page leave behind, run one after the other."""
    found = {"__name__": "choosing"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, PAGE.name, "exec"), found)
    return found


@pytest.mark.slow
def test_what_is_recommended_trains(names):
    losses = names["history"].history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert names["accuracy"] > 0.8
    assert 1e-4 < names["rate"] < 1


@pytest.mark.slow
def test_huber_is_not_drawn_by_what_is_wrong(names):
    assert names["errors"]["Huber"] < 0.5 * names["errors"]["squared"]


@pytest.mark.slow
def test_clusters_of_codes_are_about_digits(names):
    score = names["normalized_mutual_info_score"](names["labels"], names["clusters"])
    assert names["found"].shape == (1797, 10) and score > 0.5
