"""fastffn's contestant: the step and the optimizer of `fastffn pretrain`, its environment too."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks.rivals.contestant import serve
from benchmarks.rivals.workload import Workload, write_weights


def main() -> None:
    workload = Workload.from_json(sys.argv[1])
    from benchmarks.provenance import start_kernels
    from fastffn_cli.engine.device import use_device

    device = use_device("cpu", threads=workload.threads)
    kernels = start_kernels(device)
    import paddle

    from fastffn_cli.data.dataset import Batch
    from fastffn_cli.engine.model import gpt_config
    from fastffn_cli.engine.timing import Arm

    config = configure(workload)
    arm = Arm(config, gpt_config(config), device)
    tensors = {name: value.numpy() for name, value in arm.model.named_parameters()}
    write_weights(workload, {name: rearrange(name, it, workload) for name, it in tensors.items()})
    batches = workload.batches()
    ones = np.ones((workload.batch_size, workload.seq_len), np.float32)

    def step() -> float:
        tokens_BS, labels_BS = next(batches)
        return arm.update(Batch(tokens_BS, labels_BS, ones)).loss

    serve(step, {"paddle": paddle.__version__, "kernels": kernels})


def configure(workload: Workload) -> Any:
    """The workload in the words of a configuration."""
    from fastffn_cli.config.dump import format_value
    from fastffn_cli.config.load import default_config

    ffn = {"kind": "low_rank", "rank": workload.rank} if workload.rank else {"kind": "dense"}
    model = {
        "vocab_size": workload.vocab_size,
        "hidden_size": workload.hidden_size,
        "num_layers": workload.num_layers,
        "num_attention_heads": workload.num_heads,
        "max_position_embeddings": workload.seq_len,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "ffn": ffn,
    }
    size = {"local_batch_size": workload.batch_size, "micro_batch_size": workload.batch_size}
    return default_config(
        [
            f"Model={format_value(model)}",
            f"Data.batch_size={format_value(size)}",
            f"Data.dataset.max_seq_len={workload.seq_len}",
            f"Global.seed={workload.seed}",
            f"Optimizer.lr.max_lr={workload.learning_rate}",
            f"Optimizer.adam_beta1={workload.beta1}",
            f"Optimizer.adam_beta2={workload.beta2}",
            f"Optimizer.adam_epsilon={workload.epsilon}",
            f"Optimizer.weight_decay={workload.weight_decay}",
            f"Optimizer.grad_clip={workload.grad_clip}",
        ]
    ).config


def rearrange(name: str, value: np.ndarray, workload: Workload) -> np.ndarray:
    """Put the columns of qkv, interleaved per head in our models, in the usual order."""
    if ".qkv_proj." not in name:
        return value
    heads = value.reshape(*value.shape[:-1], workload.num_heads, 3, -1)
    return np.ascontiguousarray(np.swapaxes(heads, -3, -2)).reshape(value.shape)


if __name__ == "__main__":
    main()
