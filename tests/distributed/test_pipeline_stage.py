"""A stage is a part of the whole model, and runs as the model does."""

import numpy as np
import paddle
import pytest

from fastffn_cli.distributed.mesh import Axis
from fastffn_cli.distributed.pipeline_stage import Stage
from models.gpt import GPT, GPTConfig

STAGES = 3
CONFIG = GPTConfig(
    vocab_size=31, hidden_size=16, num_layers=6, num_attention_heads=2, ffn_hidden_size=32,
    max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    masked_token_id=2, ffn={"kind": "guided", "rank": 4, "reduce_flops": False},
)  # fmt: skip


@pytest.fixture
def whole():
    paddle.seed(4)
    return GPT(CONFIG)


@pytest.fixture
def rng():
    return np.random.default_rng()


def stages_of(whole):
    return [Stage(whole, Axis("pp", tuple(range(STAGES)), index)) for index in range(STAGES)]


def run(stages, ids):
    x = None
    for stage in stages:
        stage.received = x
        x = stage.hidden(ids)
    return x


def test_stages_one_after_the_other_are_the_whole_model(whole, rng):
    ids = paddle.to_tensor(rng.integers(0, CONFIG.vocab_size, (3, 8)))
    expected = whole.hidden(ids).numpy()
    assert np.array_equal(run(stages_of(whole), ids).numpy(), expected)


def test_parameters_keep_their_names_in_the_whole_model(whole):
    names = [name for name, _ in whole.named_parameters()]
    first, middle, last = stages_of(whole)
    table = ["word_embeddings.weight"]
    assert [list(stage.table) for stage in (first, middle, last)] == [table, [], table]
    held = [name for stage in (first, middle, last) for name, _ in stage.named_parameters()]
    assert sorted(held) == sorted(names + table)
    assert {name.split(".")[1] for name, _ in middle.named_parameters()} == {"2", "3"}
    assert [stage.copied for stage in (first, middle, last)] == [set(), set(), set(table)]


def test_progress_reaches_the_layers_of_a_stage(whole, rng):
    ids = paddle.to_tensor(rng.integers(0, CONFIG.vocab_size, (3, 8)))
    for parameter in whole.parameters():  # the two branches are the same function at first
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    draws = rng.random(CONFIG.num_layers).tolist()
    whole.set_progress(0.2, draws)
    expected = whole.hidden(ids).numpy()
    whole.set_progress(1.0, draws)
    stages = stages_of(whole)
    assert not np.allclose(run(stages, ids).numpy(), expected, atol=1e-3)
    for stage in stages:
        stage.set_progress(0.2, draws)
    assert np.array_equal(run(stages, ids).numpy(), expected)


def test_a_stage_needs_what_the_one_before_it_computed(whole):
    with pytest.raises(AssertionError, match="received"):
        stages_of(whole)[1].hidden(paddle.zeros([1, 8], "int64"))
