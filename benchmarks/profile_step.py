"""Where the milliseconds of a training step go, part by part, with the kernels and without.

    python benchmarks/profile_step.py [--size small|medium] [-c CONFIG] [-o KEY=VALUE ...]
                                      [--rounds N] [--seed N]

Timed is the engine's own step on the CPU (forward, backward, norm, clip and AdamW) of stage 1 and
of dense. A part is timed alone: forward and backward through that part of all layers, one layer
after the other, on the weights, shapes and dtypes of the step, with random activations. A round
times the whole step and then every part, on each path in turn, so that what slows the machine down
for a while slows all of them; printed is the median over the rounds. `attention core` is the
attention without its two projections and `head + loss` the task's loss from given hidden states:
the difference of two timings and a timing, whatever operators they are made of.

`rest` is the step less all parts: casts and copies of ids, the sum of gradients that meet in a
residual, the Python of the loop; and, with either sign, what a part costs more or less alone than
among the others, whose activations push its own out of the caches. It is the measure of how far the
other lines can be believed. `of it Python and launches` is contained in the lines above: the time
of the same step with one token of each sequence and eight values a head, where hardly anything else
is left.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit
from benchmarks.tables import markdown, show

SIZES = {
    "small": {"layers": 4, "width": 256, "length": 256, "vocabulary": 4096, "batch": 8},
    "medium": {"layers": 6, "width": 768, "length": 512, "vocabulary": 8192, "batch": 2},
}
STAGES = ("stage 1", "dense")
STEP, OVERHEAD, REST = "step", "of it Python and launches", "rest"
WARM_UP = 2


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device("cpu")
    import paddle

    from models.kernels import library

    with contextlib.suppress(library.Unavailable):
        library.load()
    blocks = []
    for stage in args.stages:
        config = configure(args, stage)
        blocks += [f"{stage}, {describe(config)}:", tabulate(measure(config, args.rounds))]
    show(
        *blocks,
        f"{device.describe()}, kernels {library.path()}, paddle {paddle.__version__}, "
        f"python {platform.python_version()}, {args.rounds} rounds, seed {args.seed}, "
        f"commit {commit()}.",
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("-c", "--config", help="a configuration in the place of a size")
    parser.add_argument("-o", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stages", nargs="+", choices=("stage 1", "dense"), default=STAGES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1024)
    return parser.parse_args()


def configure(args: argparse.Namespace, stage: str) -> Any:
    """The configuration of a stage: that of the file or of the size, with the overrides."""
    from fastffn_cli.config.load import default_config, load_config

    last = ["Model.ffn={kind: dense}"] if stage == "dense" else []
    if args.config:
        return load_config(args.config, [*args.overrides, *last]).config
    size = SIZES[args.size]
    batch = f"{{local_batch_size: {size['batch']}, micro_batch_size: {size['batch']}}}"
    return default_config(
        [
            f"Model.vocab_size={size['vocabulary']}",
            f"Model.hidden_size={size['width']}",
            f"Model.num_layers={size['layers']}",
            f"Model.num_attention_heads={size['width'] // 64}",
            f"Model.max_position_embeddings={size['length']}",
            "Model.hidden_dropout_prob=0.0",
            "Model.attention_probs_dropout_prob=0.0",
            "Model.ffn={kind: low_rank, rank: 8}",
            f"Data.dataset.max_seq_len={size['length']}",
            f"Data.batch_size={batch}",
            f"Global.seed={args.seed}",
            *args.overrides,
            *last,
        ]
    ).config


def describe(config: Any) -> str:
    model, sizes = config.Model, config.Data.batch_size
    return (
        f"{model.num_layers} layers x {model.hidden_size}, "
        f"{config.Data.dataset.max_seq_len} tokens x {sizes.micro_batch_size}, "
        f"vocabulary {model.vocab_size}, dropout {model.hidden_dropout_prob}"
    )


def measure(config: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of every part, by path: `kernels` (where there are any), `Paddle`."""
    from models.kernels import library

    subject = Subject(config)
    paths: dict[str, Callable[[], Any]] = {"Paddle": library.suspended}
    if library.path() is not None:
        paths = {"kernels": contextlib.nullcontext, **paths}
    times: dict[str, dict[str, list[float]]] = {path: {} for path in paths}
    for number in range(WARM_UP + rounds):
        for path, entered in paths.items():
            with entered():
                for part, seconds in subject.round():
                    if number >= WARM_UP:
                        times[path].setdefault(part, []).append(1e3 * seconds)
    return {path: finish(parts) for path, parts in times.items()}


