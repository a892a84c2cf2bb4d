"""Merge a checkpoint's factors into dense weights, or factor dense ones, and prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from fastffn_cli.config.schema import Config
from fastffn_cli.config.schema_training import ScheduleSection
from fastffn_cli.data.dataset import Batch, TokenDataset
from fastffn_cli.data.token_files import open_tokens
from fastffn_cli.engine.checkpoint import LoadedModel
from fastffn_cli.engine.find import CHECKPOINTS_DIR
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import DataError, MergeCheckFailed, UserError
from fastffn_cli.tasks.task import Task, TaskFactory
from models import ffn
from models.gpt import GPT, count_parameters

PROBE_TOKENS = 8192
PROBE_LOGITS = 1 << 24  # a set of them is 64 MiB in float32; about six are held at a time
PROBE_LENGTH = 64  # tokens of a probe at least, however large the vocabulary


@dataclass(frozen=True)
class Probe:
    """Tokens to compare two models on; `source` says where they are from."""

    batch: Batch
    source: str


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on a probe.

    `logits` is max |difference|, `scale` the largest |logit| of the first model, `loss` the second
    model's mean loss minus the first one's.
    """

    logits: float
    scale: float
    loss: float
    tokens: int

    @property
    def relative(self) -> float:
        """`logits` over the scale of the logits, which is at least 1."""
        return self.logits / max(self.scale, 1.0)


@dataclass(frozen=True)
class Conversion:
    """A converted model, ready to be written, and how it differs from what it was."""

    config: Config
    trainer: dict[str, Any]
    tensors: dict[str, StoredTensor]
    parameters_before: int
    parameters_after: int
    difference: Difference
    probe_source: str
    replacements: list[ffn.Replacement]


def convert_model(
    loaded: LoadedModel,
    spec: dict[str, Any],
    make_task: TaskFactory,
    *,
    tolerance: float,
    dtype: str = "float32",
) -> Conversion:
    """Turn the loaded model's feed-forwards into `spec` (of `models.ffn`) and compare both models.

    To `dense`, factors of attention and embeddings are merged as well, and the result must be the
    same function: max |logit difference| on the probe, over the largest |logit| (at least 1), may
    not exceed `tolerance`, else `MergeCheckFailed`. To another kind the difference is reported
    only: an approximation is meant to differ. The comparison runs in `dtype`, float32 or float64.
    """
    model = loaded.model
    task = make_task(model)
    merging = spec["kind"] == "dense"
    probe = draw_probe(loaded)
    if dtype == "float64":
        model.to(dtype="float64")
    before = outputs(task, probe)
    parameters_before = count_parameters(model.config)
    replacements: list[ffn.Replacement] = []
    if merging:
        paddle.seed(loaded.config.Global.seed)  # grown hidden units are drawn
        try:
            ffn.merge(model)
        except ffn.NotMergeable as error:
            raise UserError(f"{loaded.path} cannot be merged: {error}") from error
    else:
        try:
            replacements = ffn.approximate(model, **spec)
        except ValueError as error:
            raise UserError(str(error)) from error
    difference = compare(before, outputs(task, probe), probe)
    if merging and not difference.relative <= tolerance:
        raise MergeCheckFailed(
            f"max |logit difference| is {difference.logits:.3e} at logits up to "
            f"{difference.scale:.3g}, over the tolerance {tolerance:g}; nothing was written",
            hint="Check in double precision with --dtype float64, or raise --tolerance",
        )
    return Conversion(
        config=with_approximations(loaded.config, model.config.approximations),
        trainer=_trainer_record(loaded, model, difference, probe),
        tensors=_stored_weights(model),
        parameters_before=parameters_before,
        parameters_after=count_parameters(model.config),
        difference=difference,
        probe_source=probe.source,
        replacements=replacements,
    )


def refuse_existing(out_dir: Path) -> None:
    """Raise `UserError` if there is something at `out_dir` already."""
    if out_dir.exists():
        raise UserError(
            f"{out_dir} exists already; nothing was overwritten", hint="Name another: --out DIR"
        )


