"""GPTs with the weights of tests/fixtures/fleetx, which PaddleFleetX itself wrote and ran."""

import json
from pathlib import Path

import numpy as np

from fastffn_cli.engine.cpu import prepare_environment

prepare_environment()

FIXTURES_DIR = Path(__file__).parent / "fixtures" / "fleetx"


def load_arrays(name):
    with np.load(FIXTURES_DIR / name, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def our_name(name):
    """FleetX's parameter name in our model."""
    name = name.removeprefix("gpt.").removeprefix("embeddings.").removeprefix("decoder.")
    return name.replace(".linear1.", ".ffn.linear1.").replace(".linear2.", ".ffn.linear2.")


def load_gpt(weights_file, **sizes):
    import paddle

    from models.gpt import GPT, GPTConfig

    model = GPT(GPTConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes))
    parameters = dict(model.named_parameters())
    arrays = {our_name(key): value for key, value in load_arrays(weights_file).items()}
    assert arrays.keys() == parameters.keys()
    for name, parameter in parameters.items():
        parameter.set_value(paddle.to_tensor(arrays[name].astype(np.float32)))
    model.eval()
    return model


def load_small():
    """The 2-layer model of vocabulary 128 that A_forward and A_generate were made with."""
    return load_gpt(
        "A_step_0.npz",
        vocab_size=128, hidden_size=32, num_layers=2, num_attention_heads=4,
        ffn_hidden_size=128, max_position_embeddings=64,
    )  # fmt: skip


def load_eval():
    """The model of GPT-2's vocabulary that expected_E.json was measured with."""
    return load_gpt(
        "eval_step_100_fp16.npz",
        vocab_size=50304, hidden_size=4, num_layers=2, num_attention_heads=2,
        ffn_hidden_size=32, max_position_embeddings=64,
    )  # fmt: skip


def expected_eval():
    return json.loads((FIXTURES_DIR / "expected_E.json").read_text(encoding="utf-8"))
