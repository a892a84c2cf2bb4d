"""MindFormers' keys: where each one goes, or why it has no effect.

Paths are those of `configs/gpt2` of r0.3 (2023), with what `run_gpt2*.yaml` is built on; the names
of later releases are in `ALIASES`. Meanings: `mindformers/models/gpt2`, `core/lr`, `core/optim`,
`trainer` and `core/parallel_config.py` of that release.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastffn_cli.config import mindformers_values as values
from fastffn_cli.config.fleetx_keys import Foreign

MODEL = "model.model_config"
# Names by which only a MindFormers file can be meant.
MARKS = (
    "base_config", "context", "parallel", "parallel_config", "recompute_config", "runner_config",
    "runner_wrapper", "lr_schedule", "moe_config", "train_dataset", "train_dataset_task", "trainer",
    "callbacks", "processor",
)  # fmt: skip
MARKS_INSIDE = (("model", "model_config"), ("model", "arch"), ("optimizer", "type"))

_NO_EXPERTS = "the model has no experts"
_COMPILER = "it belongs to MindSpore's compiler"
_AUTO_PARALLEL = "it belongs to MindSpore's automatic parallelism"
_WHOLE_RECOMPUTE = "a recomputed layer repeats its communication, too"
_LOADED = "batches are read from the mapped token files, shuffled by Global.seed"
_SPEED = "the numbers are the same"
_NO_PROFILER = "there is no profiler in this version"
_MODEL_ARTS = "it belongs to ModelArts: a job keeps what lies in its output folder"
_RESUME = "type --resume to go on with a run, and -o KEY=0 for this one"
_WEIGHTS = (
    "weights are named on the command line here: --resume goes on with a run, `fastffn convert "
    "FILE` and then `fastffn posttrain --from DIR` start from weights. Leave it blank"
)
_SCALER = "Paddle's: twice after 2000 good steps, half after an overflow"
_SUMS = "gradients are means over all sequences of the step in any case"

_MOVED = {
    "seed": "Global.seed",
    "output_dir": "Engine.save_load.output_dir",
    "parallel_config.model_parallel": "Distributed.mp_degree",
    "parallel_config.pipeline_stage": "Distributed.pp_degree",
    "recompute_config.recompute": "Model.use_recompute",
    "runner_config.epochs": "Engine.num_train_epochs",
    "optimizer.beta1": "Optimizer.adam_beta1",
    "optimizer.beta2": "Optimizer.adam_beta2",
    "optimizer.eps": "Optimizer.adam_epsilon",
    "optimizer.weight_decay": "Optimizer.weight_decay",
    "lr_schedule.learning_rate": "Optimizer.lr.max_lr",
    "lr_schedule.lr_end": "Optimizer.lr.min_lr",
    "lr_schedule.warmup_steps": "Optimizer.lr.warmup_steps",
    "lr_schedule.power": "Optimizer.lr.power",
    f"{MODEL}.vocab_size": "Model.vocab_size",
    f"{MODEL}.embedding_size": "Model.hidden_size",
    f"{MODEL}.num_layers": "Model.num_layers",
    f"{MODEL}.num_heads": "Model.num_attention_heads",
    f"{MODEL}.dropout_prob": "Model.embedding_dropout_prob",
    f"{MODEL}.hidden_dropout_prob": "Model.hidden_dropout_prob",
    f"{MODEL}.attention_probs_dropout_prob": "Model.attention_probs_dropout_prob",
    f"{MODEL}.initializer_range": "Model.initializer_range",
    f"{MODEL}.repetition_penalty": "Generation.repetition_penalty",
    f"{MODEL}.top_k": "Generation.top_k",
    f"{MODEL}.top_p": "Generation.top_p",
    f"{MODEL}.temperature": "Generation.temperature",
}

_WITHOUT_EFFECT = {
    _COMPILER: (
        "context.mode",
        "context.enable_graph_kernel",
        "context.graph_kernel_flags",
        "context.max_call_depth",
        "context.save_graphs",
        "context.save_graphs_path",
    ),
    "it limits MindSpore's allocator; --plan CARDSxSIZE plans for cards of a size": (
        "context.max_device_memory",
    ),
    _SUMS: ("parallel.gradients_mean", "parallel.loss_repeated_mean"),
    _NO_EXPERTS: (
        "parallel.enable_alltoall",
        "moe_config.capacity_factor",
        "moe_config.aux_loss_factor",
        "moe_config.num_experts_chosen",
    ),
    "every process reads its own sequences of one global order": ("parallel.full_batch",),
    _AUTO_PARALLEL: ("parallel.search_mode", "parallel.strategy_ckpt_save_file"),
    _WHOLE_RECOMPUTE: (
        "recompute_config.parallel_optimizer_comm_recompute",
        "recompute_config.mp_comm_recompute",
    ),
    "a table whose rows mp_degree divides is split, another one is whole on every card": (
        "parallel_config.vocab_emb_dp",
    ),
    "gradients are grouped by their size": ("parallel_config.gradient_aggregation_group",),
    _SPEED: ("micro_batch_interleave_num",),
    "there is no image": ("runner_config.image_size",),
    "the command decides what is done": ("run_mode", "trainer.model_name"),
    _SCALER: (
        "runner_wrapper.scale_sense.type",
        "runner_wrapper.scale_sense.scale_factor",
        "runner_wrapper.scale_sense.scale_window",
    ),
    "layers have one learning rate": ("layer_decay", "lr_scale_factor"),
    _LOADED: (
        "train_dataset.data_loader.type",
        "train_dataset.data_loader.shuffle",
        "train_dataset.input_columns",
        "train_dataset.num_parallel_workers",
        "train_dataset.python_multiprocessing",
        "train_dataset.drop_remainder",
        "train_dataset.repeat",
        "train_dataset.numa_enable",
        "train_dataset.prefetch_size",
        "auto_tune",
        "autotune_per_step",
        "filepath_prefix",
    ),
    "runner_config.batch_size decides, there as well": ("train_dataset.batch_size",),
    "layer norms are computed in float32": (f"{MODEL}.layernorm_dtype",),
    "training starts from scratch, there as well; posttrain --from names weights": (
        f"{MODEL}.checkpoint_name_or_path",
    ),
    "it counts the prompt, too; Generation.max_dec_len counts new tokens": (
        f"{MODEL}.max_decode_length",
    ),
    "generation always keeps its keys and values": (f"{MODEL}.use_past",),
    _NO_PROFILER: (
        "profile",
        "profile_start_step",
        "profile_stop_step",
        "init_start_profile",
        "profile_communication",
        "profile_memory",
    ),
    _MODEL_ARTS: ("remote_save_url",),
    "evaluation is a command of its own: fastffn eval": ("do_eval",),
    "checkpoints hold whole tensors": (
        "auto_trans_ckpt",
        "src_strategy_path_or_dir",
        "only_save_strategy",
    ),
}

# Blocks and lists that are told of as a whole.
OPAQUE = {
    "train_dataset.tokenizer": "the tokenizer is the data's own",
    "train_dataset_task.dataset_config": "it is train_dataset, there as well",
    "eval_dataset": "Data.dataset.split makes the validation part",
    "eval_dataset_task": "Data.dataset.split makes the validation part",
    "processor": "the tokenizer is the data's own",
    "metric": "fastffn eval says loss and perplexity",
    "eval_callbacks": "evaluation has none",
    "aicc_config": _MODEL_ARTS,
}

# What the same key is called in later releases.
ALIASES = {
    f"{MODEL}.hidden_size": f"{MODEL}.embedding_size",
    f"{MODEL}.embedding_dropout_prob": f"{MODEL}.dropout_prob",
    f"{MODEL}.hidden_dropout_rate": f"{MODEL}.hidden_dropout_prob",
    f"{MODEL}.attention_dropout_rate": f"{MODEL}.attention_probs_dropout_prob",
    f"{MODEL}.eos_token_id": f"{MODEL}.eos_token",
    f"{MODEL}.layernorm_compute_type": f"{MODEL}.layernorm_dtype",
    f"{MODEL}.softmax_compute_type": f"{MODEL}.softmax_dtype",
    "load_checkpoint": "resume_or_finetune_checkpoint",
    "lr_schedule.lr_init": "lr_schedule.warmup_lr_init",
}

# What a block that is there means where it leaves a key out, as far as it is not what we take.
DEFAULTS: dict[str, dict[str, Any]] = {
    MODEL: {
        "vocab_size": 50257, "embedding_size": 768, "num_layers": 12, "num_heads": 12,
        "seq_length": 1024, "eos_token": 50256,
    },
    "optimizer": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0},
}  # fmt: skip
LEFT_OUT = "left out, MindFormers' default"
# A key that says what others would.
STANDS_FOR = {"optimizer.betas": ("optimizer.beta1", "optimizer.beta2")}


def _table() -> Iterator[tuple[str, Foreign]]:
    for path, target in _MOVED.items():
        yield path, Foreign(to=target)
    for reason, paths in _WITHOUT_EFFECT.items():
        for path in paths:
            yield path, Foreign(reason)
    for reason, convert, *keys in _CHECKED:
        for path in keys:
            yield path, Foreign(reason, convert=convert)
    for path, target, why, convert in _CONVERTED:
        yield path, Foreign(why, target, convert)
    for path, convert in _TOGETHER.items():
        yield path, Foreign(convert=convert, with_others=True)


# Keys without effect at the values that have none, and what to type instead of the others.
_CHECKED: tuple[tuple[Any, ...], ...] = (
    (
        "the model is a GPT",
        values.only("GPT2Config", f"models here are GPTs. Type -o {MODEL}.type=GPT2Config"),
        f"{MODEL}.type",
    ),
    (
        "the model is a GPT",
        values.only(
            "GPT2LMHeadModel", "models here are GPTs. Type -o model.arch.type=GPT2LMHeadModel"
        ),
        "model.arch.type",
    ),
    (
        "the command decides what is done",
        values.only(
            "CausalLanguageModelingTrainer",
            "only language models are trained here. Type "
            "-o trainer.type=CausalLanguageModelingTrainer",
        ),
        "trainer.type",
    ),
    (
        _LOADED,
        values.only(
            "CausalLanguageModelDataset",
            "only language models are trained here. Type "
            "-o train_dataset_task.type=CausalLanguageModelDataset",
        ),
        "train_dataset_task.type",
    ),
    (
        "norms stand before the sublayers",
        values.only(False, "norms stand before the sublayers here. Set it to false"),
        f"{MODEL}.post_layernorm_residual",
    ),
    (
        _NO_EXPERTS,
        values.at_most_one(
            "experts of MindFormers are not read. Type 1, and for experts of ours "
            "-o Model.ffn.kind=moe"
        ),
        "moe_config.expert_num",
        "parallel_config.expert_parallel",
    ),
    (
        "a layer is recomputed as a whole",
        values.only(False, "type false, and -o Model.recompute_granularity=core_attn for a part"),
        "recompute_config.select_recompute",
    ),
    ("the run tells where it is", values.only(0, _RESUME), "runner_config.initial_epoch",
     "runner_config.has_trained_epoches", "runner_config.has_trained_steps"),
    ("nothing is named", values.blank_text(_WEIGHTS), "resume_or_finetune_checkpoint"),
    ("the run starts anew", values.only(False, "type --resume, and false here"),
     "resume_training"),
    ("the step is one program", values.only(values.WRAPPERS, "this step is not known. Type "
     "-o runner_wrapper.type=MFTrainOneStepCell"), "runner_wrapper.type"),
    ("layers have one learning rate", values.only(False, "layers have one learning rate here. "
     "Set it to false"), "layer_scale", "lr_scale"),
    ("warm-up starts at 0", values.only((0, 0.0), "a warm-up starts at 0 here. Set it to 0"),
     "lr_schedule.warmup_lr_init"),
)  # fmt: skip

_CONVERTED: tuple[tuple[str, str, str, Any], ...] = (
    (
        "runner_wrapper.scale_sense.loss_scale_value",
        "Engine.mix_precision.scale_loss",
        "float16 overflows at more, and the first updates would be skipped",
        values.loss_scale,
    ),
    ("lr_schedule.total_steps", "Optimizer.lr.decay_steps", "", values.open_count),
    ("lr_schedule.warmup_ratio", "Optimizer.lr.warmup_rate", "", None),
    (f"{MODEL}.hidden_act", "Model.hidden_act", "", values.activation),
    (f"{MODEL}.do_sample", "Generation.decode_strategy", "", values.decode_strategy),
)

# Keys that mean something together with others: `mindformers` looks at them.
_TOGETHER = {
    "use_parallel": values.flag,
    "context.device_target": values.device,
    "context.device_id": None,
    "parallel.parallel_mode": values.parallel_mode,
    "parallel.enable_parallel_optimizer": values.flag,
    "parallel_config.optimizer_shard": values.flag,
    "parallel_config.data_parallel": values.positive,
    "parallel_config.micro_batch_num": values.positive,
    "parallel_config.use_seq_parallel": values.flag,
    "recompute_config.recompute_slice_activation": values.flag,
    "runner_config.batch_size": values.positive,
    "runner_config.gradient_accumulation_steps": values.positive,
    "runner_config.sink_mode": values.flag,
    "runner_config.sink_size": None,
    "runner_config.per_epoch_size": None,
    "runner_wrapper.use_clip_grad": values.flag,
    "runner_wrapper.max_grad_norm": None,
    "optimizer.type": values.optimizer,
    "optimizer.betas": None,
    "lr_schedule.type": values.schedule,
    "lr_schedule.num_cycles": None,
    "train_dataset.data_loader.dataset_dir": None,
    "callbacks": None,
    f"{MODEL}.seq_length": values.positive,
    f"{MODEL}.expand_ratio": values.positive,
    f"{MODEL}.eos_token": None,
    f"{MODEL}.param_init_type": values.dtype,
    f"{MODEL}.compute_dtype": values.dtype,
    f"{MODEL}.softmax_dtype": values.dtype,
}

KEYS: dict[str, Foreign] = dict(_table())
BLOCKS = {
    ".".join(path.split(".")[:length])
    for path in (*KEYS, *OPAQUE, *ALIASES)
    for length in range(1, path.count(".") + 1)
}
TOP = {path.partition(".")[0] for path in (*KEYS, *OPAQUE, *ALIASES)}
