"""What MindFormers' keys mean together: degrees, batches, precision, schedule, callbacks.

Each function looks at a `Reading` whose `seen` has the values of these keys, converted, and whose
tree has the others in the schema's names already.
"""

from __future__ import annotations

from typing import Any

from fastffn_cli.config.dialect_reading import Given, Reading
from fastffn_cli.config.keys import leaf_keys
from fastffn_cli.config.mindformers_keys import LEFT_OUT, MODEL
from fastffn_cli.config.origin import Problem
from fastffn_cli.config.yaml_tree import Leaf

_SHARDING = "Distributed.sharding."
_BATCH = "Data.batch_size."
_LR = "Optimizer.lr."
_MIX = "Engine.mix_precision."
# MindFormers' learning rate at the end, where a file leaves it out.
_LR_ENDS = {"polynomial": 1e-7, "cosine": 0.0, "cosine_restarts": 0.0, "linear": 0.0}
_SAVERS = ("CheckpointMointor", "CheckpointMonitor")  # the former is r0.3's own spelling
_KEPT = 5
_CALLBACKS = {
    "MFLossMonitor": "there is a log line a step",
    "SummaryMonitor": "metrics.jsonl has the figures; -o Engine.log_sinks=[visualdl] adds VisualDL",
    "ObsMonitor": "it belongs to ModelArts: a job keeps what lies in its output folder",
    "ProfileMonitor": "there is no profiler in this version",
}


def place_device(reading: Reading) -> None:
    """Join the kind of device and, without parallelism, its number."""
    kind, number = _seen(reading, "context.device_target"), _seen(reading, "context.device_id")
    if kind is not None:
        name = kind.leaf.value
        if number is not None and not _why_unnumbered(reading):
            name = f"{name}:{number.leaf.value}"
        _give(reading, "Global.device", name, kind)
    if number is None:
        return
    if unused := _why_unnumbered(reading):
        reading.tell(number.source, None, number.leaf, unused)
    else:
        leaf = Leaf(reading.value("Global.device"), number.leaf.origin)
        reading.tell(number.source, "Global.device", leaf, "its number", number.leaf.value)


def _why_unnumbered(reading: Reading) -> str:
    """Return why the number of a device has no effect; empty where it has one."""
    index, kind = _value(reading, "context.device_id"), _value(reading, "context.device_target")
    if _value(reading, "use_parallel") is True:
        return "use_parallel is true, and the launch gives every process a device"
    if kind is None:
        return "context.device_target is left out"
    if kind == "cpu":
        return "a CPU has no number"
    if reading.decided.get("Global.device", "context.device_target") != "context.device_target":
        return "Global.device decides"
    return "" if type(index) is int and index > 0 else "the first one is taken anyway"


def place_degrees(reading: Reading) -> None:
    """Let data parallel cards share the optimizer's state where both switches say so."""
    data = _seen(reading, "parallel_config.data_parallel")
    enabled = _seen(reading, "parallel.enable_parallel_optimizer")
    shard = _seen(reading, "parallel_config.optimizer_shard")
    wanted = enabled is not None and enabled.leaf.value and (shard is None or shard.leaf.value)
    shared = bool(wanted) and data is not None and data.leaf.value > 1
    if data is not None:
        if shared:
            why = "these cards share the optimizer's state"
            _give(reading, _SHARDING + "sharding_degree", data.leaf.value, data, why)
        else:
            _give(reading, "Distributed.dp_degree", data.leaf.value, data)
    if shared:
        assert enabled is not None
        why = "the optimizer's state is shared"
        _give(reading, _SHARDING + "sharding_stage", 1, enabled, why)
        if shard is not None:
            reading.tell(shard.source, _SHARDING + "sharding_stage", shard.leaf, "likewise")
        return
    for given, other in ((enabled, shard), (shard, enabled)):
        if given is None:
            continue
        why = "there is one data parallel card" if wanted else "nothing is shared"
        if given.leaf.value and not wanted:
            why = f"{other.source if other else 'parallel.enable_parallel_optimizer'} is not true"
        reading.tell(given.source, None, given.leaf, f"{why}, there as well")


