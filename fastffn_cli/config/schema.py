"""Every section and key of a configuration, its type, range, default and explanation.

The one source of all of them: the loader checks files against it, `fastffn config KEY` prints the
descriptions, `--schema` exports it, and the README's key table is made from it. Sections and keys
carry FleetX's names (the single-card YAML of August 2022); what is new sits in `Model.ffn`,
`Model.*_rank`, `Schedule`, `Global.cpu_*`, `Engine.log_sinks`, `Engine.save_load.keep_last` and
`notes`.

A key that is `None` after loading is decided when a command runs; its description says how.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from fastffn_cli.config.ffn import DENSE, DenseFFN, FFNOptions, is_dense
from fastffn_cli.config.fields import Block, Flag, Integer, Number, Text
from fastffn_cli.config.schema_training import (
    DataSection,
    EngineSection,
    OptimizerSection,
    ScheduleSection,
)

# A plugin may register any type of device; what is not there is told where the device is asked for.
DEVICE_PATTERN = r"[a-z][a-z0-9_]*(:\d+(,\d+)*)?"
# What other frameworks call devices: no plugin's types, and `validate` knows what is meant.
FOREIGN_DEVICES = frozenset({"cuda", "nvidia", "ascend", "host"})


class GlobalSection(Block):
    """Device, seed and threads."""

    device: Text = Field(
        default="auto",
        description="auto, cpu, gpu, npu or another type that a plugin registers, or with a "
        "number: gpu:0, npu:1.",
    )
    seed: Integer = Field(
        default=1024, ge=0, lt=2**31, description="Seed of weights, dropout and data order."
    )
    cpu_threads: Integer | None = Field(
        default=None, ge=1, description="Threads of the CPU's matrix products (blank: every core)."
    )
    cpu_fast_math: Flag = Field(
        default=True,
        description="Use the CPU's full vector instructions in MKL on AMD processors that have "
        "them (checked at the start).",
    )
    cpu_kernels: Flag = Field(
        default=True,
        description="Use fastffn's own operators on a CPU, compiled at the first use where there "
        "is a C++ compiler; False: Paddle's alone.",
    )

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        kind, _, index = value.partition(":")
        known = re.fullmatch(DEVICE_PATTERN, value) and kind not in FOREIGN_DEVICES
        if not known or (kind in ("auto", "cpu") and index):
            raise ValueError(
                "must be auto, cpu, gpu, npu or a plugin's type, or with a number: gpu:0, npu:0"
            )
        return value


class ModelSection(Block):
    """The GPT and its feed-forward layers."""

    vocab_size: Integer | None = Field(
        default=None,
        ge=2,
        description="Rows of the token table (blank: as many as the data's tokenizer).",
    )
    hidden_size: Integer = Field(default=1024, ge=1, description="Width of the model.")
    num_layers: Integer = Field(default=24, ge=1, description="Transformer blocks.")
    num_attention_heads: Integer = Field(
        default=16, ge=1, description="Attention heads; they divide hidden_size."
    )
    ffn_hidden_size: Integer | None = Field(
        default=None,
        ge=1,
        description="Width inside the feed-forward layers (blank: 4 times hidden_size).",
    )
    hidden_act: Literal["gelu", "fast_gelu"] = Field(
        default="gelu",
        description="Activation of the feed-forwards: gelu = its tanh form, as in GPT-2; fast_gelu "
        "= x sigmoid(1.702 x), as in MindFormers' GPT2-13B (Hugging Face's quick_gelu).",
    )
    hidden_dropout_prob: Number = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Dropout of embeddings, attention outputs and feed-forwards.",
    )
    attention_probs_dropout_prob: Number = Field(
        default=0.1, ge=0, lt=1, description="Dropout of attention probabilities."
    )
    embedding_dropout_prob: Number | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Dropout of embeddings, which the original FastFFN does not have "
        "(blank: hidden_dropout_prob).",
    )
    max_position_embeddings: Integer = Field(
        default=1024, ge=1, description="Rows of the position table: the longest sequence."
    )
    type_vocab_size: Integer = Field(
        default=16,
        ge=0,
        description="Accepted for FleetX's files; a GPT has no token types, no effect.",
    )
    initializer_range: Number = Field(
        default=0.02, gt=0, description="Standard deviation of the normal start of all weights."
    )
    use_recompute: Flag = Field(
        default=False,
        description="Compute activations again in the backward pass: slower, less memory.",
    )
    recompute_granularity: Literal["full", "full_attn", "core_attn"] = Field(
        default="full", description="What use_recompute recomputes; full needs the least memory."
    )
    use_flash_attn: Flag = Field(
        default=False,
        description="Attend with the device's fused operator, in half precision on a GPU or NPU; "
        "where there is none that works, plainly, with a notice. Its dropout is of other random "
        "numbers. On a CPU attention is fused in any case, wherever the kernels are.",
    )
    masked_token_id: Integer | None = Field(
        default=None,
        ge=0,
        description="Token that no position attends to, as the original FastFFN and MindFormers "
        "hide end-of-text (blank: none).",
    )
    fused_linear: Flag = Field(
        default=False,
        description="Accepted for FleetX's files; a kernel of CUDA 11.6 only, no effect.",
    )
    attention_rank: Integer | None = Field(
        default=None,
        ge=1,
        description="Rank of two factors in the place of each attention projection in stage 1; "
        "they start and train as those of Model.ffn (blank: whole matrices).",
    )
    embedding_rank: Integer | None = Field(
        default=None,
        ge=1,
        description="Rank of two factors in the place of the token table, which is the head as "
        "well, in stage 1 (blank: a whole table).",
    )
    ffn: FFNOptions = Field(
        default_factory=DenseFFN, description="Kind of feed-forward layer and its options."
    )

    @property
    def approximations(self) -> dict[str, Any]:
        """What makes the model another one than the dense model of its sizes, as plain values."""
        return self.model_dump(include=set(DENSE))

    @property
    def is_dense(self) -> bool:
        """Whether no part of the model is in a cheaper form, which stage 1 alone has."""
        return is_dense(self.approximations)


class Sharding(Block):
    """Sharded optimizer states, for several processes."""

    sharding_degree: Integer = Field(
        default=1,
        ge=1,
        description="Data parallel processes that share optimizer states.",
    )
    sharding_stage: Literal[1, 2, 3] = Field(
        default=1,
        description="What is shared: 1 optimizer states, 2 also gradients, 3 also weights.",
    )
    sharding_offload: Flag = Field(
        default=False, description="Keep the shared states in host memory: not in this version."
    )


class DistributedSection(Block):
    """Degrees of parallelism: they multiply to the number of processes, one a device."""

    dp_degree: Integer = Field(
        default=1, ge=1, description="Data parallel processes: each reads its rows of a batch."
    )
    mp_degree: Integer = Field(
        default=1,
        ge=1,
        description="Tensor parallel processes: they split attention heads and feed-forwards.",
    )
    pp_degree: Integer = Field(
        default=1, ge=1, description="Pipeline stages: each process holds some of the layers."
    )
    sequence_parallel: Flag = Field(
        default=False,
        description="Tensor parallel processes also divide what lies between attention and "
        "feed-forwards, along time.",
    )
    sharding: Sharding = Field(
        default_factory=Sharding, description="Sharded optimizer states, for several processes."
    )

    @property
    def data_degree(self) -> int:
        """Processes that read sequences of their own."""
        return self.dp_degree * self.sharding.sharding_degree

    @property
    def processes(self) -> int:
        """All of them."""
        return self.data_degree * self.mp_degree * self.pp_degree


class FusedSection(Block):
    """How feed-forwards of thin factors are computed; FleetX's fused buffers, without effect."""

    tensor_fusion: Flag = Field(
        default=False,
        description="Accepted for FleetX's files; one buffer for all weights, no effect.",
    )
    low_rank_ffn: Literal["auto", "fused", "chunked"] = Field(
        default="auto",
        description="Feed-forwards of thin factors (low_rank, thin): fused is one kernel that "
        "keeps no hidden units, for CPUs and NVIDIA GPUs; chunked the same in Paddle's operators, "
        "some tokens at a time, on any device; auto is fused on a CPU, else Paddle's operators.",
    )


