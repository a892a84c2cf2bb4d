"""Attention alone, from qkv to the joined heads: ours, Paddle's operators, or PyTorch's own one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.rivals.contestant import serve


@dataclass(frozen=True)
class AttentionCase:
    """Sizes; `cached` tokens are there already: then one new token, without a gradient."""

    batch_size: int
    heads: int
    steps: int
    head_size: int
    dropout: float = 0.0
    cached: int = 0
    threads: int = 1
    seed: int = 0

    def describe(self) -> str:
        """Say the sizes."""
        sizes = f"[{self.batch_size}, {self.heads}, {self.steps}, {self.head_size}]"
        if self.cached:
            return f"{sizes}, {self.cached} cached tokens, forward"
        return f"{sizes}{f', dropout {self.dropout:g}' if self.dropout else ''}, both passes"

    def as_json(self) -> str:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AttentionCase:
        """Return the case of a process's argument."""
        return cls(**json.loads(text))

    def values(self, columns: int) -> np.ndarray:
        """Return random values [B, T, H, columns], the same ones in every process."""
        rng = np.random.default_rng([self.seed, columns])
        return rng.standard_normal((self.batch_size, self.steps, self.heads, columns), np.float32)

    def cache(self, index: int) -> np.ndarray:
        """Return the cached keys (0) or values (1) with room for the new ones [B, S, H, K]."""
        rng = np.random.default_rng([self.seed, index])
        shape = (self.batch_size, self.cached + self.steps, self.heads, self.head_size)
        return rng.standard_normal(shape, np.float32)


def main() -> None:
    case, form = AttentionCase.from_json(sys.argv[1]), sys.argv[2]
    start = start_torch if form == "torch" else start_paddle
    serve(*start(case, form))


def start_paddle(case: AttentionCase, form: str) -> tuple[Callable[[], float], dict[str, str]]:
    from benchmarks.provenance import start_kernels
    from fastffn_cli.engine.device import use_device

    path = start_kernels(use_device("cpu", threads=case.threads))
    import paddle

    from models.kernels import library
    from models.kernels.attention import attend
    from models.kv_cache import LayerCache

    library.switch(on=form == "ours")
    size, width = case.head_size, case.heads * case.head_size
    qkv = paddle.to_tensor(case.values(3 * size)).reshape([0, case.steps, 3 * width])
    gradient = paddle.to_tensor(case.values(size)).reshape([0, case.steps, width])
    qkv.stop_gradient = bool(case.cached)
    buffers = (case.cache(index).transpose(2, 0, 1, 3) for index in range(2))
    keys, values = (paddle.to_tensor(np.ascontiguousarray(each)).flatten(0, 1) for each in buffers)
    cache = LayerCache(case.cached, keys, values)

    def attend_once() -> Any:
        if case.cached:
            return attend(qkv, case.heads, cache=cache)
        out = attend(qkv, case.heads, dropout_prob=case.dropout)
        out.backward(gradient)
        qkv.clear_gradient(False)
        return out

    def step() -> float:
        return attend_once()[0, 0, 0].item()

    return step, {"paddle": paddle.__version__, "kernels": path}


def start_torch(case: AttentionCase, _: str) -> tuple[Callable[[], float], dict[str, str]]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    torch.set_num_threads(case.threads)
    size, new = case.head_size, slice(case.cached, case.cached + case.steps)
    # The order of GPT-2 in PyTorch: all q, all k, all v.
    parts = np.concatenate(np.split(case.values(3 * size), 3, axis=3), axis=2)
    qkv = torch.from_numpy(parts.reshape(case.batch_size, case.steps, -1))
    gradient = torch.from_numpy(case.values(size).reshape(case.batch_size, case.steps, -1))
    qkv.requires_grad_(not case.cached)
    cache = [torch.from_numpy(case.cache(index).swapaxes(1, 2).copy()) for index in range(2)]

    def attend_once() -> Any:
        q, k, v = (
            part.view(case.batch_size, case.steps, case.heads, size).transpose(1, 2)
            for part in qkv.split(case.heads * size, dim=2)
        )
        if case.cached:
            for buffer, part in zip(cache, (k, v), strict=True):
                buffer[:, :, new] = part
            k, v = cache
        attended = scaled_dot_product_attention(
            q, k, v, dropout_p=case.dropout, is_causal=not case.cached
        )
        out = attended.transpose(1, 2).reshape(case.batch_size, case.steps, -1)
        if not case.cached:
            out.backward(gradient)
            qkv.grad = None
        return out

    def step() -> float:
        with torch.set_grad_enabled(not case.cached):
            return attend_once()[0, 0, 0].item()

    return step, {"torch": torch.__version__}


if __name__ == "__main__":
    main()
