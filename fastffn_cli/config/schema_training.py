"""The sections `Engine`, `Data` and `Optimizer`: how long, on what and how a model is trained."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fastffn_cli.config.fields import Block, Flag, Integer, Number, Text


class MixPrecision(Block):
    """Half precision on devices that have it."""

    use_pure_fp16: Flag = Field(
        default=False, description="FleetX's short form of enable: True, dtype: float16, level: O2."
    )
    enable: Flag | None = Field(
        default=None, description="Train in mixed precision (blank: as use_pure_fp16 says)."
    )
    dtype: Literal["float16", "bfloat16"] = Field(
        default="float16", description="The half precision type; bfloat16 needs no loss scaling."
    )
    level: Literal["O1", "O2"] = Field(
        default="O2", description="O1 casts listed operators, O2 casts the whole model but norms."
    )
    scale_loss: Number = Field(
        default=32768.0, gt=0, description="First loss scale of float16; it then adapts by itself."
    )
    custom_black_list: tuple[Text, ...] = Field(
        default=("reduce_sum", "c_softmax_with_cross_entropy", "elementwise_div"),
        description="Operators that stay in float32.",
    )
    custom_white_list: tuple[Text, ...] = Field(
        default=("lookup_table", "lookup_table_v2"),
        description="Operators always cast to half precision.",
    )


class SaveLoad(Block):
    """Where a run lives, what it starts from, and how often it is saved."""

    save_steps: Integer = Field(
        default=1000, description="Steps between two checkpoints; 0 or less: only at the end."
    )
    output_dir: Text = Field(
        default="./output",
        min_length=1,
        description="The run folder; an existing run is never overwritten.",
    )
    ckpt_dir: Text | None = Field(
        default=None,
        min_length=1,
        description="Checkpoint or run folder whose weights to start from (blank: none).",
    )
    keep_last: Integer = Field(
        default=3,
        ge=0,
        description="Newest checkpoints to keep; older ones are deleted. 0 keeps all.",
    )


class EngineSection(Block):
    """Length of the run, its log, evaluation, precision and checkpoints."""

    max_steps: Integer | None = Field(
        default=None,
        ge=1,
        description="Optimizer steps of the run (blank: num_train_epochs times the steps of an "
        "epoch).",
    )
    num_train_epochs: Integer = Field(
        default=1,
        ge=1,
        description="Passes over the training part; max_steps, when given, decides.",
    )
    accumulate_steps: Integer | None = Field(
        default=None,
        ge=1,
        description="Micro batches of one step (blank: local_batch_size / micro_batch_size).",
    )
    logging_freq: Integer = Field(default=1, ge=1, description="Steps between two log lines.")
    eval_freq: Integer = Field(
        default=500, description="Steps between two evaluations in the loop; 0 or less: none."
    )
    eval_iters: Integer = Field(
        default=10,
        ge=1,
        description="Batches of one evaluation in the loop, each of micro_batch_size sequences on "
        "every data parallel process: losses of layouts that differ in that are of other samples.",
    )
    test_iters: Integer | None = Field(
        default=None,
        ge=1,
        description="Accepted for FleetX's files; `fastffn eval` reads the whole test part, "
        "no effect.",
    )
    mix_precision: MixPrecision = Field(
        default_factory=MixPrecision, description="Half precision on devices that have it."
    )
    save_load: SaveLoad = Field(
        default_factory=SaveLoad, description="Run folder, checkpoints and starting weights."
    )
    log_sinks: tuple[Literal["tensorboard", "visualdl"], ...] = Field(
        default=(),
        description="Further places for the metrics, beside metrics.jsonl; extras to install.",
    )


class BatchSize(Block):
    """Sequences of one step and of one forward pass."""

    global_batch_size: Integer | None = Field(
        default=None,
        ge=1,
        description="Sequences of one step over all processes (blank: local_batch_size times "
        "dp_degree times sharding_degree).",
    )
    local_batch_size: Integer | None = Field(
        default=None,
        ge=1,
        description="Sequences of one step on one data parallel process (blank: "
        "global_batch_size / (dp_degree x sharding_degree)).",
    )
    micro_batch_size: Integer = Field(
        default=8, ge=1, description="Sequences of one forward pass; it divides local_batch_size."
    )


def _join_split(value: object) -> object:
    """Read a list of weights, or weights separated by commas or slashes, as `949,50,1`."""
    if isinstance(value, (list, tuple)):
        parts: list[object] = list(value)
    elif isinstance(value, str):
        parts = [part.strip() for part in re.split(r"[,/]", value)]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        parts = [value]
    else:
        raise ValueError("must be weights such as '949,50,1' or [949, 50, 1]")
    weights = []
    for part in parts:
        text = str(part)
        if isinstance(part, bool) or not re.fullmatch(r"\d+(\.\d+)?([eE][-+]?\d+)?", text):
            raise ValueError("must be weights such as '949,50,1' or [949, 50, 1]")
        weights.append(text)
    if not 1 <= len(weights) <= 3 or sum(float(weight) for weight in weights) <= 0:
        raise ValueError("must be one to three weights (train, valid, test) with a sum above 0")
    return ",".join(weights)


class Dataset(Block):
    """The token files and how they are cut."""

    input_dir: Text | None = Field(
        default=None,
        min_length=1,
        description="Folder that `fastffn prepare --out` wrote, or a prefix of its files.",
    )
    split: Annotated[Text, BeforeValidator(_join_split)] = Field(
        default="949,50,1", description="Shares of the documents for training, validation and test."
    )
    max_seq_len: Integer = Field(default=1024, ge=1, description="Tokens of one training sequence.")
    eos_id: Integer | None = Field(
        default=None,
        ge=0,
        description="Token that ends a document (blank: from the data's meta.json).",
    )


class DataSection(Block):
    """Batches and token files."""

    batch_size: BatchSize = Field(
        default_factory=BatchSize, description="Sequences of a step and of a forward pass."
    )
    dataset: Dataset = Field(
        default_factory=Dataset, description="The token files and how they are cut."
    )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one process in one step, of a configuration whose sizes are derived."""
        sequences = self.batch_size.local_batch_size
        assert sequences is not None, "load_config derives it"
        return sequences * self.dataset.max_seq_len