class GenerationSection(Block):
    """How `fastffn generate` picks tokens."""

    decode_strategy: Literal["sampling", "greedy_search"] = Field(
        default="sampling", description="sampling draws a token, greedy_search takes the likeliest."
    )
    top_k: Integer = Field(
        default=50, ge=0, description="Draw among the k likeliest tokens; 0: all."
    )
    top_p: Number = Field(
        default=0.75,
        gt=0,
        le=1,
        description="Draw among the likeliest tokens that reach this probability.",
    )
    temperature: Number = Field(
        default=1.0,
        gt=0,
        description="Divides the logits: below 1 bolder picks fade, above 1 they grow.",
    )
    min_dec_len: Integer = Field(default=1, ge=0, description="New tokens before the end may come.")
    max_dec_len: Integer = Field(default=200, ge=1, description="New tokens at most.")
    num_return_sequences: Integer = Field(
        default=1, ge=1, description="Completions of each prompt."
    )
    repetition_penalty: Number = Field(
        default=1.0, gt=0, description="Above 1: tokens already written become less likely."
    )
    num_beams: Integer = Field(
        default=1, ge=0, description="Beams of a beam search; 0 or 1 in this version."
    )
    length_penalty: Number = Field(
        default=1.0, description="Belongs to beam search; no effect so far."
    )
    early_stopping: Flag = Field(
        default=False, description="Belongs to beam search; no effect so far."
    )