def place_sequence_parallel(reading: Reading) -> None:
    """Read both ways in which tensor parallel cards divide what lies between the layers."""
    whys = {
        "parallel_config.use_seq_parallel": "",
        "recompute_config.recompute_slice_activation": "inputs of blocks are kept in slices; norms "
        "and dropouts are divided as well",
    }
    asked = [given for path in whys if (given := _seen(reading, path)) is not None]
    wanted = [given for given in asked if given.leaf.value]
    several = _degree(reading, "mp_degree") > 1
    for path, why in whys.items():
        given = _seen(reading, path)
        if given is None:
            continue
        if given.leaf.value and several and given is wanted[0]:
            _give(reading, "Distributed.sequence_parallel", True, given, why)
        else:
            reason = "model_parallel is 1" if given.leaf.value else "nothing is sliced"
            if given.leaf.value and several:
                reason = f"as {wanted[0].source} says"
            reading.tell(given.source, None, given.leaf, reason)


def check_modes(reading: Reading) -> None:
    """Refuse a mode that the degrees contradict, and warn of a switch that says otherwise."""
    split = _degree(reading, "mp_degree") * _degree(reading, "pp_degree")
    cards = split * _degree(reading, "dp_degree") * _degree(reading, "sharding.sharding_degree")
    mode, several = _seen(reading, "parallel.parallel_mode"), _seen(reading, "use_parallel")
    if mode is not None:
        if mode.leaf.value == 0 and split > 1:
            text = (
                f"{mode.source} 0 splits the batch alone, and model_parallel x pipeline_stage is "
                f"{split}: type -o {mode.source}=1, or set these two to 1"
            )
            reading.problems.append(Problem(mode.leaf.origin, text))
        reading.tell(mode.source, None, mode.leaf, "the degrees say how the run is split")
    if several is not None:
        if not several.leaf.value and cards > 1:
            text = (
                f"use_parallel is false, and the degrees multiply to {cards} cards: they count "
                "here. Set them to 1 for one card"
            )
            reading.warnings.append(Problem(several.leaf.origin, text))
        if _why_unnumbered(reading):
            why = "the degrees say how many cards there are"
            reading.tell(several.source, None, several.leaf, why)
        else:
            leaf, why = (
                Leaf(reading.value("Global.device"), several.leaf.origin),
                "its number counts",
            )
            reading.tell(several.source, "Global.device", leaf, why, several.leaf.value)


def place_batch(reading: Reading) -> None:
    """Make a step of batch_size sequences a data parallel card, or of micro_batch_num times it."""
    batch = _seen(reading, "runner_config.batch_size")
    micro = _seen(reading, "parallel_config.micro_batch_num")
    steps = _seen(reading, "runner_config.gradient_accumulation_steps")
    if micro is not None and _degree(reading, "pp_degree") == 1:
        why = "micro batches are of a pipeline, there as well"
        reading.tell(micro.source, None, micro.leaf, why)
        micro = None
    factors = [given for given in (micro, steps) if given is not None]
    rounds = 1
    for given in factors:
        rounds *= given.leaf.value
    if batch is None:
        if factors:
            _give(reading, "Engine.accumulate_steps", rounds, factors[0])
        return
    size = batch.leaf.value
    _give(reading, _BATCH + "micro_batch_size", size, batch)
    local = max((batch, *factors), key=lambda given: reading.ranks(given.leaf.origin))
    if factors and reading.ranks(local.leaf.origin) == reading.ranks(factors[0].leaf.origin):
        local = factors[0]
    parts = " x ".join(
        f"{given.source.rpartition('.')[2]} {given.leaf.value}" for given in (batch, *factors)
    )
    _give(reading, _BATCH + "local_batch_size", size * rounds, local, parts)


def place_log(reading: Reading) -> None:
    """Log once in each sink of data."""
    mode = _value(reading, "runner_config.sink_mode") is not False
    sizes = [
        given
        for name in ("per_epoch_size", "sink_size")
        if (given := _seen(reading, f"runner_config.{name}")) is not None
    ]
    counts = [given for given in sizes if mode and _is_count(given.leaf.value)]
    for given in sizes:
        if counts and given is counts[0]:
            _give(reading, "Engine.logging_freq", given.leaf.value, given, "steps of one data sink")
        else:
            reading.tell(given.source, None, given.leaf, "it counts no steps of a data sink")
    if (switch := _seen(reading, "runner_config.sink_mode")) is not None:
        why = "batches come one by one; the number of steps is the same"
        reading.tell(switch.source, None, switch.leaf, why)


def look_for_model(reading: Reading) -> None:
    """Warn of an excerpt that leaves out the model: ours would be trained."""
    if any(reading.value(f"Model.{name}") is not None for name in ("hidden_size", "num_layers")):
        return
    leaf = next((leaf for _, leaf in reading.tree.leaves() if leaf.origin.kind == "file"), None)
    if leaf is not None:
        text = (
            "there is no model.model_config, so the default model of Model is taken: name "
            "MindFormers' file of it in base_config, or set Model's keys"
        )
        reading.warnings.append(Problem(leaf.origin, text))


