import itertools

import numpy as np
import pytest

from fastffn_cli.tasks.windows import cut_windows
from tests.fleetx_models import load_arrays

EOS = 99


def windows_of(ids, *, seq_len, stride, chunk=1000, eos_id=EOS):
    ids = np.asarray(ids, np.int64)
    chunks = [ids[start : start + chunk] for start in range(0, ids.size, chunk)]
    return list(cut_windows(chunks, seq_len=seq_len, stride=stride, eos_id=eos_id))


def predicted(windows):
    """(token before, label) of every prediction that counts."""
    return [
        (int(window.tokens[place]), int(window.labels[place]))
        for window in windows
        for place in np.flatnonzero(window.mask)
    ]


@pytest.mark.parametrize(
    ("length", "seq_len", "stride"),
    [(2, 8, 3), (8, 8, 8), (9, 8, 8), (10, 8, 8), (9, 8, 3), (50, 8, 3), (50, 8, 1), (51, 8, 8),
     (17, 8, 4), (64, 5, 5), (100, 32, 31)],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_every_token_is_predicted_once_and_in_order(length, seq_len, stride, chunk):
    ids = np.arange(length) % EOS
    found = predicted(windows_of(ids, seq_len=seq_len, stride=stride, chunk=chunk))
    assert found == list(itertools.pairwise(ids.tolist()))


def test_later_windows_predict_their_last_tokens_only():
    first, second, *_ = windows_of(range(40), seq_len=8, stride=3)
    assert first.first == 0 and first.mask.tolist() == [1.0] * 8
    assert second.first == 5 and second.mask.tolist() == [0.0] * 5 + [1.0] * 3
    assert second.tokens.tolist() == list(range(3, 11))


def test_the_last_window_is_padded_and_the_padding_not_scored():
    window = windows_of(range(4), seq_len=6, stride=6)[-1]
    assert window.tokens.tolist() == [0, 1, 2, 3, EOS, EOS]
    assert window.mask.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_what_follows_an_end_of_text_is_not_predicted_but_the_end_is():
    found = predicted(windows_of([1, 2, EOS, 3, 4, EOS], seq_len=4, stride=2))
    assert found == [(1, 2), (2, EOS), (3, 4), (4, EOS)]


def test_without_an_end_of_text_token_everything_is_predicted():
    found = predicted(windows_of([1, EOS, 2], seq_len=4, stride=4, eos_id=None))
    assert found == [(1, EOS), (EOS, 2)]


@pytest.mark.parametrize("length", [0, 1])
def test_too_few_tokens_make_no_window(length):
    assert windows_of(range(length), seq_len=4, stride=2) == []


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_outside_the_window_is_refused(stride):
    with pytest.raises(ValueError, match="stride"):
        windows_of(range(20), seq_len=8, stride=stride)


def test_windows_are_those_of_fleetx():
    arrays = load_arrays("eval_arrays.npz")
    eos = 50256
    ids = [*arrays["wiki.ids"].tolist(), eos]
    windows = windows_of(ids, seq_len=64, stride=32, eos_id=eos)
    count = len(windows)
    assert [window.tokens.tolist() for window in windows] == arrays["wiki.tokens"][:count].tolist()
    assert [window.mask.tolist() for window in windows] == arrays["wiki.loss_mask"][:count].tolist()
    # FleetX makes one more window, in which nothing is scored.
    assert arrays["wiki.loss_mask"][count:].sum() == 0
    for window, labels in zip(windows, arrays["wiki.labels"], strict=False):
        scored = window.mask > 0
        assert window.labels[scored].tolist() == labels[scored].tolist()
