"""The bench of language models: runs are resumed, the best trial gets the seeds, the page is made from files."""

import json
import math
import re

import keras
import numpy as np
import pytest

from benchmarks import language_model as bench


@pytest.fixture
def small(tmp_path, monkeypatch):
    for name, value in {"WIDTH": 8, "HEADS": 2, "LAYERS": 1, "CONTEXT": 8, "BATCH": 2, "HELD_OUT": 4}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "TARGET", 2.25)
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(bench, "PICTURE", tmp_path / "curves.png")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(bench, "text", lambda: np.arange(20_000).astype("uint8") % 4)
    bench.PAGE.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    return tmp_path


def test_steps_to_a_loss_are_between_two_evaluations():
    losses = [(0, 5.0), (10, 3.0), (20, 2.0), (30, 2.5)]
    assert bench.steps_to(2.5, losses) == 15
    assert bench.steps_to(2.0, losses) == 20
    assert bench.steps_to(1.9, losses) == math.inf
    assert bench.steps_to(2.5, [(0, math.nan), (10, math.nan)]) == math.inf


def test_trials_cover_the_space_evenly():
    places = np.array([bench.quantiles(i) for i in range(bench.TRIALS)])
    for column in (places * bench.TRIALS).astype(int).T:
        assert sorted(column) == list(range(bench.TRIALS))
    row = bench.ROWS["AdamW"]
    rates, decays = zip(*(bench.setting(row, i) for i in range(bench.TRIALS)), strict=True)
    assert row.low <= min(rates) < 2 * row.low and row.high / 3 < max(rates) < row.high
    assert min(decays) > bench.LOW and max(decays) < bench.HIGH


def test_a_lead_is_tested_on_one_side():
    fast, slow = [200.0, 210.0, 190.0], [300.0, 310.0, 290.0]
    assert bench.p_value(fast, slow) < 1e-6 and bench.p_value(slow, fast) > 1 - 1e-6
    assert bench.p_value(slow, slow) == 0.5


def test_what_is_there_is_not_run_again(small, monkeypatch, capsys):
    runs, drawn = [], []

    def train(row, rate, decay, seed, known, steps=bench.STEPS):
        runs.append((rate, seed))
        speed = 1 + rate + seed / 100  # the largest rate is the fastest
        losses = [(t, 5.0 - t / 100 * speed) for t in range(0, 401, 10)]
        return {"losses": losses, "bytes": 8.0, "parameters": 10}

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(bench, "draw", drawn.append)
    bench.main(["--rows", "AdamW", "Muon", "--trials", "2", "--seeds", "0"])
    assert len(runs) == 4 and {seed for _, seed in runs} == {0}
    bench.main(["--rows", "AdamW", "Muon", "--trials", "6", "--seeds", "3", "--write"])
    assert len(runs) == 2 * (6 + 3)
    highest = {max(bench.setting(bench.ROWS[row], i)[0] for i in range(bench.TRIALS)) for row in ("AdamW", "Muon")}
    assert {rate for rate, seed in runs if seed} == highest
    bench.main(["--rows", "AdamW", "Muon", "--seeds", "3"])
    assert len(runs) == 18
    path = bench.file_of("Muon", "seed", 2)
    run = json.loads(path.read_text())
    assert (run["seed"], run["row"]) == (2, "Muon")
    for change in ({"protocol": "another"}, {"rate": 0.5}, {"trial": 0}):
        path.write_text(json.dumps(run | change))
        bench.main(["--rows", "Muon", "--seeds", "3"])
    assert len(runs) == 18 + 3
    page = bench.PAGE.read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    assert re.search(r"`Muon` \|.* \| 3 \| 264 \| 2.5 \| 1.01 \| 0.04 \|", page), page
    assert re.search(r"`AdamW` \|.* \| 3 \| 268 \| 2.6 \| 1.00 \|  \|", page), page
    assert "AdamW + Hyperball" not in page and "(../docs/curves.png)" in page
    assert len(drawn) == 1


@pytest.mark.slow
def test_curves_are_drawn_of_seeds_or_else_of_the_best_trial(small):
    bench.FOLDER.mkdir()
    for row, kind, numbers in (("AdamW", "seed", (1, 2)), ("Lion", "trial", (0, 1))):
        for i in numbers:
            rate, decay = bench.setting(bench.ROWS[row], i * (kind == "trial"))
            run = {"protocol": "p", "trial": i * (kind == "trial"), "rate": rate, "decay": decay}
            run |= {"losses": [(0, 5.0), (10, 3.0 - i)]}
            bench.file_of(row, kind, i).write_text(json.dumps(run))
    bench.draw("p")
    assert bench.PICTURE.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize("row", bench.ROWS)
def test_every_row_learns(row, small):
    found = bench.train(bench.ROWS[row], *bench.setting(bench.ROWS[row], 2), 1, bench.text(), steps=20)
    first, *_, last = [loss for _, loss in found["losses"]]
    assert [t for t, _ in found["losses"]] == [0, 10, 20]
    assert last < first < np.log(256) + 0.5
    assert found["bytes"] >= 0


@pytest.mark.slow
def test_seconds_are_steps_by_the_time_of_one(small, monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", 2)
    bench.FOLDER.mkdir()
    bench.time_steps(["AdamW", "Lion"])
    times = json.loads((bench.FOLDER / bench.CLOCK).read_text())
    assert list(times) == ["AdamW", "Lion"] and min(times.values()) > 0
    (bench.FOLDER / bench.CLOCK).write_text('{"AdamW": 50.0}')
    for row in times:
        rate, decay = bench.setting(bench.ROWS[row], 0)
        run = {"protocol": "p", "trial": 0, "rate": rate, "decay": decay, "losses": [(0, 5.0), (100, 2.0)], "bytes": 8}
        bench.file_of(row, "seed", 1).write_text(json.dumps(run))
    seconds = {line.split("`")[1]: line.split(" | ")[-2] for line in bench.table("p")[2:]}
    assert seconds == {"AdamW": "4.6", "Lion": "not timed"}  # 91.7 steps


def test_the_model_sees_no_byte_ahead(small):
    model = bench.model()
    text = np.zeros((1, bench.CONTEXT), "int32")
    other = text.copy()
    other[0, 5:] = 7
    here, there = (keras.ops.convert_to_numpy(model(x)) for x in (text, other))
    np.testing.assert_array_equal(here[0, :5], there[0, :5])
    assert np.abs(here[0, 5:] - there[0, 5:]).max() > 1e-4