def default_out_dir(
    checkpoint: Path, kind: str, target_system: str | None = None, foreign: bool = False
) -> Path:
    """`RUN/dense-step-00000100` for RUN/checkpoints/step-00000100, else a sibling `NAME-dense`.

    With a `target_system` its name stands in place of the kind. What is `foreign` may lie anywhere,
    such as in a cache: its conversion goes to the current folder, `NAME-fastffn`.
    """
    name = target_system or kind.replace("_", "-")
    if foreign:
        return Path(f"{checkpoint.resolve().stem}-{target_system or 'fastffn'}")
    if checkpoint.parent.name == CHECKPOINTS_DIR:
        return checkpoint.parent.parent / f"{name}-{checkpoint.name}"
    return checkpoint.with_name(f"{checkpoint.name}-{name}")


def draw_probe(loaded: LoadedModel) -> Probe:
    """Take tokens of the run's own validation (or training) part; random ids if they are gone."""
    config = loaded.config
    seq_len = min(config.Data.dataset.max_seq_len, config.Model.max_position_embeddings)
    vocab_size = config.Model.vocab_size
    assert vocab_size is not None, "a checkpoint's configuration is resolved"
    tokens = max(PROBE_LENGTH, min(PROBE_TOKENS, PROBE_LOGITS // vocab_size))
    seq_len = min(seq_len, tokens)
    rows = tokens // seq_len
    recorded = loaded.trainer.get("data", {}).get("input_dir")
    named = [place for place in (config.Data.dataset.input_dir, recorded) if place is not None]
    for place in named:
        if not Path(place).exists():
            continue
        for part in ("valid", "train"):
            try:
                dataset = TokenDataset(
                    open_tokens(Path(place)),
                    split=config.Data.dataset.split,
                    part=part,
                    seq_len=seq_len,
                    seed=config.Global.seed,
                    shuffle=False,
                    eos_id=config.Data.dataset.eos_id,
                )
            except DataError:
                continue
            batch = dataset.batch(0, min(rows, dataset.num_samples))
            return Probe(batch, f"{part} tokens of {place}")
    ids = np.random.default_rng(config.Global.seed).integers(0, vocab_size, (rows, seq_len + 1))
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((rows, seq_len), np.float32))
    reason = "the run's data folder is gone" if named else "it names no data"
    return Probe(batch, f"random tokens ({reason})")


def outputs(task: Task, probe: Probe) -> tuple[np.ndarray, float]:
    """Return the task's logits [B, S, V], float32 or wider, and mean loss on the probe."""
    with paddle.no_grad():
        logits = task.model(paddle.to_tensor(probe.batch.tokens_BS))
        if logits.dtype not in (paddle.float32, paddle.float64):
            logits = logits.astype("float32")
        loss = task.loss(probe.batch).item() / max(task.weight(probe.batch), 1.0)
    return logits.numpy(), float(loss)


def compare(
    before: tuple[np.ndarray, float], after: tuple[np.ndarray, float], probe: Probe
) -> Difference:
    """Return how far two results of `outputs` on one probe are apart."""
    return Difference(
        logits=float(np.abs(before[0] - after[0]).max()),
        scale=float(np.abs(before[0]).max()),
        loss=after[1] - before[1],
        tokens=int(probe.batch.tokens_BS.size),
    )


def with_approximations(config: Config, approximations: Mapping[str, Any]) -> Config:
    """Return the configuration with the model in other forms: `ffn` and both ranks.

    That of a dense model has no `Schedule`: there is nothing to switch.
    """
    values = {**config.Model.model_dump(), **approximations}
    sections: dict[str, Any] = {"Model": type(config.Model).model_validate(values)}
    if sections["Model"].is_dense:
        sections["Schedule"] = ScheduleSection()
    return config.model_copy(update=sections)


def _trainer_record(
    loaded: LoadedModel, model: GPT, difference: Difference, probe: Probe
) -> dict[str, Any]:
    kept: dict[str, Any] = {
        key: loaded.trainer[key]
        for key in ("step", "tokens", "run", "data", "seed", "versions")
        if key in loaded.trainer
    }
    return {
        **kept,
        "stage": "convert",
        **model.config.approximations,
        "source": str(loaded.path),
        "check": {**vars(difference), "probe": probe.source},
    }


def _stored_weights(model: GPT) -> dict[str, StoredTensor]:
    """Name the model's weights, float32, each copied out of the model when it is written."""

    def read(parameter: paddle.Tensor) -> np.ndarray:
        return parameter.astype("float32").numpy()

    return {
        name: StoredTensor(tuple(parameter.shape), "float32", partial(read, parameter))
        for name, parameter in model.named_parameters()
    }
