"""One kind for the model, with exceptions: layers that stay dense, a rank for each layer."""

import numpy as np
import paddle
import pytest

from models import ffn
from models.gpt import GPT, GPTConfig, count_parameters, flops_per_token

SPEC = {"kind": "low_rank", "init": "normal", "layer_ranks": (2, 3, 4), "dense_layers": (0, -1)}


def config_of(**spec):
    return GPTConfig(
        vocab_size=31, hidden_size=16, num_layers=3, num_attention_heads=2, ffn_hidden_size=48,
        max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ffn={**SPEC, **spec},
    )  # fmt: skip


def test_named_layers_stay_dense_and_the_others_have_their_rank():
    model = GPT(config_of())
    kinds = [layer.ffn.kind for layer in model.layers]
    assert kinds == ["dense", "low_rank", "dense"]
    assert model.layers[1].ffn.linear1.left.shape == [16, 3]


def test_parameters_and_flops_are_those_of_the_built_layers():
    config = config_of()
    built = sum(int(np.prod(parameter.shape)) for parameter in GPT(config).parameters())
    assert count_parameters(config) == built
    dense, low_rank = 4 * 16 * 48, 4 * 3 * (16 + 48)
    others = 3 * (8 * 16 * 16 + 4 * 8 * 16) + 2 * 16 * 31
    assert flops_per_token(config, seq_len=8) == 2 * dense + low_rank + others


def test_merging_leaves_dense_layers_alone_and_the_function_as_it_was():
    model = GPT(config_of())
    model.eval()
    ids = paddle.to_tensor([[1, 2, 3, 4]])
    before = model(ids).numpy()
    assert ffn.merge(model) == ["layers.1.ffn"]
    np.testing.assert_allclose(model(ids).numpy(), before, atol=1e-5)
    assert model.config.ffn == {"kind": "dense"}


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"dense_layers": (3,)}, "dense_layers names layer 3 of 3"),
        ({"dense_layers": (-4,)}, "dense_layers names layer -4 of 3"),
        ({"layer_ranks": (2, 3)}, "layer_ranks has 2 ranks for 3 layers"),
    ],
)
def test_layers_that_are_not_there_are_refused(spec, text):
    with pytest.raises(ValueError, match=text):
        GPT(config_of(**spec))


def test_an_auxiliary_loss_is_none_where_no_layer_has_one():
    model = GPT(config_of())
    model(paddle.to_tensor([[1, 2]]))
    assert model.auxiliary_loss() is None
    model.set_progress(0.5, [0.1, 0.2, 0.3])
