"""What a FleetX file leaves out or blank, and FleetX fills in otherwise than we do."""

from __future__ import annotations

from typing import Any

from fastffn_cli.config.dialect_reading import Reading
from fastffn_cli.config.dump import format_value
from fastffn_cli.config.keys import leaf_keys
from fastffn_cli.config.origin import Origin, Problem
from fastffn_cli.config.yaml_tree import Branch, Leaf

# What FleetX takes where a file leaves a key out, as far as it is not what we take.
_DEFAULTS_OF_2022: dict[str, Any] = {
    "Engine.max_steps": 500000,
    "Engine.mix_precision.use_pure_fp16": True,
    "Model.hidden_size": 2048,
    "Optimizer.weight_decay": 0.0,
    "Optimizer.lr.decay_steps": 360000,
    "Optimizer.lr.max_lr": 1e-5,
    "Optimizer.lr.min_lr": 5e-5,
    "Optimizer.grad_clip": 0.0,
    "Generation.top_k": 5,
    "Generation.top_p": 1.0,
    "Generation.max_dec_len": 16,
}
_DEFAULTS_OF_PPFLEETX: dict[str, Any] = {
    "Engine.max_steps": 500000,
    "Engine.eval_freq": -1,
    "Optimizer.grad_clip": 0.0,
    "Generation.top_k": 0,
    "Generation.top_p": 1.0,
    "Generation.min_dec_len": 0,
    "Generation.max_dec_len": 20,
}
# A blank is None in ppfleetx, which these keys read as nothing at all.
_BLANK_IN_PPFLEETX: dict[str, tuple[str, str]] = {
    "Optimizer.weight_decay": ("no decay", "0"),
    "Optimizer.grad_clip": ("no clip", "0"),
    "Engine.mix_precision.custom_black_list": ("no list", "[]"),
    "Engine.mix_precision.custom_white_list": ("no list", "[]"),
}
# Two of these make a file in the schema's names FleetX's, if it has none of the others.
_ONLY_IN_FLEETX = (
    "Model.type_vocab_size", "Model.fused_linear", "Fused.tensor_fusion", "Distributed.dp_degree",
    "Inference.model_dir",
)  # fmt: skip
_ONLY_IN_FASTFFN = (
    "Model.ffn.kind", "Engine.save_load.keep_last", "Engine.log_sinks", "Global.cpu_threads",
    "Global.cpu_fast_math", "Global.cpu_kernels", "Fused.low_rank_ffn", "Data.dataset.eos_id",
    "Optimizer.lr.warmup_steps", "Optimizer.recipe",
)  # fmt: skip


def has_section(reading: Reading, section: str) -> bool:
    """Tell whether a file, not an override, says something in a section."""
    node = reading.tree.entries.get(section)
    return isinstance(node, Branch) and any(
        leaf.origin.kind == "file" and leaf.value is not None for _, leaf in node.leaves()
    )


def section_place(reading: Reading, section: str) -> Origin:
    """Return where a section begins."""
    return reading.tree.entries[section].origin


def name_other_defaults(reading: Reading) -> None:
    """Warn of keys that a file of FleetX's leaves out and that FleetX fills in otherwise."""
    defaults = _DEFAULTS_OF_PPFLEETX if reading.is_ppfleetx else _DEFAULTS_OF_2022
    if reading.form == "fastffn":
        marks = sum(reading.from_file(key) for key in _ONLY_IN_FLEETX)
        if marks < 2 or any(reading.origin(key) for key in _ONLY_IN_FASTFFN):
            return
    epochs = reading.seen.get("Engine.run_mode")
    by_epochs = epochs is not None and epochs.leaf.value == "epoch"
    for section in ("Engine", "Model", "Optimizer", "Generation"):
        settled = (section == "Engine" and by_epochs) or reading.origin(f"{section}.recipe")
        if settled or not has_section(reading, section):
            continue
        missing = [
            f"{key.partition('.')[2]} {format_value(value)} (here "
            f"{_shown(leaf_keys()[key].default)})"
            for key, value in defaults.items()
            if key.startswith(section + ".") and not _is_said(reading, key)
        ]
        if missing:
            reading.warnings.append(
                Problem(
                    section_place(reading, section),
                    f"'{section}' leaves out keys for which FleetX has another default: "
                    f"{', '.join(missing)}. Write the ones you mean",
                )
            )


def _is_said(reading: Reading, key: str) -> bool:
    """Whether a key has a value or, in a ppfleetx file, a blank that is told of by itself."""
    if key == "Engine.max_steps" and any(
        move.source.endswith("max_steps") for move in reading.moves
    ):
        return True
    if key == "Engine.mix_precision.use_pure_fp16":
        return any(
            reading.origin(f"Engine.mix_precision.{name}") for name in ("enable", "use_pure_fp16")
        )
    blank = reading.is_ppfleetx and reading.tree.find(tuple(key.split("."))) is not None
    return reading.origin(key) is not None or blank


def _shown(value: Any) -> str:
    return "blank" if value is None else format_value(value)


def name_blanks(reading: Reading) -> None:
    """Warn of blanks that ppfleetx reads as nothing, and that are the default here."""
    if not reading.is_ppfleetx:
        return
    for key, (meaning, word) in _BLANK_IN_PPFLEETX.items():
        node = reading.tree.find(tuple(key.split(".")))
        if isinstance(node, Leaf) and node.value is None and node.origin.kind == "file":
            default = _shown(_plain(leaf_keys()[key].default))
            reading.warnings.append(
                Problem(
                    node.origin,
                    f"{key} is blank, which is {meaning} at ppfleetx and the default {default} "
                    f"here. Type -o '{key}={word}' if you mean the former",
                )
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
