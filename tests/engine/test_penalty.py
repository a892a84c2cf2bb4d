"""What a model adds to its own objective is trained, and not reported as loss."""

import numpy as np
import paddle
import pytest

from fastffn_cli.config.load import default_config
from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.tasks.causal_lm import CausalLM
from models.gpt import GPT, GPTConfig

CONFIG = GPTConfig(
    vocab_size=19, hidden_size=8, num_layers=2, num_attention_heads=2, ffn_hidden_size=16,
    max_position_embeddings=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


class Penalised(GPT):
    """Adds the sum of its final norm's biases to the objective."""

    def auxiliary_loss(self):
        return 0.25 * self.norm.bias.sum()


def run_step(model, micro_batch_size):
    paddle.seed(3)
    ids = np.random.default_rng(5).integers(0, 19, (4, 7))
    mask = np.ones((4, 6), np.float32)
    mask[1, 2:] = 0
    batch = Batch(ids[:, :-1], ids[:, 1:], mask)
    optimizer = AdamW(model, default_config().config.Optimizer, multi_precision=False)
    recorded = {}
    optimizer.step = lambda rate, **_: recorded.update(
        {name: p.grad.numpy() for name, p in optimizer.parameters.items()}
    )
    step = TrainStep(
        CausalLM(model), optimizer, Precision(),
        micro_batch_size=micro_batch_size, grad_clip=0.0,
    )  # fmt: skip
    return step(batch, 1e-3).loss, recorded


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
def test_the_penalty_is_in_the_gradient_once_and_not_in_the_loss(micro_batch_size):
    paddle.seed(1)
    plain = GPT(CONFIG)
    penalised = Penalised(CONFIG)
    penalised.set_state_dict(plain.state_dict())
    loss, gradients = run_step(plain, 4)
    again, with_penalty = run_step(penalised, micro_batch_size)
    assert again == pytest.approx(loss, rel=1e-6)
    difference = with_penalty["norm.bias"] - gradients["norm.bias"]
    np.testing.assert_allclose(difference, 0.25, atol=1e-6)
    np.testing.assert_allclose(
        with_penalty["norm.weight"], gradients["norm.weight"], atol=1e-6, rtol=1e-4
    )


def test_every_step_tells_the_model_its_progress_and_numbers_that_a_resume_repeats():
    told = []

    class Told(GPT):
        def set_progress(self, share, draws):
            told.append((share, list(draws)))

    task = CausalLM(Told(CONFIG))
    task.begin_step(0.25, 77)
    task.begin_step(0.5, 78)
    task.begin_step(0.25, 77)
    assert told[0] == told[2]
    assert told[0][0] == 0.25
    assert len(told[0][1]) == 2
    assert told[0][1] != told[1][1]
    assert all(0 <= draw < 1 for _, draws in told for draw in draws)
