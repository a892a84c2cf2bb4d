"""Attention in one operator: against float64, by itself, and inside a GPT."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import paddle
import pytest

from models.gpt import GPT, GPTConfig
from models.kernels import library
from models.kernels.attention import MASKED, attend, attend_plainly
from tests.models.kernels.on_path import PATHS, is_at_most, run_python

TOLERANCE = 6e-6  # of the largest value; rounding of float32 sums alone: 2.1e-6 in 2800 inputs
# Batch, heads, steps, size of a head: below, at and above the kernel's blocks of 64, and ragged.
SHAPES = [
    *((1, 1, 1, 16), (2, 3, 5, 7), (3, 2, 64, 32), (2, 3, 70, 20), (1, 1, 300, 64)),
    *((1, 2, 129, 33), (2, 1, 65, 256)),
]


@pytest.fixture(autouse=True)
def loaded() -> None:
    library.load()


def draw(
    rng: np.random.Generator, batch: int, heads: int, steps: int, head_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """qkv and the gradient of the output."""
    width = heads * head_size
    shapes = [(batch, steps, 3 * width), (batch, steps, width)]
    qkv, gradient = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return qkv, gradient


def in_float64(
    qkv: np.ndarray,
    gradient: np.ndarray,
    heads: int,
    mask: np.ndarray | None,
    shares: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The formula and its gradient, with the usual transposes, by hand.

    `shares` [B, H, T, T] is what dropout multiplies the weights by.
    """
    batch, steps, columns = qkv.shape
    split = qkv.astype(np.float64).reshape(batch, steps, heads, -1).transpose(0, 2, 1, 3)
    q, k, v = np.split(split, 3, axis=-1)
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale
    if mask is None:
        scores[..., np.triu(np.ones((steps, steps), bool), 1)] = -np.inf
    else:
        scores += mask if mask.ndim == 2 else mask[:, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    kept = weights * shares
    d_out = gradient.astype(np.float64).reshape(batch, steps, heads, -1).transpose(0, 2, 1, 3)
    d_weights = d_out @ v.swapaxes(-1, -2) * shares
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * scale
    parts = [d_scores @ k, d_scores.swapaxes(-1, -2) @ q, kept.swapaxes(-1, -2) @ d_out]
    d_qkv = np.concatenate(parts, axis=-1).transpose(0, 2, 1, 3).reshape(qkv.shape)
    return (kept @ v).transpose(0, 2, 1, 3).reshape(batch, steps, columns // 3), d_qkv


def computed(
    qkv: np.ndarray,
    gradient: np.ndarray,
    heads: int,
    mask: np.ndarray | None = None,
    dropout: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    x = paddle.to_tensor(qkv, stop_gradient=False)
    out = attend(x, heads, None if mask is None else paddle.to_tensor(mask), dropout)
    out.backward(paddle.to_tensor(gradient))
    return out.numpy(), x.grad.numpy()


def check(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("batch", "heads", "steps", "head_size"), SHAPES)
@pytest.mark.parametrize("masks", [None, 0, 1, "batch"])
def test_output_and_gradient_agree_with_float64(rng, batch, heads, steps, head_size, masks):
    qkv, gradient = draw(rng, batch, heads, steps, head_size)
    mask = None
    if masks is not None:
        leading = {0: (), 1: (1,), "batch": (batch,)}[masks]
        hidden = rng.random((*leading, steps, steps)) < 0.3
        # A row of nothing but MASKED would be rounded at MASKED's size.
        hidden &= ~np.eye(steps, dtype=bool)
        mask = np.where(hidden, np.float32(MASKED), rng.standard_normal(hidden.shape, np.float32))

    found = computed(qkv, gradient, heads, mask)

    for each, expected in zip(found, in_float64(qkv, gradient, heads, mask), strict=True):
        check(each, expected)


def test_the_reference_path_agrees_with_the_kernel(rng):
    qkv, gradient = draw(rng, 2, 3, 70, 20)
    found = computed(qkv, gradient, 3)
    with library.suspended():
        expected = computed(qkv, gradient, 3)
    for each, other in zip(found, expected, strict=True):
        check(each, other)


def test_a_row_that_is_masked_throughout_attends_to_all_keys_alike(rng):
    """Whatever their order: -1e4 hides a key from rows that see another one, from no others."""
    qkv, gradient = draw(rng, 2, 2, 80, 16)
    mask = np.triu(np.full((80, 80), MASKED, np.float32), 1)
    mask[[3, 70]] = MASKED

    out, d_qkv = computed(qkv, gradient, 2, mask)

    expected, slopes = in_float64(qkv, gradient, 2, mask)
    hidden = np.isin(np.arange(80), [3, 70])
    check(out[:, ~hidden], expected[:, ~hidden])
    # Next to -1e4, float32 keeps a score to about 5e-4.
    check(out[:, hidden], expected[:, hidden], 2e-3)
    check(d_qkv, slopes, 2e-3)


def test_large_scores_keep_their_precision(rng):
    qkv, gradient = draw(rng, 1, 2, 100, 32)
    qkv *= 10

    found = computed(qkv, gradient, 2)

    for each, expected in zip(found, in_float64(qkv, gradient, 2, None), strict=True):
        check(each, expected, 1e-4)  # scores of some 500, each off by a rounding of float32


TRIAL = """
import sys
import numpy as np
from tests.models.kernels import test_attention as t
t.library.load()
rng = np.random.default_rng(int(sys.argv[1]))
worst = 0.0
for shape in ((2, 3, 70, 20), (1, 1, 300, 64), (1, 1, 65, 9)):
    qkv, gradient = t.draw(rng, *shape)
    for mask in (None, rng.standard_normal((shape[2], shape[2])).astype("float32")):
        found = t.computed(qkv, gradient, shape[1], mask)
        for each, right in zip(found, t.in_float64(qkv, gradient, shape[1], mask), strict=True):
            worst = max(worst, np.abs(each - right).max() / np.abs(right).max())
t.paddle.seed(5)
print(t.library.path(), worst, (t.kept_weights(dropout=0.4)[0] > 0).sum())
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_every_path_agrees_with_float64_and_drops_the_same(rng, threads):
    """With more threads than heads, each thread has some of a head's queries."""
    seed = str(rng.integers(1 << 30))
    trials = [run_python(path, "-c", TRIAL, seed, threads=threads)[-3:] for path in PATHS]

    for path, (used, worst, _) in zip(PATHS, trials, strict=True):
        assert is_at_most(used, path)
        assert float(worst) < TOLERANCE
    assert len({kept for *_, kept in trials}) == 1


def test_repetition_gives_the_same_bits(rng):
    qkv, gradient = draw(rng, 2, 3, 200, 24)
    first = computed(qkv, gradient, 3)
    for each, again in zip(first, computed(qkv, gradient, 3), strict=True):
        np.testing.assert_array_equal(again, each)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("steps", [1, 100])
def test_what_is_not_finite_comes_out(rng, value, part, steps):
    qkv, gradient = draw(rng, 1, 1, steps, 8)
    column = {"q": 1, "k": 9, "v": 17}[part]
    qkv[0, steps // 2, column] = value

    out, d_qkv = computed(qkv, gradient, 1)

    # Of one key, the weight is 1 whatever its finite score is.
    assert not np.isfinite(out).all()
    assert not np.isfinite(d_qkv).all()


def test_a_gradient_that_is_not_finite_comes_out(rng):
    qkv, gradient = draw(rng, 1, 2, 70, 8)
    gradient[0, 66, 3] = np.nan
    _, d_qkv = computed(qkv, gradient, 2)
    assert np.isnan(d_qkv).any()


# --- dropout -------------------------------------------------------------------------------------

STEPS = 96


def kept_weights(dropout: float, heads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The weights [H, T, T] as values of one to each key show them, and the qkv they are of."""
    rng = np.random.default_rng(3)
    columns = rng.standard_normal((STEPS, heads, 3, STEPS), np.float32)
    columns[:, :, 2] = np.eye(STEPS, dtype=np.float32)[:, None]
    qkv = columns.reshape(1, STEPS, -1)
    out = attend(paddle.to_tensor(qkv), heads, None, dropout).numpy()
    return out.reshape(STEPS, heads, STEPS).transpose(1, 0, 2), qkv


def test_dropout_drops_its_share_and_divides_the_others_by_what_stays():
    dropped, _ = kept_weights(0.3)
    whole, _ = kept_weights(0.0)
    seen = np.tri(STEPS, dtype=bool) & np.ones_like(whole, bool)
    kept = dropped[seen] > 0
    np.testing.assert_allclose(dropped[seen][kept], whole[seen][kept] / 0.7, rtol=1e-5)
    assert abs(kept.mean() - 0.7) < 5 * (0.21 / kept.size) ** 0.5
    # Neither rows, nor columns, nor heads drop alike.
    assert abs(np.corrcoef((dropped > 0)[:, :, 0])[0, 1]) < 0.6
    assert not np.array_equal(dropped[0] > 0, dropped[1] > 0)
    late = (dropped > 0)[0, STEPS // 2 :, : STEPS // 2].astype(float)
    assert 0.6 < late.mean(0).mean() < 0.8
    assert late.mean(0).std() < 0.15
    assert late.mean(1).std() < 0.15


def test_dropout_follows_the_seed_and_is_new_each_time():
    paddle.seed(4)
    first, second = kept_weights(0.3)[0], kept_weights(0.3)[0]
    paddle.seed(4)
    np.testing.assert_array_equal(kept_weights(0.3)[0], first)
    assert not np.array_equal(first > 0, second > 0)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_drops_what_the_output_does(rng, masked):
    paddle.seed(12)
    dropped, qkv = kept_weights(0.3)
    shares = np.where(dropped > 0, 1 / 0.7, 0)[None]
    gradient = rng.standard_normal((1, STEPS, 2 * STEPS), np.float32)
    mask = np.triu(np.full((STEPS, STEPS), MASKED, np.float32), 1) if masked else None
    paddle.seed(12)
    found = computed(qkv, gradient, 2, mask, 0.3)
    for each, expected in zip(found, in_float64(qkv, gradient, 2, mask, shares), strict=True):
        check(each, expected)


# --- how it is called ----------------------------------------------------------------------------


def test_a_program_that_is_traced_gives_the_same(rng):
    qkv, gradient = draw(rng, 2, 2, 40, 12)
    expected, slopes = computed(qkv, gradient, 2)

    def attend_two_heads(qkv):
        return attend(qkv, 2)

    x = paddle.to_tensor(qkv, stop_gradient=False)
    out = paddle.jit.to_static(attend_two_heads, full_graph=True)(x)
    out.backward(paddle.to_tensor(gradient))
    np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(x.grad.numpy(), slopes)


def test_threads_do_not_disturb_each_other(rng):
    cases = [draw(rng, 2, 2, 150, 16) for _ in range(4)]
    expected = [computed(*case, 2) for case in cases]
    wrong: list[int] = []

    def repeat(index: int) -> None:
        for _ in range(5):
            found = computed(*cases[index], 2)
            if any(not np.array_equal(*pair) for pair in zip(found, expected[index], strict=True)):
                wrong.append(index)

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_view_with_strides_is_read_as_it_looks(rng):
    qkv, gradient = draw(rng, 3, 2, 20, 8)
    expected, _ = computed(qkv, gradient, 2)
    swapped = paddle.to_tensor(qkv.transpose(1, 0, 2).copy()).transpose([1, 0, 2])
    strided = paddle.as_strided(
        paddle.to_tensor(qkv.transpose(1, 0, 2).copy()), [3, 20, 48], [48, 144, 1]
    )
    for view in (swapped, strided):
        np.testing.assert_array_equal(attend(view, 2).numpy(), expected)


@pytest.mark.parametrize("shape", [(0, 5, 24), (2, 0, 24)])
def test_nothing_in_nothing_out(shape):
    assert attend(paddle.zeros(shape), 2).shape == [*shape[:2], 8]


@pytest.mark.parametrize(
    ("shape", "heads", "mask"),
    [
        ((2, 5, 25), 2, None),
        ((5, 24), 2, None),
        ((2, 5, 24), 2, (5, 4)),
        ((2, 5, 24), 2, (3, 5, 5)),
        ((2, 5, 24), 2, (5,)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, heads, mask):
    with pytest.raises((OSError, ValueError)):
        attend(paddle.zeros(shape), heads, None if mask is None else paddle.zeros(mask))


def test_other_types_and_larger_heads_take_the_reference_path(rng):
    qkv, _ = draw(rng, 1, 1, 10, 300)
    check(attend(paddle.to_tensor(qkv), 1).numpy(), in_float64(qkv, qkv[..., :300], 1, None)[0])
    double = attend(paddle.to_tensor(qkv.astype(np.float64)), 1)
    assert double.dtype == paddle.float64


def test_a_mask_that_is_learned_gets_its_gradient(rng):
    qkv, gradient = draw(rng, 1, 1, 6, 4)
    mask = paddle.zeros([6, 6])
    mask.stop_gradient = False
    attend(paddle.to_tensor(qkv), 1, mask).backward(paddle.to_tensor(gradient))
    assert np.abs(mask.grad.numpy()).max() > 0


# --- inside a GPT --------------------------------------------------------------------------------

CONFIG = GPTConfig(
    vocab_size=61,
    hidden_size=48,
    num_layers=2,
    num_attention_heads=3,
    ffn_hidden_size=64,
    max_position_embeddings=90,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.3,
)


def gradients(config: GPTConfig, ids: np.ndarray) -> dict[str, np.ndarray]:
    paddle.seed(3)
    model = GPT(config)
    model.train()
    paddle.sum(model(paddle.to_tensor(ids)) ** 2).backward()
    return {name: each.grad.numpy() for name, each in model.named_parameters()}


@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
@pytest.mark.parametrize("hidden", [None, 7])
def test_recomputation_draws_the_same_dropout_again(rng, granularity, hidden):
    config = replace(CONFIG, masked_token_id=hidden)
    ids = rng.integers(0, 61, (2, 70))
    expected = gradients(config, ids)
    again = gradients(replace(config, use_recompute=True, recompute_granularity=granularity), ids)
    for name, found in again.items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


@pytest.mark.parametrize("hidden", [None, 7])
@pytest.mark.parametrize("pieces", [[80], [70, 10], [3, 66, 1, 2, 1, 7], [1] * 80])
def test_cached_tokens_are_attended_to_as_new_ones(rng, hidden, pieces):
    """All rows but those of the hidden token, which see what follows in the same piece."""
    model = GPT(replace(CONFIG, masked_token_id=hidden))
    model.eval()
    ids = rng.integers(0, 61, (3, 80))
    with paddle.no_grad(), library.suspended():
        expected = model(paddle.to_tensor(ids)).numpy()
    cache, parts, start = model.new_cache(3, 85), [], 0
    with paddle.no_grad():
        for length in pieces:
            parts.append(model(paddle.to_tensor(ids[:, start : start + length]), cache=cache))
            start += length
    found = np.concatenate([each.numpy() for each in parts], axis=1)
    rows = ids != hidden
    np.testing.assert_allclose(found[rows], expected[rows], rtol=0, atol=1e-5)


def test_both_paths_keep_one_cache(rng):
    model = GPT(CONFIG)
    model.eval()
    ids = paddle.to_tensor(rng.integers(0, 61, (2, 30)))
    cache = model.new_cache(2, 30)
    with paddle.no_grad():
        expected = model(ids).numpy()
        with library.suspended():
            model(ids[:, :11], cache=cache)
        model(ids[:, 11:20], cache=cache)
        model(ids[:, 20:21], cache=cache)
        with library.suspended():
            found = model(ids[:, 21:], cache=cache).numpy()
    np.testing.assert_allclose(found, expected[:, 21:], rtol=0, atol=1e-5)


def test_a_cache_that_is_too_small_is_not_written_over_its_end(rng):
    qkv, _ = draw(rng, 1, 2, 3, 8)
    keys, values = paddle.zeros([2, 4, 8]), paddle.zeros([2, 4, 8])
    with pytest.raises(OSError, match="room for the new steps"):
        library.run("cached_attention", paddle.to_tensor(qkv), keys, values, None, 2, 2)


def test_attend_plainly_is_what_other_devices_do(rng):
    qkv, gradient = draw(rng, 2, 3, 33, 12)
    check(attend_plainly(paddle.to_tensor(qkv), 3).numpy(), in_float64(qkv, gradient, 3, None)[0])
