"""PyTorch's contestant: GPT-2 as one writes it there, eager or by `torch.compile`.

F.scaled_dot_product_attention, tanh GELU, tied head, AdamW(fused=True), clip_grad_norm_, gradients
set to None. The loss is part of the module, so that the compiler may fuse it with the head.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rivals.contestant import serve
from benchmarks.rivals.workload import Workload, read_weights


class LowRankLinear(nn.Module):
    """Two thin linear layers in a row; the bias is the second one's."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Linear(inputs, rank, bias=False)
        self.right = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(x))


def make_linear(inputs: int, outputs: int, rank: int) -> nn.Module:
    """Make a layer of the feed-forward."""
    return LowRankLinear(inputs, outputs, rank) if rank else nn.Linear(inputs, outputs)


class Block(nn.Module):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        d = workload.hidden_size
        self.heads = workload.num_heads
        self.norm1 = nn.LayerNorm(d)
        self.qkv_proj = nn.Linear(d, 3 * d)
        self.out_proj = nn.Linear(d, d)
        self.norm2 = nn.LayerNorm(d)
        self.linear1 = make_linear(d, 4 * d, workload.rank)
        self.linear2 = make_linear(4 * d, d, workload.rank)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part in self.qkv_proj(self.norm1(x_BTD)).split(D, dim=2)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out_proj(attended.transpose(1, 2).reshape(B, T, D))
        hidden = functional.gelu(self.linear1(self.norm2(x_BTD)), approximate="tanh")
        return x_BTD + self.linear2(hidden)


class GPT(nn.Module):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(workload.vocab_size, workload.hidden_size)
        self.position_embeddings = nn.Embedding(workload.seq_len, workload.hidden_size)
        self.layers = nn.ModuleList(Block(workload) for _ in range(workload.num_layers))
        self.norm = nn.LayerNorm(workload.hidden_size)

    def forward(self, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
        positions_T = torch.arange(tokens_BT.shape[1])
        x_BTD = self.word_embeddings(tokens_BT) + self.position_embeddings(positions_T)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        logits = functional.linear(self.norm(x_BTD), self.word_embeddings.weight)
        return functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten())


def load_weights(model: GPT, workload: Workload) -> None:
    """Copy the initial values in; all names and shapes must match."""
    state = {}
    for name, value in read_weights(workload).items():
        name = name.replace(".self_attn.", ".").replace(".ffn.", ".")
        linear = "embeddings" not in name and value.ndim == 2
        if name.endswith((".left", ".right")):
            name += ".weight"
        elif workload.rank and name.endswith((".linear1.bias", ".linear2.bias")):
            name = name.replace(".bias", ".right.bias")
        state[name] = torch.from_numpy(value.T.copy() if linear else value)
    model.load_state_dict(state)


def parameter_groups(model: GPT, weight_decay: float) -> list[dict[str, object]]:
    """Biases and norms do not decay."""
    still = {name for name, _ in model.named_parameters() if "bias" in name or "norm" in name}
    return [
        {"params": [it for name, it in model.named_parameters() if name in still],
         "weight_decay": 0.0},
        {"params": [it for name, it in model.named_parameters() if name not in still],
         "weight_decay": weight_decay},
    ]  # fmt: skip


def main() -> None:
    workload, form = Workload.from_json(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(workload.threads)
    model = GPT(workload)
    load_weights(model, workload)
    loss_of = torch.compile(model) if form == "compile" else model
    optimizer = torch.optim.AdamW(
        parameter_groups(model, workload.weight_decay),
        lr=workload.learning_rate, betas=(workload.beta1, workload.beta2), eps=workload.epsilon,
        fused=True,
    )  # fmt: skip
    parameters = list(model.parameters())
    batches = workload.batches()

    def step() -> float:
        tokens_BS, labels_BS = (torch.from_numpy(np.asarray(rows)) for rows in next(batches))
        loss = loss_of(tokens_BS, labels_BS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, workload.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    serve(step, {"torch": torch.__version__})


if __name__ == "__main__":
    main()
