import numpy as np
import pytest

from fastffn_cli.tasks.scoring import score_windows
from fastffn_cli.tasks.windows import cut_windows
from models.kernels import linear_cross_entropy
from tests.fleetx_models import load_arrays, load_eval, load_small


@pytest.fixture(scope="module")
def small():
    return load_small()


def windows_of(length=700, seq_len=32, stride=8):
    ids = np.random.default_rng(3).integers(0, 127, length)
    return list(cut_windows([ids], seq_len=seq_len, stride=stride, eos_id=127))


def test_sum_is_that_of_fleetx():
    arrays = load_arrays("eval_arrays.npz")
    ids = np.append(arrays["wiki.ids"], 50256)
    windows = cut_windows([ids], seq_len=64, stride=32, eos_id=50256)
    score = score_windows(load_eval(), windows, batch_size=4)
    expected = float((arrays["wiki.nll"] * arrays["wiki.loss_mask"]).sum())
    assert expected == pytest.approx(6098.302602, rel=1e-9)
    assert score.targets == 553
    assert score.nll == pytest.approx(expected, rel=1e-6)


def test_sum_is_bit_equal_whatever_the_batch_size(small):
    scores = [score_windows(small, windows_of(), batch_size=size) for size in (1, 3, 8, 100, 10**6)]
    assert len({(score.nll, score.targets) for score in scores}) == 1


def test_sum_equals_the_losses_of_single_positions(small):
    import paddle

    windows = windows_of(length=90)
    expected = 0.0
    for window in windows:
        with paddle.no_grad():
            logits = small(paddle.to_tensor(window.tokens[None])).numpy()[0].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        expected -= float((log_p[np.arange(32), window.labels] * window.mask).sum())
    score = score_windows(small, windows, batch_size=2)
    assert score.nll == pytest.approx(expected, rel=1e-6)
    assert score.targets == 89


def test_logits_in_small_parts_give_the_same(small, monkeypatch):
    whole = score_windows(small, windows_of(), batch_size=8)
    monkeypatch.setattr(linear_cross_entropy, "REFERENCE_LOGITS", 128 * 10)
    assert score_windows(small, windows_of(), batch_size=8).nll == pytest.approx(
        whole.nll, rel=1e-6
    )


def test_windows_are_read_as_they_are_needed(small):
    taken = 0

    def stream():
        nonlocal taken
        for window in windows_of(length=3000):
            taken += 1
            yield window

    seen = []
    score_windows(small, stream(), batch_size=1, on_progress=lambda _score: seen.append(taken))
    assert seen[0] <= 1 + 1024 // 32 + 1 < seen[-1]


def test_progress_ends_at_the_result(small):
    seen = []
    score = score_windows(small, windows_of(), batch_size=8, on_progress=seen.append)
    assert seen[-1] == score
    assert [each.targets for each in seen] == sorted(each.targets for each in seen)
