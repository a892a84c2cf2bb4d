"""The chunked loss of a head against the whole one in float64, with the kernel and without it."""

import sys
import threading

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

from models.kernels import library
from models.kernels.linear_cross_entropy import (
    KERNEL_ROWS,
    linear_cross_entropy,
    token_losses,
)
from tests.models.kernels.on_path import is_at_most, run_python

TOLERANCE = 5e-6  # of the largest value, in float32; the worst of 3000 inputs 1.5e-6
RAGGED = (2 * KERNEL_ROWS + 37, 103, 19)  # three chunks, the last one short; no round vocabulary


class Case:
    """Random inputs of a loss, its value and gradients in float64."""

    def __init__(self, tokens, vocabulary, width, seed=None):
        self.seed = np.random.default_rng().integers(1 << 30) if seed is None else seed
        print("seed", self.seed)
        rng = np.random.default_rng(self.seed)
        self.x = rng.standard_normal((tokens, width)).astype("float32")
        self.table = rng.standard_normal((vocabulary, width)).astype("float32")
        self.labels = rng.integers(0, vocabulary, tokens)
        self.mask = (rng.random(tokens) * (rng.random(tokens) < 0.7)).astype("float32")

    def expected(self):
        x, table, mask = (each.astype("float64") for each in (self.x, self.table, self.mask))
        logits = x @ table.T
        logits -= logits.max(axis=1, keepdims=True)
        sums = np.exp(logits).sum(axis=1, keepdims=True)
        rows = np.arange(len(x))
        losses = np.log(sums)[:, 0] - logits[rows, self.labels]
        slope = np.exp(logits) / sums * mask[:, None]
        slope[rows, self.labels] -= mask
        return losses, slope @ table, slope.T @ x

    def magnitudes(self):
        """Return the largest loss and gradients if nothing in their sums cancelled.

        Differences are measured by these: where few words or tokens cancel almost whole, what is
        left is smaller than the rounding of its terms allows to know.
        """
        x, table, mask = (abs(each.astype("float64")) for each in (self.x, self.table, self.mask))
        logits = self.x.astype("float64") @ self.table.astype("float64").T
        terms = np.exp(logits - logits.max(axis=1, keepdims=True))
        terms /= terms.sum(axis=1, keepdims=True)
        terms[np.arange(len(x)), self.labels] += 1
        terms *= mask[:, None]
        largest = abs(logits).max(axis=1) + np.log(len(table))
        return largest @ mask, (terms @ table).max(), (terms.T @ x).max()

    def tensors(self):
        x, table = paddle.to_tensor(self.x), paddle.to_tensor(self.table)
        x.stop_gradient = table.stop_gradient = False
        return x, table, paddle.to_tensor(self.labels), paddle.to_tensor(self.mask)

    def run(self, scale=1.0):
        x, table, labels, mask = self.tensors()
        loss = linear_cross_entropy(x, table, labels, mask)
        (loss * scale).backward()
        return loss.numpy(), x.grad.numpy(), table.grad.numpy()


@pytest.fixture(params=["kernel", "reference"])
def form(request):
    library.load()
    if request.param == "kernel":
        yield request.param
        return
    with library.suspended():
        yield request.param


def largest_error(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def check(case, scale=1.0, tolerance=TOLERANCE):
    losses, *gradients = case.expected()
    expected = [np.sum(losses * case.mask), *(scale * each for each in gradients)]
    of_loss, *of_gradients = case.magnitudes()
    magnitudes = [of_loss, *(scale * each for each in of_gradients)]
    for got, true, magnitude in zip(case.run(scale), expected, magnitudes, strict=True):
        assert np.abs(got - true).max() < tolerance * magnitude


@pytest.mark.parametrize("shape", [RAGGED, (1, 1, 1), (5, 2, 1), (3, 1, 4), (1, 300, 70)])
def test_loss_and_gradients_are_those_of_the_whole_logits(form, shape):
    case = Case(*shape)
    case.mask[0] = 0.5
    if shape[1] == 1:  # a single word: no loss and no gradient
        assert all(not each.any() for each in case.run())
        return
    check(case)


@pytest.mark.parametrize("path", ["portable", "avx2"])
def test_every_path_computes_the_same(path):
    """This process has the widest path already: another one runs the ragged case."""
    code = (
        "from tests.models.kernels.test_linear_cross_entropy import *\n"
        "assert library.load() and library.multiplies()\n"
        "check(Case(*RAGGED))\n"
        "print(library.path())"
    )

    assert is_at_most(run_python(path, "-c", code)[-1], path)


def test_many_chunks_of_the_reference_add_up(monkeypatch):
    monkeypatch.setattr(sys.modules[linear_cross_entropy.__module__], "REFERENCE_LOGITS", 1000)
    with library.suspended():
        check(Case(61, 103, 19))


def test_the_gradient_of_the_loss_scales_its_own(form):
    check(Case(*RAGGED), scale=3.7)


def test_losses_of_tokens_are_those_without_a_mask(form):
    case = Case(*RAGGED)
    x, table, labels, _ = case.tensors()
    losses = token_losses(x, table, labels)
    assert losses.stop_gradient
    assert largest_error(losses.numpy(), case.expected()[0]) < TOLERANCE


def test_without_gradients_the_loss_is_bit_for_bit_the_same(form):
    x, table, labels, mask = Case(*RAGGED).tensors()
    with paddle.no_grad():
        without = linear_cross_entropy(x, table, labels, mask)
    assert float(without) == float(linear_cross_entropy(x, table, labels, mask))


def test_only_the_gradients_that_are_wanted_are_there(form):
    case = Case(40, 50, 8)
    _, dx, dtable = case.expected()
    for frozen in range(2):
        tensors = case.tensors()
        tensors[frozen].stop_gradient = True
        linear_cross_entropy(*tensors).backward()
        assert tensors[frozen].grad is None
        assert largest_error(tensors[1 - frozen].grad.numpy(), (dx, dtable)[1 - frozen]) < TOLERANCE


def test_losses_add_up_in_the_gradient_of_the_same_table(form):
    case = Case(*RAGGED)
    x, table, labels, mask = case.tensors()
    for part in (slice(0, 100), slice(100, None)):
        linear_cross_entropy(x[part], table, labels[part], mask[part]).backward()
    assert largest_error(table.grad.numpy(), case.expected()[2]) < TOLERANCE


def test_no_valid_token_is_no_loss_and_no_gradient(form):
    case = Case(*RAGGED)
    case.mask[:] = 0
    assert all(not each.any() for each in case.run())


def test_no_token_at_all_is_no_loss_and_no_gradient(form):
    case = Case(0, 11, 3)
    loss, dx, dtable = case.run()
    assert loss == 0
    assert dx.shape == (0, 3)
    assert dtable.shape == (11, 3)
    assert not dtable.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["x", "table"])
