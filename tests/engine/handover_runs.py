"""A tiny GPT that is really trained, beside the moments that dense matrices would have had."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from fastffn_cli.config.schema_training import OptimizerSection
from fastffn_cli.data.dataset import Batch
from fastffn_cli.engine.checkpoint import model_tensors
from fastffn_cli.engine.optimizer import AdamW
from fastffn_cli.engine.precision import Precision
from fastffn_cli.engine.step import TrainStep
from fastffn_cli.tasks.causal_lm import CausalLM
from models import ffn
from models.gpt import GPT, GPTConfig
from tests.engine.runs import random_batch

ROWS, SEQ_LEN, VOCAB = 8, 16, 40
HIDDEN, INNER, LAYERS = 24, 96, 2
STEPS, RATE = 12, 3e-3
BETA1, BETA2 = 0.9, 0.95
OPTIONS = OptimizerSection(adam_beta1=BETA1, adam_beta2=BETA2)
NEW = [f"layers.{k}.ffn.linear{n}.weight" for k in range(LAYERS) for n in (1, 2)]
FACTORS = [name.replace("weight", factor) for name in NEW for factor in ("left", "right")]

KINDS: dict[str, dict[str, Any]] = {
    "low_rank": {"kind": "low_rank", "rank": 4},
    "narrow": {"kind": "narrow", "width": 20},
    "thin": {"kind": "thin", "width": 32, "rank": 8},
    "monarch": {"kind": "monarch", "blocks": 2},
    "block_dense": {"kind": "block_dense", "blocks": 2, "rank": 8},
    "block_diagonal": {"kind": "block_diagonal", "blocks": 4},
}


def tiny_gpt(layer_kind: Mapping[str, Any] | None = None) -> GPT:
    paddle.seed(4)
    model = GPT(
        GPTConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            num_layers=LAYERS,
            num_attention_heads=3,
            ffn_hidden_size=INNER,
            max_position_embeddings=SEQ_LEN,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            ffn=layer_kind or KINDS["low_rank"],
        )
    )
    model.train()
    return model


def batch(number: int) -> Batch:
    return random_batch(number, ROWS, SEQ_LEN, VOCAB)


@dataclass
class Training:
    """A model, its optimizer and its step."""

    model: GPT
    optimizer: AdamW
    step: TrainStep

    @classmethod
    def of(cls, model: GPT, options: OptimizerSection = OPTIONS) -> Training:
        optimizer = AdamW(model, options, multi_precision=False)
        step = TrainStep(
            CausalLM(model), optimizer, Precision(), micro_batch_size=ROWS, grad_clip=0.0
        )
        return cls(model, optimizer, step)

    def merged(self, state: dict[str, np.ndarray], options: OptimizerSection = OPTIONS) -> Training:
        """A copy of the model, merged, whose fresh optimizer goes on from `state`."""
        model = copy.deepcopy(self.model)
        ffn.merge(model)
        after = Training.of(model, options)
        after.optimizer.load_state(state)
        return after


def train(
    options: OptimizerSection = OPTIONS,
    steps: int = STEPS,
    rate: float = RATE,
    layer_kind: Mapping[str, Any] | None = None,
) -> Training:
    training = Training.of(tiny_gpt(layer_kind), options)
    for number in range(steps):
        # Two batches, again and again: the loss falls by memory.
        training.step(batch(number % 2), rate)
    return training


def train_with_dense_moments(
    layer_kind: Mapping[str, Any], steps: int
) -> tuple[Training, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Train, and keep the Adam moments of the merged matrices' own gradients, in float64."""
    training = Training.of(tiny_gpt(layer_kind))
    moments = {name: (np.zeros(()), np.zeros(())) for name in NEW}
    for number in range(steps):
        for name, gradient in dense_gradients(training.model, number).items():
            first, second = moments[name]
            moments[name] = (
                BETA1 * first + (1 - BETA1) * gradient,
                BETA2 * second + (1 - BETA2) * gradient**2,
            )
        training.step(batch(number), RATE)
    return training, moments


def dense_gradients(model: GPT, number: int) -> dict[str, np.ndarray]:
    """The gradients of the merged matrices, by Paddle's own differentiation."""
    dense = copy.deepcopy(model)
    ffn.merge(dense)
    task = CausalLM(dense)
    (task.loss(batch(number)) / task.weight(batch(number))).backward()
    return {
        name: parameter.grad.numpy().astype(np.float64)
        for name, parameter in dense.named_parameters()
        if name in NEW
    }


def owner(name: str) -> str:
    return name.rpartition(".")[0]


def weights(model: GPT) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in model_tensors(model).items()}