class OfflineEvalSection(Block):
    """How `fastffn eval` measures."""

    eval_path: Text | None = Field(
        default=None,
        min_length=1,
        description="Text or token files to evaluate (blank: given on the command line).",
    )
    cloze_eval: Flag = Field(
        default=False, description="Predict the last word (LAMBADA) in place of the whole text."
    )
    overlapping_eval: Integer = Field(
        default=32,
        ge=1,
        description="Tokens by which a window moves on; the rest of it is context.",
    )
    batch_size: Integer = Field(
        default=8,
        ge=1,
        description="Windows under way at a time; the result does not depend on it.",
    )
    max_seq_len: Integer | None = Field(
        default=None, ge=2, description="Tokens of one window (blank: as trained)."
    )
    logging_freq: Integer = Field(
        default=10,
        ge=1,
        description="Accepted for FleetX's files; evaluation shows its progress, no effect.",
    )
    ckpt_dir: Text | None = Field(
        default=None,
        min_length=1,
        description="Accepted for FleetX's files; name the checkpoint on the command line.",
    )


class InferenceSection(Block):
    """FleetX's exported inference; accepted, without effect."""

    model_dir: Text = Field(
        default="./output", description="Accepted for FleetX's files; no effect in this version."
    )
    mp_degree: Integer = Field(
        default=1, ge=1, description="Accepted for FleetX's files; only 1 in this version."
    )


class ProfilerSection(Block):
    """FleetX's profiler; accepted, without effect."""

    enable: Flag = Field(
        default=False, description="Accepted for FleetX's files; no effect in this version."
    )
    scheduler: tuple[Integer, ...] = Field(
        default=(1, 5), description="First and last step to profile; no effect in this version."
    )
    profiler_log: Text = Field(
        default="profiler_log", description="Folder of the profile; no effect in this version."
    )
    detailed: Flag = Field(
        default=False, description="All views of the summary; no effect in this version."
    )


class Config(Block):
    """A whole, validated configuration. Sections and keys carry the names of the YAML file."""

    Global: GlobalSection = Field(
        default_factory=GlobalSection, description="Device, seed and threads."
    )
    Engine: EngineSection = Field(
        default_factory=EngineSection,
        description="Length of the run, log, evaluation, precision, checkpoints.",
    )
    Model: ModelSection = Field(
        default_factory=ModelSection, description="The GPT and its feed-forward layers."
    )
    Data: DataSection = Field(default_factory=DataSection, description="Batches and token files.")
    Optimizer: OptimizerSection = Field(
        default_factory=OptimizerSection, description="AdamW, its schedule, the gradient clip."
    )
    Schedule: ScheduleSection = Field(
        default_factory=ScheduleSection,
        description="Both stages in one run: when stage 1 ends, and how.",
    )
    Distributed: DistributedSection = Field(
        default_factory=DistributedSection,
        description="Degrees of parallelism: they multiply to the number of processes, one a "
        "device.",
    )
    Fused: FusedSection = Field(
        default_factory=FusedSection, description="How some layers are computed."
    )
    Generation: GenerationSection = Field(
        default_factory=GenerationSection, description="How `fastffn generate` picks tokens."
    )
    Offline_Eval: OfflineEvalSection = Field(
        default_factory=OfflineEvalSection, description="How `fastffn eval` measures."
    )
    Inference: InferenceSection = Field(
        default_factory=InferenceSection, description="FleetX's exported inference; no effect."
    )
    Profiler: ProfilerSection = Field(
        default_factory=ProfilerSection, description="FleetX's profiler; no effect."
    )
    notes: dict[str, Any] = Field(
        default_factory=dict, description="Anything of your own; the program does not read it."
    )
