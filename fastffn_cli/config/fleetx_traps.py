"""What a FleetX file means beyond its keys: values that depend on each other, and known traps.

Each function looks at a `Reading` whose tree is in the schema's names already; it changes values
only where FleetX's own code does. Sources: `examples/gpt/gpt_config.py` of August 2022 and
`ppfleetx/` of August 2023.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastffn_cli.config.dialect_reading import Reading
from fastffn_cli.config.fleetx_defaults import (
    has_section,
    name_blanks,
    name_other_defaults,
    section_place,
)
from fastffn_cli.config.fleetx_parts import compare_parts
from fastffn_cli.config.fleetx_values import COSINE, LINEAR
from fastffn_cli.config.keys import leaf_keys
from fastffn_cli.config.origin import Problem
from fastffn_cli.config.yaml_tree import Leaf

_VOCABULARY = "Model.vocab_size"
_UNIT = "Model.vocab_size_divisible_unit"
_LR = "Optimizer.lr."
_PPFLEETX_UNIT = 128


def find_traps(reading: Reading) -> None:
    """Complete the values of a file of FleetX's, and add its problems, warnings and remarks."""
    for look in (
        compare_parts, _pad_vocabulary, _draw_line, _count_epochs, _derive_accumulation,
        _check_quantization, name_other_defaults, name_blanks, _name_evaluation_traps,
        _explain_schedule, _explain_engine, _explain_numbers,
    ):  # fmt: skip
        look(reading)


def find_index_caches(input_dir: str | None) -> str | None:
    """Return a notice about FleetX's index files beside the data, if there are any."""
    if input_dir is None:
        return None
    try:
        with os.scandir(Path(input_dir).expanduser()) as entries:
            count = sum(
                re.search(r"_gpt_\w+_indexmap_.*\.npy$", entry.name) is not None
                for entry in entries
            )
    except OSError:
        return None
    if not count:
        return None
    return (
        f"{input_dir} holds {count} index file{'s' if count > 1 else ''} of FleetX's "
        "(*_gpt_*_indexmap_*.npy), which are not read: the order of the samples follows from split "
        "and seed, which these files ignore"
    )


# --- model ---------------------------------------------------------------------------------------


def _pad_vocabulary(reading: Reading) -> None:
    """Pad vocab_size to a multiple of unit times mp_degree, as ppfleetx's checkpoints have it."""
    given = reading.seen.get(_UNIT)
    if given is None and not reading.is_ppfleetx:
        return
    unit = given.leaf.value if given else _PPFLEETX_UNIT
    degree = _whole(reading.value("Distributed.mp_degree")) or 1
    rows, origin = _whole(reading.value(_VOCABULARY)), reading.origin(_VOCABULARY)
    if rows is None or origin is None:
        if origin is None:
            _warn_of_blank_vocabulary(reading, unit * degree)
        if given is not None:
            reading.tell(given.source, None, given.leaf, "vocab_size has no number")
        return
    padded = _padded(rows, unit * degree)
    times = f"{unit} x mp_degree {degree}" if degree > 1 else f"{unit}"
    if given is None:
        if padded != rows:
            text = (
                f"vocab_size {rows}: ppfleetx of 2023 pads it to {padded} without being asked, "
                f"here it stays. Type -o Model.vocab_size={padded} for checkpoints that have these "
                "rows"
            )
            reading.warnings.append(Problem(origin, text))
        return
    if padded == rows:
        why = f"{rows} is a multiple of {times} already"
    else:
        reading.place(_VOCABULARY, Leaf(padded, origin))
        why = f"{rows} rows are padded to {padded}, a multiple of {times}, as ppfleetx does"
    reading.tell(given.source, _VOCABULARY, Leaf(padded, given.leaf.origin), why)


def _warn_of_blank_vocabulary(reading: Reading, multiple: int) -> None:
    given = reading.seen.get(_UNIT)
    if given is None and not has_section(reading, "Model"):
        return
    text = (
        f"vocab_size is blank: ppfleetx takes the tokenizer's and pads it to a multiple of "
        f"{multiple}, here it is the tokenizer's own. Type "
        f"-o Model.vocab_size={_padded(50257, multiple)} for checkpoints of GPT-2's vocabulary"
    )
    place = given.leaf.origin if given else section_place(reading, "Model")
    reading.warnings.append(Problem(place, text))


