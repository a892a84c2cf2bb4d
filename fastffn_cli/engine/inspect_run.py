"""What a run folder tells about itself, from its own files alone: no paddle, no device."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from fastffn_cli.config.load import parse_config_file
from fastffn_cli.engine import storage
from fastffn_cli.engine.find import CHECKPOINTS_DIR
from fastffn_cli.engine.run import read_metrics, series
from fastffn_cli.errors import CheckpointError

BEGINNINGS = ("start", "resume")


def describe_run(run_dir: Path) -> dict[str, Any]:
    """Describe a run as plain JSON values.

    Keys: kind, path, model, ffn, attention_rank, embedding_rank, switches (step, reason and the
    parts of the model from there, of each change of stage), stage, state (finished,
    unfinished, diverged or begun), steps, planned_steps, tokens, loss, best_loss, eval (list of
    step, loss, ppl, ...), best_eval, tokens_per_s (median over the logged steps, None before the
    second), wall_s (all starts of the run together), processes (how often it was started or
    resumed), cards (processes side by side, at the last start) and their layout, checkpoints
    (name, step, bytes, damage), device. Raises `CheckpointError` where nothing was recorded yet.
    """
    records = read_metrics(run_dir)
    if not records:
        raise CheckpointError(f"{run_dir} is a run folder, but nothing is recorded in it yet")
    begun = _last(records, BEGINNINGS)
    losses = series(records, "train", "loss")
    speeds = [value for _, value in series(records, "train", "tokens_per_s")]
    tokens = series(records, "train", "tokens")
    evaluations = _evaluations(records)
    return {
        "kind": "run",
        "path": str(run_dir),
        **_configured(run_dir),
        "switches": _switches(records),
        "stage": begun.get("stage"),
        "state": _state(records, losses, begun.get("max_steps")),
        "steps": losses[-1][0] if losses else 0,
        "planned_steps": begun.get("max_steps"),
        "tokens": int(tokens[-1][1]) if tokens else 0,
        "loss": losses[-1][1] if losses else None,
        "best_loss": _best(losses),
        "eval": evaluations,
        "best_eval": _best([(each["step"], each["loss"]) for each in evaluations]),
        "tokens_per_s": statistics.median(speeds) if speeds else None,
        "wall_s": _wall_seconds(records),
        "processes": sum(record.get("event") in BEGINNINGS for record in records),
        "cards": begun.get("processes", 1),
        "layout": begun.get("layout"),
        "checkpoints": _checkpoints(run_dir),
        "device": begun.get("device"),
    }


def loss_curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the run's curves of (step, loss): `train`, and `valid` where it was evaluated."""
    records = read_metrics(run_dir)
    curves = {
        "train": series(records, "train", "loss"),
        "valid": series(records, "eval", "loss"),
    }
    return {name: points for name, points in curves.items() if points}


def _configured(run_dir: Path) -> dict[str, Any]:
    config = parse_config_file(run_dir / "config.yaml")
    model = config.Model
    sizes = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size")
    return {
        "model": {name: getattr(model, name) for name in sizes},
        **model.approximations,
    }


def _last(records: list[dict[str, Any]], events: tuple[str, ...]) -> dict[str, Any]:
    found = [record for record in records if record.get("event") in events]
    return found[-1] if found else {}


def _state(
    records: list[dict[str, Any]], losses: list[tuple[int, float]], planned: int | None
) -> str:
    last = _last(records, (*BEGINNINGS, "train", "end", "diverged"))
    if last.get("event") in ("end", "diverged"):
        return "finished" if last["event"] == "end" else "diverged"
    if not losses:
        return "begun"
    # Between two steps a living run looks like a stopped one: only the planned end is certain.
    return "finished" if planned is not None and losses[-1][0] >= planned else "unfinished"


def _switches(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the changes of stage; of one that a resumed run made again, the last."""
    made = {record["step"]: record for record in records if record.get("event") == "switch"}
    return [
        {"step": step, "reason": made[step].get("reason"), **made[step].get("after", {})}
        for step in sorted(made)
    ]


def _best(points: list[tuple[int, float]]) -> dict[str, Any] | None:
    if not points:
        return None
    step, loss = min(points, key=lambda point: point[1])
    return {"step": step, "loss": loss}


def _evaluations(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step = {
        int(record["step"]): {
            key: value for key, value in record.items() if key not in ("event", "time")
        }
        for record in records
        if record.get("event") == "eval" and record.get("loss") is not None
    }
    return [by_step[step] for step in sorted(by_step)]


def _wall_seconds(records: list[dict[str, Any]]) -> float:
    """Sum, over the processes of the run, the time from its first record to its last."""
    total = 0.0
    first: float | None = None
    last = 0.0
    for record in records:
        moment = record.get("time")
        if moment is None:
            continue
        if first is None or record.get("event") in BEGINNINGS:
            total += last - first if first is not None else 0.0
            first = moment
        last = moment
    return round(total + (last - first if first is not None else 0.0), 3)


def _checkpoints(run_dir: Path) -> list[dict[str, Any]]:
    return [
        {
            "name": folder.name,
            "step": int(folder.name.removeprefix("step-")),
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "damage": storage.damage(folder),
        }
        for folder in sorted((run_dir / CHECKPOINTS_DIR).glob("step-*"))
        if folder.name.removeprefix("step-").isdigit()
    ]
