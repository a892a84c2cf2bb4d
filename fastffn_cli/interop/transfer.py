"""A conversion from end to end: open whatever it is, change the feed-forwards, write what is asked.

Where the kind of feed-forward stays, values only change names and places, and pass through the
memory tensor by tensor. Where it changes, the model is built, to prove the change on tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastffn_cli.config.ffn import FFN_KINDS
from fastffn_cli.engine.checkpoint import (
    Checkpoint,
    build_loaded,
    read_checkpoint,
    write_checkpoint,
)
from fastffn_cli.engine.conversion import convert_model, default_out_dir, refuse_existing
from fastffn_cli.engine.find import find_checkpoint, holds_native
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import UserError
from fastffn_cli.interop.reading import ForeignCheckpoint, read_foreign
from fastffn_cli.interop.registry import NATIVE, find_system
from fastffn_cli.interop.writing import write_foreign

if TYPE_CHECKING:
    from fastffn_cli.data.tokenizer import Tokenizer
    from fastffn_cli.engine.conversion import Conversion
    from fastffn_cli.tasks.task import TaskFactory


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user asked for.

    `kind` is that of the feed-forwards to make, `options` its options by name, None where nothing
    was said; `source_system`
    is `auto`, `native` or a name of the registry, `target_system` `native` or such a name; `config`
    and `overrides` are what the user says about another system's model; `tokenizer` is a SPEC.
    """

    path: Path | None
    out_dir: Path | None
    kind: str
    options: Mapping[str, int | None]
    source_system: str
    target_system: str
    config: str | None
    overrides: Sequence[str]
    tokenizer: str | None
    tolerance: float
    dtype: str


@dataclass(frozen=True)
class Plan:
    """A wish with everything found out that can be without reading a value.

    `spec` is the feed-forward to make, or None where it stays. `warnings` are probably mistakes,
    `remarks` are good to know.
    """

    wish: Wish
    source: Checkpoint
    out_dir: Path
    spec: dict[str, Any] | None
    tokenizer: Tokenizer | None
    warnings: list[str]
    remarks: list[str]


@dataclass(frozen=True)
class Outcome:
    """The conversion (None where values were only moved) and remarks on the written files."""

    conversion: Conversion | None
    remarks: list[str]


def plan_transfer(wish: Wish) -> Plan:
    """Open the source, read its headers and check that the wish makes sense.

    Raises the `UserError` of whatever is missing, damaged, contradictory or there already.
    """
    if wish.target_system != NATIVE:
        find_system(wish.target_system)
    path, foreign = _find_source(wish)
    out_dir = wish.out_dir or default_out_dir(
        path, wish.kind, None if wish.target_system == NATIVE else wish.target_system, foreign
    )
    refuse_existing(out_dir)
    source = _open_source(wish, path, foreign)
    warnings: list[str] = []
    remarks = [] if path == wish.path else [f"converting {path}"]
    if isinstance(source, ForeignCheckpoint):
        warnings = source.warnings
        remarks += [f"{path} is a checkpoint of {source.opened.title}", *source.notices]
    spec = _choose_spec(wish, source)
    if spec is None and not foreign and wish.target_system == NATIVE:
        raise UserError(f"{path} is of kind '{source.ffn_kind}' already")
    tokenizer = _choose_tokenizer(wish, source, warnings)
    return Plan(wish, source, out_dir, spec, tokenizer, warnings, remarks)


def run_transfer(plan: Plan, make_task: TaskFactory) -> Outcome:
    """Convert and write.

    Raises `MergeCheckFailed`, before anything is written, when a merge is not exact.
    """
    wish, source = plan.wish, plan.source
    result, config, trainer = None, source.config, source.trainer
    weights: Mapping[str, StoredTensor] = {}
    if plan.spec is None:
        weights = source.weights()
    else:
        result = convert_model(
            build_loaded(source),
            plan.spec,
            make_task,
            tolerance=wish.tolerance,
            dtype=wish.dtype,
        )
        config, trainer = result.config, result.trainer
        weights = result.tensors
    if wish.target_system == NATIVE:
        write_checkpoint(
            plan.out_dir,
            config=config,
            trainer=trainer,
            tensors=weights,
            tokenizer=plan.tokenizer,
        )
        return Outcome(result, [])
    remarks = write_foreign(
        plan.out_dir,
        wish.target_system,
        config=config,
        weights=weights,
        step=source.step,
        tokenizer=plan.tokenizer,
    )
    return Outcome(result, remarks)


def _find_source(wish: Wish) -> tuple[Path, bool]:
    """Return the checkpoint that is meant, and whether it is another system's."""
    name, path = wish.source_system, wish.path
    if path is None and name not in ("auto", NATIVE):
        raise UserError(
            f"--from {name} needs the path of the checkpoint",
            hint=f"Type: fastffn convert PATH --from {name}",
        )
    if path is not None and name not in ("auto", NATIVE):
        return path, True
    if path is not None and name == "auto" and not holds_native(path):
        return path, True
    native = wish.target_system == NATIVE
    found = find_checkpoint(
        path,
        low_rank=native and wish.kind == "dense",
        dense=native and wish.kind != "dense",
        action="convert",
    )
    return found, False


def _open_source(wish: Wish, path: Path, foreign: bool) -> Checkpoint:
    if foreign:
        return read_foreign(path, wish.source_system, wish.config, wish.overrides)
    if wish.config is not None or wish.overrides:
        raise UserError(
            f"-c and -o are for other systems' checkpoints; {path} tells its configuration itself"
        )
    return read_checkpoint(path)


def _choose_spec(wish: Wish, source: Checkpoint) -> dict[str, Any] | None:
    """Return the feed-forward to make, or None where it stays what it is."""
    kind, had = source.ffn_kind, source.config.Model.ffn.model_dump()
    given = {name: value for name, value in wish.options.items() if value is not None}
    strange = [name for name in given if name not in FFN_KINDS[wish.kind].model_fields]
    if strange:
        raise UserError(f"--{strange[0]} is no option of the kind '{wish.kind}'")
    if kind != wish.kind or (kind == "dense" and not source.config.Model.is_dense):
        return {"kind": wish.kind, **given}
    other = [name for name, value in given.items() if had[name] != value]
    if other:
        raise UserError(
            f"{source.path} is of kind '{kind}' with {other[0]} {had[other[0]]}, not "
            f"{given[other[0]]}",
            hint=f"Make it dense first, then: fastffn convert DENSE --to {kind} "
            f"--{other[0]} {given[other[0]]}",
        )
    return None


def _choose_tokenizer(wish: Wish, source: Checkpoint, warnings: list[str]) -> Tokenizer | None:
    """Take the one that was named, or else the source's own; it must fit the vocabulary.

    Models whose tokenizer got more tokens than the table has rows are common elsewhere. Such a
    tokenizer is left behind with a warning, as its ids would be refused wherever it is used.
    """
    from fastffn_cli.data.tokenizer import build_tokenizer

    own = wish.tokenizer is None
    chosen = source.tokenizer() if own else build_tokenizer(str(wish.tokenizer))
    rows = source.config.Model.vocab_size
    if chosen is None or rows is None or chosen.vocab_size <= rows:
        return chosen
    text = f"the tokenizer {chosen.name} has {chosen.vocab_size:,} ids, {source.path} has {rows:,}"
    if not own:
        raise UserError(f"{text}: they do not belong together")
    warnings.append(f"{text}: it is left behind (--tokenizer SPEC names one that fits)")
    return None