def _whole(value: Any) -> int | None:
    """Return a positive whole number, also one written as 5e4; None for everything else."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value > 0 else None


def _padded(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple


def _check_quantization(reading: Reading) -> None:
    """Refuse the section of August 2022 without `enable`: there it meant that it is on."""
    keys = [path for path in reading.seen if path.startswith("Quantization.")]
    if keys and "Quantization.enable" not in reading.seen:
        reading.problems.append(
            Problem(
                reading.seen[keys[0]].leaf.origin,
                "section 'Quantization' without enable is quantised training at FleetX, which is "
                "not in this version: remove the section, or type -o Quantization.enable=false",
            )
        )


# --- schedule ------------------------------------------------------------------------------------


def _draw_line(reading: Reading) -> None:
    """Take LinearDecayWithWarmup where it is a straight line to 0, which is without warm-up.

    ppfleetx computes learning_rate * t / w up to w, then learning_rate * (1 - t / T): behind a
    warm-up that is a jump. Here a line starts from max_lr at the end of the warm-up.
    """
    name = reading.seen.get(_LR + "name")
    if name is None or name.leaf.value != LINEAR:
        return
    if reading.value(_LR + "warmup_steps") or reading.value(_LR + "warmup_rate"):
        reading.problems.append(
            Problem(
                name.leaf.origin,
                f"{name.source} {LINEAR} jumps at the end of its warm-up to the line from "
                "learning_rate at step 0 to 0, and here a line starts at max_lr. Type "
                "-o Optimizer.lr.name=linear -o Optimizer.lr.min_lr=0 for that",
            )
        )
        return
    left_out = ["min_lr"] if reading.value(_LR + "warmup_steps") == 0 else ["min_lr", "warmup_rate"]
    for key in left_out:
        if reading.value(_LR + key) is None:
            reading.place(_LR + key, Leaf(0.0, name.leaf.origin))
    reading.explain(_LR + "name", "a straight line from max_lr to 0, there is no warm-up")


def _explain_schedule(reading: Reading) -> None:
    name = reading.seen.get(_LR + "name")
    if name is None or name.leaf.value != COSINE:
        return
    reading.explain(
        _LR + "name",
        "the same formula one step ahead: ppfleetx makes its first update with learning rate 0, "
        "here it is max_lr / warm-up steps",
    )
    increments = reading.seen.get(_LR + "use_increments")
    if reading.is_ppfleetx and (increments is None or increments.leaf.value is not True):
        reading.warnings.append(
            Problem(
                increments.leaf.origin if increments else name.leaf.origin,
                "without lr.use_increments: true, ppfleetx of 2023 keeps the learning rate at 0 "
                "for ever. Here it follows the schedule, and decay_steps counts optimizer steps",
            )
        )


# --- length of the run ---------------------------------------------------------------------------


def _count_epochs(reading: Reading) -> None:
    """Let num_train_epochs decide in `run_mode: epoch`, where evaluation counts epochs, too."""
    mode = reading.seen.get("Engine.run_mode")
    if mode is None:
        return
    if mode.leaf.value == "step":
        reading.tell(mode.source, None, mode.leaf, "steps decide in any case")
        return
    reading.tell(mode.source, "Engine.num_train_epochs", mode.leaf, "epochs decide the length")
    if reading.from_file("Engine.max_steps"):
        reading.drop("Engine.max_steps", "num_train_epochs decides in run_mode epoch")
    if reading.from_file("Engine.eval_freq"):
        origin, freq = reading.origin("Engine.eval_freq"), reading.value("Engine.eval_freq")
        assert origin is not None
        reading.drop("Engine.eval_freq", "it counts epochs in run_mode epoch")
        default = leaf_keys()["Engine.eval_freq"].default
        reading.warnings.append(
            Problem(
                origin,
                f"eval_freq {freq} counts epochs in run_mode epoch; here it counts steps, and "
                f"{default} (default) is taken. Type -o Engine.eval_freq=STEPS",
            )
        )


def _derive_accumulation(reading: Reading) -> None:
    """Forget a file's accumulate_steps: FleetX overwrites it with the ratio of the batches."""
    key = "Engine.accumulate_steps"
    if reading.form != "fastffn" and reading.from_file(key):
        reading.drop(key, "it is local_batch_size / micro_batch_size, at FleetX as well")


def _explain_engine(reading: Reading) -> None:
    """Say where the keys of the length, of saving and of evaluation differ in their meaning."""
    if reading.form == "fastffn":
        return
    remarks: list[tuple[str, Callable[[Any], bool], str]] = [
        ("Engine.eval_freq", _below_one, "no evaluation in the loop, as there"),
        ("Engine.save_load.save_steps", _below_one, "one checkpoint, at the end of the run"),
        (
            "Engine.save_load.ckpt_dir",
            _is_text,
            "weights to start from; where FleetX resumes a run, type --resume",
        ),
    ]
    if reading.is_ppfleetx:
        why = "this many updates; ppfleetx makes one more"
        remarks.append(("Engine.max_steps", lambda value: not _below_one(value), why))
    for key, asks, why in remarks:
        value = reading.value(key)
        if reading.from_file(key) and asks(value):
            reading.explain(key, why)


def _below_one(value: Any) -> bool:
    return type(value) in (int, float) and value < 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _explain_numbers(reading: Reading) -> None:
    """Name the numbers that PyYAML, and so FleetX, reads as text."""
    if reading.form == "fastffn":
        return
    for path, leaf in reading.tree.leaves():
        if leaf.text_in_yaml_1_1 and leaf.origin.kind == "file" and path[0] != "notes":
            reading.explain(
                ".".join(path),
                "a number; PyYAML, and FleetX with it, reads one without point or sign as text "
                "(1.0e-8 is a number there)",
            )


# --- evaluation ----------------------------------------------------------------------------------


def _name_evaluation_traps(reading: Reading) -> None:
    module = reading.seen.get("Model.module")
    masked = reading.seen.get("Model.fused_softmax_with_triangular")
    evaluates = module is not None and module.leaf.value == "GPTEvalModule"
    if masked is not None and masked.leaf.value is True and evaluates:
        reading.warnings.append(
            Problem(
                masked.leaf.origin,
                "with fused_softmax_with_triangular, ppfleetx evaluates on CUDA without its causal "
                "mask: compare no perplexity measured so with one of fastffn eval",
            )
        )
    weights, origin = (
        reading.value("Offline_Eval.ckpt_dir"),
        reading.origin("Offline_Eval.ckpt_dir"),
    )
    if isinstance(weights, str) and weights.endswith(".pdparams") and origin is not None:
        reading.warnings.append(
            Problem(
                origin,
                f"ckpt_dir {weights} is a file of weights, which the command line names here: "
                f"fastffn convert {weights} -c FILE, then fastffn eval. float16 becomes float32, "
                "where FleetX's run_eval.py stops",
            )
        )