def place_sizes(reading: Reading) -> None:
    """Read the length of a sequence, the width inside feed-forwards, and the end of text."""
    if (length := _seen(reading, f"{MODEL}.seq_length")) is not None:
        for target in ("Model.max_position_embeddings", "Data.dataset.max_seq_len"):
            _give(reading, target, length.leaf.value, length)
    ratio, width = _seen(reading, f"{MODEL}.expand_ratio"), reading.value("Model.hidden_size")
    if ratio is not None and _is_count(width):
        product = ratio.leaf.value * width
        why = f"{ratio.leaf.value} times hidden_size"
        _give(reading, "Model.ffn_hidden_size", product, ratio, why)
    end, rows = _seen(reading, f"{MODEL}.eos_token"), reading.value("Model.vocab_size")
    if end is not None and end.why == LEFT_OUT and _is_count(rows) and rows <= end.leaf.value:
        reading.tell(end.source, None, end.leaf, f"{LEFT_OUT}, and no token has this number")
    elif end is not None:
        why = "attention hides it, and the loss behind it is masked"
        _give(reading, "Model.masked_token_id", end.leaf.value, end, why)
        _give(reading, "Data.dataset.eos_id", end.leaf.value, end)


def place_precision(reading: Reading) -> None:
    """Translate the number types of weights, products and softmax."""
    compute, stored, softmax = (
        _seen(reading, f"{MODEL}.{name}")
        for name in ("compute_dtype", "param_init_type", "softmax_dtype")
    )
    if compute is None:
        for given in (stored, softmax):
            if given is not None:
                reading.tell(given.source, None, given.leaf, "compute_dtype is left out")
        return
    half = compute.leaf.value != "float32"
    _give(reading, _MIX + "enable", half, compute)
    if half:
        _give(reading, _MIX + "dtype", compute.leaf.value, compute)
    whole = stored is not None and stored.leaf.value != "float32"
    if stored is not None:
        if half:
            why = "weights of 16 bits, with masters of 32" if whole else "weights of 32 bits"
            _give(reading, _MIX + "level", "O2" if whole else "O1", stored, why)
        else:
            reading.tell(stored.source, None, stored.leaf, "training is in float32")
    if softmax is not None:
        if half and softmax.leaf.value == "float32":
            default = leaf_keys()[_MIX + "custom_black_list"].default
            _give(reading, _MIX + "custom_black_list", [*default, "softmax"], softmax)
        else:
            why = "as compute_dtype" if half and whole else "softmax is in float32"
            reading.tell(softmax.source, None, softmax.leaf, why)


def place_optimizer(reading: Reading) -> None:
    """Read AdamW without bias correction, its betas, and the clip."""
    if (kind := _seen(reading, "optimizer.type")) is not None:
        _give(reading, "Optimizer.name", kind.leaf.value, kind)
        why = "its moments are not corrected"
        _give(reading, "Optimizer.bias_correction", False, kind, why)
    if (betas := _seen(reading, "optimizer.betas")) is not None:
        values = betas.leaf.value
        if not isinstance(values, list) or len(values) != 2:
            text = f"{betas.source} must be two numbers, as in [0.9, 0.95]"
            reading.problems.append(Problem(betas.leaf.origin, text))
        else:
            for name, value in zip(("adam_beta1", "adam_beta2"), values, strict=True):
                _give(reading, f"Optimizer.{name}", value, betas)
    clip = _seen(reading, "runner_wrapper.use_clip_grad")
    norm = _seen(reading, "runner_wrapper.max_grad_norm")
    if clip is not None:
        limit = (norm.leaf.value if norm is not None else 1.0) if clip.leaf.value else 0.0
        _give(reading, "Optimizer.grad_clip", limit, clip, "the largest global norm")
    if norm is not None:
        reading.tell(norm.source, None, norm.leaf, "use_clip_grad decides")