def finish(parts: dict[str, list[float]]) -> dict[str, float]:
    """Medians, with the attention's parts taken apart and the rest that makes the sum right."""
    medians = {part: statistics.median(values) for part, values in parts.items()}
    step, overhead = medians.pop(STEP), medians.pop(OVERHEAD)
    medians["attention core"] -= medians["projections"]
    return {**medians, REST: step - sum(medians.values()), STEP: step, OVERHEAD: overhead}


def tabulate(columns: dict[str, dict[str, float]]) -> str:
    header = ["part", *(words for path in columns for words in (f"{path}, ms", "%"))]
    rows = [
        [part, *(cell for values in columns.values() for cell in cells(part, values))]
        for part in next(iter(columns.values()))
    ]
    return markdown(header, rows)


def cells(part: str, values: dict[str, float]) -> list[str]:
    return [f"{values[part]:.2f}", f"{100 * values[part] / values[STEP]:.1f}"]


class Subject:
    """A model in training, its parts on the inputs that they have in a step."""

    def __init__(self, config: Any) -> None:
        import paddle

        from fastffn_cli.engine.model import gpt_config
        from fastffn_cli.engine.timing import synthetic_batches

        self.config = config
        sizes = config.Data.batch_size
        self.micro_batches = -(-sizes.local_batch_size // sizes.micro_batch_size)
        self.batches = synthetic_batches(config, 2)
        model = gpt_config(config)
        self.trained = Trained(config, model)
        width = 8 * model.num_attention_heads
        tiny = replace(model, hidden_size=width, ffn_hidden_size=4 * width, vocab_size=width)
        self.tiny = Trained(config, tiny)
        shape = [sizes.micro_batch_size, config.Data.dataset.max_seq_len, model.hidden_size]
        self.inputs = [paddle.randn(shape) for _ in range(2 * model.num_layers + 1)]
        self.gradient = paddle.randn(shape) * 1e-4

    def round(self) -> Iterator[tuple[str, float]]:
        """Time the whole step, then each part; every figure is the seconds of one step."""
        model, count = self.trained.model, self.micro_batches
        batch = self.batches[0]
        yield STEP, timed(lambda: self.trained.step(batch, 1e-4))
        micro = batch.slice(0, self.config.Data.batch_size.micro_batch_size)
        layers = model.layers
        norms = [norm for layer in layers for norm in (layer.norm1, layer.norm2)] + [model.norm]
        yield "embeddings", count * self._time([lambda _: model.embed(tokens_of(micro))])
        yield "layer norms", count * self._time(norms)
        yield "projections", count * self._projections()
        mask = model._scores_mask(tokens_of(micro), None, None)
        attentions = [bind(layer.self_attn, mask) for layer in layers]
        yield "attention core", count * self._time(attentions)
        yield "feed-forwards", count * self._time([layer.ffn for layer in layers])
        dropouts = [drop for layer in layers for drop in (layer.dropout1, layer.dropout2)]
        yield "dropout + residual", count * self._time([add(drop) for drop in dropouts])
        yield "head + loss", count * self._head(micro)
        self.trained.step.accumulate_gradients(batch)  # what the update below works on
        yield "gradient norm", timed(self.trained.norm)
        yield "clip + optimizer", timed(lambda: self.trained.update(1e-4))
        yield (
            OVERHEAD,
            count
            * timed(
                lambda: self.tiny.step(first_tokens(micro, self.tiny.model.config.vocab_size), 1e-4)
            ),
        )

    def _time(self, functions: list[Callable[[Any], Any]]) -> float:
        """Seconds of the functions' forward passes and of all their backward passes."""
        import paddle

        leaves = [leaf(each) for each in self.inputs[: len(functions)]]

        def both() -> None:
            outputs = [run(each) for run, each in zip(functions, leaves, strict=True)]
            paddle.autograd.backward(outputs, [self.gradient] * len(outputs))

        return timed(both)

    def _projections(self) -> float:
        import paddle

        from models.gpt import project

        attentions = [layer.self_attn for layer in self.trained.model.layers]
        leaves = [leaf(each) for each in self.inputs[: 2 * len(attentions)]]
        wide = paddle.concat([self.gradient] * 3, axis=-1)

        def both() -> None:
            outputs, gradients = [], []
            for number, attention in enumerate(attentions):
                outputs.append(project(attention.qkv_proj, leaves[2 * number]))
                outputs.append(project(attention.out_proj, leaves[2 * number + 1]))
                gradients += [wide, self.gradient]
            paddle.autograd.backward(outputs, gradients)

        return timed(both)

    def _head(self, micro: Any) -> float:
        """Seconds of the task's loss from hidden states that are given."""
        model, task = self.trained.model, self.trained.task
        given = leaf(self.inputs[0])
        object.__setattr__(model, "hidden", lambda *_, **__: given)
        try:
            return timed(lambda: (task.loss(micro) / task.weight(micro)).backward())
        finally:
            object.__delattr__(model, "hidden")


class Trained:
    """A model with its optimizer, and the pieces of the engine's step."""

    def __init__(self, config: Any, model_config: Any) -> None:
        from fastffn_cli.engine.model import build_model
        from fastffn_cli.engine.optimizer import AdamW
        from fastffn_cli.engine.precision import Precision
        from fastffn_cli.engine.step import TrainStep
        from fastffn_cli.tasks.causal_lm import CausalLM

        self.model = build_model(model_config, config.Global.seed)
        self.model.train()
        self.task = CausalLM(self.model)
        self.optimizer = AdamW(self.model, config.Optimizer, multi_precision=False)
        self.step = TrainStep(
            self.task,
            self.optimizer,
            Precision(),
            micro_batch_size=config.Data.batch_size.micro_batch_size,
            grad_clip=config.Optimizer.grad_clip,
        )

    def norm(self) -> float:
        return self.step.parallelism.gradient_norm(self.optimizer)

    def update(self, learning_rate: float) -> None:
        """The update of gradients that have to be clipped."""
        self.step.precision.update(self.optimizer, learning_rate, gradient_factor=0.5)
        self.optimizer.clear_gradients()


def timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def tokens_of(batch: Any) -> Any:
    import paddle

    return paddle.to_tensor(batch.tokens_BS)


def first_tokens(batch: Any, vocabulary: int) -> Any:
    """The first token of every sequence, from a small vocabulary."""
    from fastffn_cli.data.dataset import Batch

    ids, labels = batch.tokens_BS[:, :1] % vocabulary, batch.labels_BS[:, :1] % vocabulary
    return Batch(ids, labels, batch.mask_BS[:, :1])


def leaf(values: Any) -> Any:
    """A tensor of the same values that wants a gradient."""
    copied = values.clone().detach()
    copied.stop_gradient = False
    return copied


def bind(attention: Any, mask: Any) -> Callable[[Any], Any]:
    return lambda x: attention(x, mask)


def add(dropout: Any) -> Callable[[Any], Any]:
    return lambda x: x + dropout(x)


if __name__ == "__main__":
    main()
