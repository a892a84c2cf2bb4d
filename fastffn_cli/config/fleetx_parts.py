"""Data.Eval and Data.Test of ppfleetx against Data.Train: here one data set has three parts."""

from __future__ import annotations

from typing import Any

from fastffn_cli.config.dialect_reading import Given, Reading, comparable
from fastffn_cli.config.dump import format_value
from fastffn_cli.config.fleetx_keys import PARTS
from fastffn_cli.config.origin import Origin, Problem


def compare_parts(reading: Reading) -> None:
    """Let Eval and Test agree with Train: one folder, split and length serve all parts here."""
    for part in PARTS[1:]:
        name = reading.seen.get(f"Data.{part}.dataset.name")
        text = name is not None and name.leaf.value != "GPTDataset"
        for key in ("input_dir", "split", "max_seq_len", "eos_id"):
            given = reading.seen.get(f"Data.{part}.dataset.{key}")
            if given is None:
                continue
            if text:
                reading.tell(given.source, None, given.leaf, "Offline_Eval decides")
            else:
                _compare_part(reading, part, f"Data.dataset.{key}", given)


def _compare_part(reading: Reading, part: str, target: str, given: Given) -> None:
    origin = reading.origin(target)
    if origin is None:
        if reading.place(target, given.leaf):
            reading.tell(given.source, target, given.leaf)
        return
    mine, theirs = reading.value(target), given.leaf.value
    if comparable(target, mine) == comparable(target, theirs):
        reading.tell(given.source, target, given.leaf, "the same for all parts")
    elif _decides(reading, target, origin, given.leaf.origin):
        reading.tell(given.source, None, given.leaf, f"{origin} decides for all parts")
    else:
        key = target.rpartition(".")[2]
        one = {
            "input_dir": "one folder is read, and its split makes the parts",
            "split": "one split makes all parts",
            "max_seq_len": "the sequences of all parts have one length",
            "eos_id": "all parts end their documents alike",
        }[key]
        text = (
            f"{given.source} is {format_value(theirs)}, and {target} is {format_value(mine)} "
            f"({origin}): {one}"
        )
        if part == "Test":
            reading.warnings.append(
                Problem(given.leaf.origin, f"{text}. The one of Test has no effect")
            )
            reading.tell(given.source, None, given.leaf, f"{target} decides")
            return
        wish = (
            "Put the documents of both into one folder" if key == "input_dir" else "Make them equal"
        )
        fix = f"{wish}, or type -o {target}={_typed(mine)} for both"
        reading.problems.append(Problem(given.leaf.origin, f"{text}. {fix}"))


def _decides(reading: Reading, target: str, origin: Origin, below: Origin) -> bool:
    """Whether a value for all parts, not for Train alone, covers the layer of another part's."""
    for_train = reading.decided.get(target, target) != target
    return not for_train and reading.ranks(origin) > reading.ranks(below)


def _typed(value: Any) -> str:
    """Return a value as a shell takes it without quotes: a split is 949,50,1."""
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return format_value(value)
