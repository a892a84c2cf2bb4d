import math

import numpy as np
import psutil
import pytest

from fastffn_cli.data.dataset import Batch
from fastffn_cli.tasks.causal_lm import CausalLM, perplexity, to_device
from tests.fleetx_models import load_arrays, load_small


@pytest.fixture(scope="module")
def task():
    return CausalLM(load_small())


@pytest.fixture(scope="module")
def batch():
    arrays = load_arrays("A_forward.npz")
    return Batch(arrays["input_ids"], arrays["labels"], arrays["loss_mask"])


def test_mean_loss_is_that_of_fleetx(task, batch):
    expected = float(load_arrays("A_forward.npz")["loss"])
    assert 0 < task.weight(batch) < batch.mask_BS.size  # the mask takes part
    assert float(task.loss(batch)) / task.weight(batch) == pytest.approx(expected, rel=1e-5)


def test_loss_is_a_float32_sum_with_a_gradient(task, batch):
    loss = task.loss(batch)
    assert loss.shape == [] and str(loss.dtype).endswith("float32")
    loss.backward()
    assert task.model.word_embeddings.weight.grad is not None
    task.model.clear_gradients()


def test_losses_of_parts_add_up(task, batch):
    parts = [batch.slice(0, 1), batch.slice(1, 2)]
    assert sum(float(task.loss(part)) for part in parts) == pytest.approx(
        float(task.loss(batch)), rel=1e-6
    )


def test_masked_tokens_do_not_count(task, batch):
    mask = batch.mask_BS.copy()
    mask[:, 10:] = 0
    labels = batch.labels_BS.copy()
    labels[:, 10:] = (labels[:, 10:] + 1) % 128
    masked = Batch(batch.tokens_BS, labels, mask)
    short = Batch(batch.tokens_BS[:, :10], batch.labels_BS[:, :10], batch.mask_BS[:, :10])
    assert float(task.loss(masked)) == pytest.approx(float(task.loss(short)), rel=1e-5)


def test_an_all_masked_batch_has_loss_zero(task, batch):
    empty = Batch(batch.tokens_BS, batch.labels_BS, np.zeros_like(batch.mask_BS))
    assert float(task.loss(empty)) == 0.0
    assert task.weight(empty) == 0.0


def test_a_divisor_divides_the_loss(task, batch):
    assert float(task.loss(batch, 37.0)) == pytest.approx(float(task.loss(batch)) / 37.0, rel=1e-6)


def test_perplexity_is_capped_as_fleetx_caps_it(task):
    assert task.metrics(2.0) == {"ppl": math.exp(2.0)}
    assert perplexity(25.0) == math.exp(20.0)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4)[:, ::2],
        np.float32([[1.5, np.nan], [np.inf, -0.0]]).T,
        np.zeros((0, 4), np.int64),
    ],
)
def test_an_array_of_any_layout_comes_to_the_device(array):
    tensor = to_device(array)
    assert tensor.stop_gradient
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype


def test_bringing_arrays_to_the_device_keeps_nothing():
    process, array = psutil.Process(), np.zeros((4, 64), np.int64)
    for _ in range(5_000):
        to_device(array)
    before = process.memory_info().rss
    for _ in range(20_000):
        to_device(array)
    assert process.memory_info().rss - before < 1_000_000  # `paddle.to_tensor` keeps 2.2 MB