class LearningRate(Block):
    """The schedule: linear warm-up to max_lr, then down to min_lr."""

    name: Literal[
        "cosine", "linear", "constant", "polynomial", "cosine_restarts", "mindspore_cosine"
    ] = Field(
        default="cosine",
        description="Shape after the warm-up; constant stays at max_lr, mindspore_cosine is the "
        "original FastFFN's: 0 at the first step, and a cosine that counts from it.",
    )
    power: Number = Field(
        default=1.0, gt=0, description="Exponent of polynomial; 1 is a straight line."
    )
    num_cycles: Number = Field(
        default=0.5, gt=0, description="Falls of cosine_restarts; each begins at max_lr again."
    )
    count_from: Literal[0, 1] = Field(
        default=1,
        description="Number of the first step in the formula: with 0, as in MindFormers, a warm-up "
        "begins with a step of learning rate 0.",
    )
    decay_steps: Integer | None = Field(
        default=None,
        ge=1,
        description="Step at which min_lr is reached (blank: the steps of the run).",
    )
    warmup_rate: Number = Field(
        default=0.01, ge=0, le=1, description="Warm-up as a share of decay_steps."
    )
    warmup_steps: Integer | None = Field(
        default=None,
        ge=0,
        description="Warm-up in steps; overrides warmup_rate (blank: by warmup_rate).",
    )
    max_lr: Number = Field(
        default=5e-5, gt=0, description="Learning rate at the end of the warm-up."
    )
    min_lr: Number = Field(default=1e-5, ge=0, description="Learning rate from decay_steps on.")


class OptimizerSection(Block):
    """AdamW, its schedule and the gradient clip."""

    recipe: Literal["mindspore-fastffn"] | None = Field(
        default=None,
        description="Defaults for this whole section by name; mindspore-fastffn trains as the "
        "original did (blank: none). Keys that are written win.",
    )
    name: Literal["AdamW"] = Field(default="AdamW", description="The optimizer.")
    weight_decay: Number = Field(
        default=0.01, ge=0, description="Decoupled weight decay; biases and norms are left out."
    )
    adam_beta1: Number = Field(
        default=0.9, ge=0, lt=1, description="Decay rate of the first moment."
    )
    adam_beta2: Number = Field(
        default=0.999, ge=0, lt=1, description="Decay rate of the second moment."
    )
    adam_epsilon: Number = Field(
        default=1e-8, gt=0, description="Added to the root of the second moment."
    )
    bias_correction: Flag = Field(
        default=True,
        description="Adam's correction of its moments for their start at zero; the original "
        "FastFFN has none.",
    )
    lr: LearningRate = Field(
        default_factory=LearningRate, description="The learning rate's schedule."
    )
    grad_clip: Number = Field(
        default=1.0,
        ge=0,
        description="Largest global norm of the gradient; 0 switches the clip off.",
    )


class ScheduleSection(Block):
    """Both stages in one run: when stage 1 ends, and what becomes of the optimizer then."""

    switch: Literal["never", "fraction", "slope", "fork", "blocked"] = Field(
        default="never",
        description="What ends stage 1: fraction = the share `at`; slope, fork and blocked measure "
        "when dense training pays (docs/schedules.md); never = `fastffn convert` does it.",
    )
    at: Number = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of the run's steps at which stage 1 ends; where a measurement decides, "
        "at the latest.",
    )
    earliest: Number = Field(
        default=0.1, ge=0, lt=1, description="Share of the run before which nothing is measured."
    )
    dense_start: Number = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the run that trains dense first; the weights are then factored into "
        "Model.ffn.",
    )
    handover: Literal["lift", "rewarm", "reset"] = Field(
        default="lift",
        description="AdamW's state of new weights: lift = from the factors' state, reset = zero, "
        "rewarm = zero and a warm-up of these weights alone.",
    )
    probe_batches: Integer = Field(
        default=1,
        ge=0,
        description="Batches of dense gradients that set the size of lifted second moments; "
        "0: none.",
    )
    rewarm_steps: Integer = Field(
        default=50,
        ge=1,
        description="Steps over which the learning rate of new weights comes to that of the rest.",
    )
    lr_factor: Number = Field(
        default=1.0,
        gt=0,
        description="Learning rate of the dense stages, as a multiple of Optimizer.lr's.",
    )
    check_freq: Integer = Field(
        default=100, ge=1, description="Steps between two measurements of slope, fork and blocked."
    )
    fork_steps: Integer = Field(
        default=50, ge=1, description="Dense steps of one measurement of fork and slope."
    )
    patience: Integer = Field(
        default=3, ge=1, description="Measurements in a row that must ask for the switch."
    )

    def dense_start_steps(self, max_steps: int) -> int:
        """Steps that a run of `max_steps` trains dense first: at least one, if any."""
        return max(1, round(self.dense_start * max_steps)) if self.dense_start else 0

    def latest_switch(self, max_steps: int) -> int:
        """Step behind which stage 1 ends at the latest, with a step on either side if possible."""
        first = self.dense_start_steps(max_steps) + 1
        return min(max(first, round(self.at * max_steps)), max(first, max_steps - 1))

    def fewest_steps(self) -> int:
        """Steps of the shortest run with a step of every stage."""
        return 2 + (self.dense_start > 0)
