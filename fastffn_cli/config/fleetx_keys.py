"""FleetX's keys that the schema does not have: where each one goes, or why it has no effect.

Paths are those of PaddleFleetX's `ppfleetx/configs` (September 2022 to August 2023, in PaddleNLP as
well). The other forms are spelled in these names before they are looked up here
(`dialect_spelling`): `examples/transformer`, the flat files of July 2022, `Eval` of August 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastffn_cli.config import fleetx_values as values

PARTS = ("Train", "Eval", "Test")


@dataclass(frozen=True)
class Foreign:
    """What becomes of one key.

    `to` is the key of the schema (or picks it by the value), None for a key without effect; `why`
    is said with it. `convert` returns the value for `to`, and raises ValueError for a meaning that
    this program does not have. `with_others`: the key means something together with others, which
    `fleetx_traps` looks at.
    """

    why: str = ""
    to: str | Callable[[Any], str] | None = None
    convert: Callable[[Any], Any] | None = None
    with_others: bool = False


_SHUFFLED = "batches are shuffled by Global.seed; every batch is whole"
_LOADED = "batches are read from the mapped token files, without worker processes"
_SAME_ATTENTION = "Model.use_flash_attn decides; the mathematics is the same"
_TENSOR_PARALLEL = "it belongs to tensor parallelism"
_PIPELINE = "it belongs to pipeline parallelism"
_SHARDING = "it belongs to sharded optimizer states"
_NO_EXPERTS = "the model has no experts"
_INJECTED = "FleetX writes it into the configuration while it runs"
_DISABLED = "nothing of it is enabled"
_NO_PROFILER = "there is no profiler in this version"
_TOKENIZER = "special tokens come with the tokenizer"
_FORCED = "generation forces no token"

_MOVED = {
    "Global.global_batch_size": "Data.batch_size.global_batch_size",
    "Global.local_batch_size": "Data.batch_size.local_batch_size",
    "Global.micro_batch_size": "Data.batch_size.micro_batch_size",
    "Engine.use_recompute": "Model.use_recompute",
    "Model.sequence_parallel": "Distributed.sequence_parallel",
    "Optimizer.beta1": "Optimizer.adam_beta1",
    "Optimizer.beta2": "Optimizer.adam_beta2",
    "Optimizer.epsilon": "Optimizer.adam_epsilon",
    "Optimizer.grad_clip.clip_norm": "Optimizer.grad_clip",
    "Optimizer.lr.learning_rate": "Optimizer.lr.max_lr",
    "Data.Train.dataset.input_dir": "Data.dataset.input_dir",
    "Data.Train.dataset.split": "Data.dataset.split",
    "Data.Train.dataset.max_seq_len": "Data.dataset.max_seq_len",
    "Data.Train.dataset.eos_id": "Data.dataset.eos_id",
}

_WITHOUT_EFFECT = {
    "set Paddle's flags in the environment, as in FLAGS_name=value": ("Global.flags",),
    _PIPELINE: (
        "Global.enable_partial_send_recv",
        "Model.virtual_pp_degree",
        "Distributed.pp_recompute_interval",
    ),
    "the log is one line a step": ("Engine.verbose",),
    "checkpoints are counted in steps (save_steps), and the last step is always saved": (
        "Engine.save_load.save_epoch",
    ),
    "there is no second copy of the gradients": (
        "Engine.mix_precision.use_main_grad",
        "Distributed.use_main_grad",
    ),
    "it belongs to static graphs": (
        "Engine.mix_precision.use_fp16_guard",
        "Engine.mix_precision.use_bf16_guard",
        "FusedPasses.enable",
        "FusedPasses.fused_passes_list",
    ),
    "q, k and v are one matrix here; convert reads checkpoints of both forms": (
        "Model.fuse_attn_qkv",
        "Model.fuse",
    ),
    "the scores are the same numbers; FleetX guards float16 against overflow with it": (
        "Model.scale_qk_by_layer_num",
    ),
    _TENSOR_PARALLEL: ("Distributed.fuse_sequence_parallel_allreduce",),
    _SAME_ATTENTION: (
        "Model.use_memory_attn",
        "Model.fused_softmax_with_triangular",
    ),
    "the mathematics is the same": ("Model.use_fused_dropout_add",),
    "use_recompute recomputes every layer; the numbers are the same": (
        "Model.no_recompute_layers",
    ),
    _NO_EXPERTS: (
        "Model.expert_interval",
        "Model.topk",
        "Model.moe_use_residual",
        "Model.moe_train_capacity_factor",
        "Model.moe_eval_capacity_factor",
        "Model.moe_min_capacity",
        "Model.moe_token_dropping",
        "Model.gate",
        "Model.balance_loss_weight",
    ),
    "it belongs to a classifier": ("Model.num_classes", "Model.loss", "Model.metric"),
    "O2 keeps float32 master weights in any case": ("Optimizer.multi_precision",),
    "weights keep a buffer each": ("Optimizer.tensor_fusion",),
    "decay_steps counts optimizer steps here in any case": ("Optimizer.lr.use_increments",),
    _INJECTED: (
        "Optimizer.lr.run_mode",
        "Optimizer.lr.step_each_epoch",
        "Optimizer.lr.epochs",
        "Distributed.hcg",
    ),
    _SHARDING: (
        "Distributed.sharding.reduce_overlap",
        "Distributed.sharding.broadcast_overlap",
        "Distributed.sharding.comm_overlap",
    ),
    "it belongs to beam search": ("Generation.num_beam_groups", "Generation.diversity_rate"),
    _TOKENIZER: (
        "Generation.bos_token_id",
        "Generation.eos_token_id",
        "Generation.pad_token_id",
        "Generation.decoder_start_token_id",
    ),
    _FORCED: ("Generation.forced_bos_token_id", "Generation.forced_eos_token_id"),
    "generation always keeps its keys and values": ("Generation.use_cache",),
    "top_p draws the same way without it, and by --seed": ("Generation.use_topp_sampling",),
    "it belongs to exported models": ("Generation.inference",),
    "a completion ends with its end token or at max_dec_len": ("Generation.early_finish",),
    "there is no TensorRT in this version": tuple(
        f"Inference.TensorRT.{name}"
        for name in (
            "max_batch_size", "workspace_size", "min_subgraph_size", "precision", "use_static",
            "use_calib_mode", "collect_shape", "shape_range_info_filename",
        )
    ),
    _NO_PROFILER: (
        "Profiler.record_shapes",
        "Profiler.profile_memory",
        "Profiler.timer_only",
        *(
            f"Profiler.summary.{name}"
            for name in (
                "overview", "device", "model", "dist", "kernel", "op", "mem", "memcpy",
            )
        ),
    ),
    "name the weights on the command line: fastffn convert PATH": ("Compress.pretrained",),
    "there is one way to run on one device": tuple(
        f"Tuning.{name}"
        for name in (
            "enable", "tuning_recompute", "profile_start_step", "profile_end_step",
            "run_after_tuning", "debug",
        )
    ),
}  # fmt: skip

_QUANTIZATION = (
    "weight_quantize_type", "activation_quantize_type", "weight_preprocess_type",
    "activation_preprocess_type", "weight_bits", "activation_bits", "quantizable_layer_type",
    "not_quant_pattern", "for_tensorrt", "is_full_quantize", "onnx_format", "freeze_embedding",
    "skip_tensor_map",
)  # fmt: skip
_PRUNE = ("criterion", "ratio")
_DISTILLATION = ("distill_loss_ratio", "distillation_loss_type", "T", "Teacher")

# Whatever stands below these is not looked at.
OPAQUE = {
    "Global.flags",
    "Model.loss",
    "Model.metric",
    "Model.gate",
    "Quantization.skip_tensor_map",
    "Compress.Quantization.skip_tensor_map",
    "Compress.Distillation.Teacher",
}


def _table() -> Iterator[tuple[str, Foreign]]:
    for path, target in _MOVED.items():
        yield path, Foreign(to=target)
    for reason, paths in _WITHOUT_EFFECT.items():
        for path in paths:
            yield path, Foreign(reason)
    yield from _parts_of_data()
    for block, names in (
        ("Quantization", _QUANTIZATION),
        ("Compress.Quantization", _QUANTIZATION),
        ("Compress.Prune", _PRUNE),
        ("Compress.Distillation", _DISTILLATION),
    ):
        yield f"{block}.enable", Foreign(_DISABLED, convert=values.refuse_compression)
        for name in names:
            yield f"{block}.{name}", Foreign(_DISABLED)
    # Keys with a meaning of their own, some of them names of the schema with FleetX's values.
    yield (
        "Engine.run_mode",
        Foreign("epoch: num_train_epochs decides", None, values.check_run_mode, True),
    )
    yield (
        "Engine.max_steps",
        Foreign("num_train_epochs decides", "Engine.max_steps", convert=values.open_steps),
    )
    yield "Engine.test_iters", Foreign(to="Engine.test_iters", convert=values.open_steps)
    yield (
        "Engine.mix_precision.level",
        Foreign("", "Engine.mix_precision.level", values.upper),
    )
    yield "Model.module", Foreign("the command decides what is done", convert=values.check_module)
    yield "Model.name", Foreign("the tokenizer is the data's own", convert=values.check_model)
    yield "Model.num_experts", Foreign(_NO_EXPERTS, convert=values.check_experts)
    yield (
        "Model.pretrained",
        Foreign("weights are named on the command line", convert=values.refuse_pretrained),
    )
    yield (
        "Model.vocab_size_divisible_unit",
        Foreign("vocab_size is padded to a multiple of it", None, values.check_unit, True),
    )
    yield (
        "Optimizer.name",
        Foreign("", "Optimizer.name", values.optimizer_name),
    )
    yield "Optimizer.lr.name", Foreign("", "Optimizer.lr.name", values.schedule_name)
    yield "Optimizer.lr.warmup", Foreign("", values.warmup_key)
    yield "Optimizer.lr.total_steps", Foreign(_INJECTED, "Optimizer.lr.decay_steps")
    yield (
        "Optimizer.grad_clip.name",
        Foreign("the clip is by global norm", convert=values.check_clip),
    )


def _parts_of_data() -> Iterator[tuple[str, Foreign]]:
    for part in PARTS:
        block = f"Data.{part}"
        yield f"{block}.dataset.name", Foreign("token files", convert=values.check_dataset)
        for name in ("num_samples", "mode", "model_type"):
            yield f"{block}.dataset.{name}", Foreign(_INJECTED)
        yield f"{block}.dataset.seed", Foreign("the order follows Global.seed")
        yield f"{block}.dataset.overlapping_eval", Foreign("Offline_Eval.overlapping_eval decides")
        if part != "Train":  # compared with Train's
            for name in ("input_dir", "split", "max_seq_len", "eos_id"):
                rule = Foreign("it has to agree with Data.Train", with_others=True)
                yield f"{block}.dataset.{name}", rule
        yield f"{block}.sampler.name", Foreign(_SHUFFLED, convert=values.check_sampler)
        for name in ("shuffle", "drop_last"):
            yield f"{block}.sampler.{name}", Foreign(_SHUFFLED)
        yield f"{block}.sampler.batch_size", Foreign("local_batch_size decides")
        for name in ("num_workers", "return_list", "collate_fn"):
            yield f"{block}.loader.{name}", Foreign(_LOADED)
        for name in ("collate_fn", "sample_split"):
            yield f"{block}.{name}", Foreign(_LOADED)


FOREIGN: dict[str, Foreign] = dict(_table())
# Every block around these keys, also those of the schema.
FOREIGN_BLOCKS = {
    ".".join(path.split(".")[:length])
    for path in FOREIGN
    for length in range(1, path.count(".") + 1)
}