def test_what_is_not_finite_comes_out_as_such(form, value, where):
    case = Case(*RAGGED)
    case.mask[:] = 1
    getattr(case, where)[5, 3] = value
    _, *gradients = finite = [np.isfinite(each).all() for each in case.run()]
    # Paddle's softmax on a CPU may make a finite loss of such logits; then a gradient shows it.
    assert not any(finite) if form == "kernel" else not all(gradients)


def test_repeated_it_is_the_same_to_the_bit(form):
    case = Case(*RAGGED)
    first, again = case.run(), case.run()
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))


def test_large_logits_neither_overflow_nor_are_they_clipped():
    """Paddle's softmax on a CPU clips at e^-64: its losses end there, the kernel's do not."""
    library.load()
    case = Case(*RAGGED)
    case.table *= 100  # logits of some thousands, which float32 rounds at 1e-4
    check(case, tolerance=1e-3)


def test_what_is_not_contiguous_is_read_in_its_order(form):
    case = Case(40, 50, 8)
    x, table, labels, mask = case.tensors()
    turned = paddle.to_tensor(case.table.T.copy())
    wide = paddle.concat([x, x], axis=1)
    with paddle.no_grad():
        loss = linear_cross_entropy(wide[:, 8:], turned.t(), labels, mask)
    assert float(loss) == pytest.approx(float(linear_cross_entropy(x, table, labels, mask)))


@pytest.mark.parametrize("wrong", ["width", "labels", "mask"])
def test_shapes_that_do_not_fit_are_refused(form, wrong):
    x, table, labels, mask = Case(4, 5, 6).tensors()
    with pytest.raises(ValueError, match="labels"):
        linear_cross_entropy(
            x[:, :5] if wrong == "width" else x,
            table,
            labels[:3] if wrong == "labels" else labels,
            mask[:3] if wrong == "mask" else mask,
        )


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_beyond_the_table_is_refused(form, label):
    case = Case(4, 5, 6)
    case.labels[2] = label
    with pytest.raises((IndexError, OSError), match=r"label"):
        case.run()


def test_it_can_be_recomputed(form):
    case = Case(*RAGGED)
    for reentrant in (False, True):
        x, table, labels, mask = case.tensors()
        recompute(linear_cross_entropy, x, table, labels, mask, use_reentrant=reentrant).backward()
        assert largest_error(x.grad.numpy(), case.expected()[1]) < TOLERANCE
        assert largest_error(table.grad.numpy(), case.expected()[2]) < TOLERANCE


def test_it_can_be_traced(form):
    case = Case(*RAGGED)
    traced = paddle.jit.to_static(linear_cross_entropy, full_graph=True)
    x, table, labels, mask = case.tensors()
    traced(x, table, labels, mask).backward()
    assert largest_error(x.grad.numpy(), case.expected()[1]) < TOLERANCE
    assert largest_error(table.grad.numpy(), case.expected()[2]) < TOLERANCE


def test_threads_do_not_disturb_each_other(form):
    cases = [Case(*RAGGED) for _ in range(2)]
    found = {}

    def work(index):
        found[index] = cases[index].run()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, case in enumerate(cases):
        assert all(np.array_equal(*pair) for pair in zip(found[index], case.run(), strict=True))


def test_float64_stays_float64():
    case = Case(40, 50, 8)
    x, table, labels, mask = (paddle.to_tensor(each.numpy()) for each in case.tensors())
    x, table = x.astype("float64"), table.astype("float64")
    loss = linear_cross_entropy(x, table, labels, mask)
    assert loss.dtype == paddle.float64
    assert float(loss) == pytest.approx(np.sum(case.expected()[0] * case.mask), rel=1e-13)
