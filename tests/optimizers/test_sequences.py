"""What is done to a model, in random order: see `sequences`."""

import pytest
import sequences
import twins

FEW = 6


@pytest.mark.few(2)
@pytest.mark.parametrize("seed", range(FEW))
def test_a_few_sequences(seed, tmp_path):
    sequences.play(seed, tmp_path, traced=seed == 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FEW, FEW + 60, 10))
def test_more_sequences(seed, tmp_path):
    for each in range(seed, seed + 10):
        sequences.play(each, tmp_path / str(each))


@pytest.mark.slow
@pytest.mark.parametrize("kind", twins.OPTIMIZERS)
def test_every_optimizer_in_graphs(kind, tmp_path):
    sequences.play(len(kind), tmp_path, traced=True, kind=kind)


def test_a_difference_says_how_to_play_it_again(monkeypatch, tmp_path):
    monkeypatch.setattr(twins.kopt.Optimizer, "reset", lambda self: None)
    with pytest.raises(twins.DifferenceError, match="iterations: number 0 is off by up to"):
        for seed in range(20):
            sequences.play(seed, tmp_path / str(seed), traced=False)
