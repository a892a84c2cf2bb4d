"""Stock Paddle's contestant: the same GPT from Paddle's own layers, as one writes it by hand.

nn.TransformerEncoder with a causal mask, nn.CrossEntropyLoss, paddle.optimizer.AdamW with
ClipGradByGlobalNorm; nothing of fastffn. The environment is the caller's.
"""

from __future__ import annotations

import sys

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from benchmarks.rivals.contestant import serve
from benchmarks.rivals.workload import Workload, read_weights


class LowRankLinear(nn.Layer):
    """Two thin linear layers in a row; the bias is the second one's."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Linear(inputs, rank, bias_attr=False)
        self.right = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(x))


class GPT(nn.Layer):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        d = workload.hidden_size
        self.word_embeddings = nn.Embedding(workload.vocab_size, d)
        self.position_embeddings = nn.Embedding(workload.seq_len, d)
        block = nn.TransformerEncoderLayer(
            d, workload.num_heads, 4 * d, dropout=0.0, activation="gelu", normalize_before=True
        )
        self.encoder = nn.TransformerEncoder(block, workload.num_layers, nn.LayerNorm(d))
        for layer in self.encoder.layers:
            # The layer's own "gelu" is the erf form.
            layer.activation = nn.GELU(approximate=True)
            if workload.rank:
                layer.linear1 = LowRankLinear(d, 4 * d, workload.rank)
                layer.linear2 = LowRankLinear(4 * d, d, workload.rank)
        self.mask = paddle.triu(
            paddle.full([workload.seq_len, workload.seq_len], float("-inf")), diagonal=1
        )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        positions_T = paddle.arange(tokens_BT.shape[1])
        x_BTD = self.word_embeddings(tokens_BT) + self.position_embeddings(positions_T)
        x_BTD = self.encoder(x_BTD, self.mask)
        return functional.linear(x_BTD, self.word_embeddings.weight.T)


def load_weights(model: GPT, workload: Workload) -> None:
    """Copy the initial values in; raises `ValueError` where names do not match."""
    state = {}
    for name, value in read_weights(workload).items():
        name = name.replace("layers.", "encoder.layers.").replace(".ffn.", ".")
        if name.startswith("norm."):
            name = f"encoder.{name}"
        if name.endswith((".left", ".right")):
            name += ".weight"
        elif workload.rank and name.endswith((".linear1.bias", ".linear2.bias")):
            name = name.replace(".bias", ".right.bias")
        if ".qkv_proj." in name:
            parts = np.split(value, 3, axis=-1)
            for each, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
                state[name.replace("qkv_proj", each)] = part.copy()
        else:
            state[name] = value
    missing, unexpected = model.set_state_dict(state)
    if missing or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")


def main() -> None:
    workload = Workload.from_json(sys.argv[1])
    paddle.set_device("cpu")
    model = GPT(workload)
    load_weights(model, workload)
    model.train()
    loss_of = nn.CrossEntropyLoss()
    # Biases and norms do not decay.
    decaying = {
        it.name
        for name, it in model.named_parameters()
        if "bias" not in name and "norm" not in name
    }
    optimizer = paddle.optimizer.AdamW(
        learning_rate=workload.learning_rate,
        beta1=workload.beta1,
        beta2=workload.beta2,
        epsilon=workload.epsilon,
        weight_decay=workload.weight_decay,
        apply_decay_param_fun=lambda name: name in decaying,
        grad_clip=nn.ClipGradByGlobalNorm(workload.grad_clip),
        parameters=model.parameters(),
    )
    batches = workload.batches()

    def step() -> float:
        tokens_BS, labels_BS = (paddle.to_tensor(rows) for rows in next(batches))
        logits_BSV = model(tokens_BS)
        loss = loss_of(logits_BSV.reshape([-1, workload.vocab_size]), labels_BS.reshape([-1]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss.item())

    serve(step, {"paddle": paddle.__version__})


if __name__ == "__main__":
    main()