def place_schedule(reading: Reading) -> None:
    """Name the schedule, which counts from 0, and fill in what MindFormers takes for granted."""
    kind, cycles = _seen(reading, "lr_schedule.type"), _seen(reading, "lr_schedule.num_cycles")
    if kind is None:
        if cycles is not None:
            reading.tell(cycles.source, None, cycles.leaf, "lr_schedule.type is left out")
        return
    name = kind.leaf.value
    _give(reading, _LR + "name", name, kind)
    _give(reading, _LR + "count_from", 0, kind, "its first step is number 0")
    if name in _LR_ENDS and reading.value(_LR + "min_lr") is None:
        why = f"lr_end is left out, MindFormers' default of {name}"
        _give(reading, _LR + "min_lr", _LR_ENDS[name], kind, why)
    if not any(reading.value(_LR + key) is not None for key in ("warmup_steps", "warmup_rate")):
        _give(reading, _LR + "warmup_steps", 0, kind, "warmup_steps is left out")
    if reading.value(_LR + "warmup_steps") == 0 and reading.from_file(_LR + "warmup_steps"):
        why = "MindFormers makes one more update before, of learning rate 0"
        reading.explain(_LR + "warmup_steps", why)
    if cycles is None:
        return
    if name == "cosine_restarts":
        _give(reading, _LR + "num_cycles", cycles.leaf.value, cycles)
    elif name == "cosine" and cycles.leaf.value != 0.5:
        text = (
            f"{cycles.source} {cycles.leaf.value}: a cosine falls once here. Type "
            f"-o {cycles.source}=0.5, or -o lr_schedule.type=cosine_with_restarts"
        )
        reading.problems.append(Problem(cycles.leaf.origin, text))
    else:
        reading.tell(cycles.source, None, cycles.leaf, "it is that of one fall")


def place_data(reading: Reading) -> None:
    """Read the folder of the data, if one is named."""
    folder = _seen(reading, "train_dataset.data_loader.dataset_dir")
    if folder is None:
        return
    if folder.leaf.value == "":
        reading.tell(folder.source, None, folder.leaf, "name it: -o Data.dataset.input_dir=DIR")
        return
    why = "the folder that `fastffn prepare` makes of MindRecord files"
    _give(reading, "Data.dataset.input_dir", folder.leaf.value, folder, why)


def place_callbacks(reading: Reading) -> None:
    """Read when checkpoints are saved, and how many are kept."""
    given = _seen(reading, "callbacks")
    if given is None:
        return
    items = given.leaf.value if isinstance(given.leaf.value, list) else [given.leaf.value]
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind in _SAVERS:
            _place_saver(reading, item, given)
        elif isinstance(kind, str) and kind in _CALLBACKS:
            source = f"callbacks.{kind}"
            reading.tell(source, None, Leaf(item, given.leaf.origin), _CALLBACKS[kind])
        else:
            known = ", ".join((_SAVERS[0], *_CALLBACKS))
            text = f"callbacks: {kind or item} is not known here. Remove it; known are {known}"
            reading.problems.append(Problem(given.leaf.origin, text))


def _place_saver(reading: Reading, item: dict[str, Any], given: Given) -> None:
    targets = {
        "save_checkpoint_steps": "Engine.save_load.save_steps",
        "keep_checkpoint_max": "Engine.save_load.keep_last",
    }
    for name, value in {"keep_checkpoint_max": _KEPT, **item}.items():
        source = f"callbacks.{item['type']}.{name}"
        part = Given(source, Leaf(value, given.leaf.origin))
        if name in targets:
            why = "" if name in item else LEFT_OUT
            _give(reading, targets[name], value, part, why)
        elif name != "type":
            why = "a checkpoint is a folder named by its step, with whole tensors"
            reading.tell(source, None, part.leaf, why)


# In this order: degrees come before what depends on them.
PARTS = (
    place_device, place_degrees, place_sequence_parallel, check_modes, place_batch, place_log,
    look_for_model, place_sizes, place_precision, place_optimizer, place_schedule, place_data,
    place_callbacks,
)  # fmt: skip


def _seen(reading: Reading, path: str) -> Given | None:
    return reading.seen.get(path)


def _value(reading: Reading, path: str) -> Any:
    given = reading.seen.get(path)
    return None if given is None else given.leaf.value


def _degree(reading: Reading, name: str) -> int:
    """Return a degree of parallelism that is settled; 1 for none, or one that is refused later."""
    value = reading.value(f"Distributed.{name}")
    return value if _is_count(value) else 1


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _give(reading: Reading, target: str, value: Any, given: Given, why: str = "") -> None:
    """Let a key of the schema have a value, as far as no later layer decides."""
    written = given.leaf.value if given.written is None else given.written
    changed = value != written or type(value) is not type(written)
    leaf = Leaf(value, given.leaf.origin)
    reading.settle(target, [Given(given.source, leaf, why, written if changed else None)])
