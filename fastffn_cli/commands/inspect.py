"""`fastffn inspect`: look into a run, a checkpoint or a data folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import JsonOption
from fastffn_cli.errors import UserError


def run(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A run, a checkpoint (fastffn's or another system's), a prepared data folder or "
            "a MindRecord.",
        ),
    ],
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw a run's losses into this picture."),
    ] = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", metavar="", help="List every tensor of a checkpoint.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look into a run (summary and plot), a checkpoint (tensors, ranks) or a data folder.

    Checkpoints of FleetX, Hugging Face and MindSpore are shown as they are named there.

    **Examples**

    `fastffn inspect output`

    `fastffn inspect output/checkpoints/step-00000100 --tensors`

    `fastffn inspect data/book --json`

    `fastffn inspect GPT_345M/model.pdparams --tensors`
    """
    kind = _find_kind(path)
    for option, given, wanted in (("--plot", plot, "run"), ("--tensors", tensors, "checkpoint")):
        if given and wanted not in kind:
            raise UserError(f"{option} is for a {wanted}, and {path} is a {kind}")
    {
        "run": _inspect_run,
        "checkpoint": _inspect_checkpoint,
        "data folder": _inspect_data,
        "foreign checkpoint": _inspect_foreign,
        "MindRecord": _inspect_mindrecord,
    }[kind](path, plot, tensors, as_json)


def _find_kind(path: Path) -> str:
    from fastffn_cli.engine.checkpoint import TRAINER_FILE
    from fastffn_cli.engine.run import holds_run
    from fastffn_cli.engine.storage import MANIFEST
    from fastffn_cli.interop.mindrecord import looks_like_mindrecord
    from fastffn_cli.interop.registry import recognise
    from fastffn_cli.interop.sniff import seems_to_be

    if path.is_dir():
        if any((path / name).exists() for name in (TRAINER_FILE, MANIFEST)):
            return "checkpoint"
        if holds_run(path):
            return "run"
        if any(path.glob("*_ids.npy")) or any(path.glob("*_idx.npz")):
            return "data folder"
    elif path.name.endswith("_ids.npy") or path.with_name(f"{path.name}_ids.npy").exists():
        return "data folder"
    if looks_like_mindrecord(path):
        return "MindRecord"
    if path.exists() and recognise(path) is not None:
        return "foreign checkpoint"
    state = f"is none of these: it is {seems_to_be(path)}" if path.exists() else "does not exist"
    raise UserError(
        f"{path} {state}",
        hint="PATH is a run folder (with metrics.jsonl), a checkpoint folder (with "
        "manifest.json), what `fastffn prepare` wrote (NAME_ids.npy), a MindRecord, or a "
        "checkpoint of FleetX, Hugging Face or MindSpore",
    )


def _inspect_run(path: Path, plot: Path | None, tensors: bool, as_json: bool) -> None:
    from fastffn_cli.engine.inspect_run import describe_run, loss_curves
    from fastffn_cli.engine.terminal_plot import draw_curves

    described = describe_run(path)
    curves = loss_curves(path)
    if plot is not None:
        _save_plot(curves, plot, path.name)
    if as_json:
        ui.data_json(described)
        return
    _show(_run_rows(described))
    lines = draw_curves(curves, ascii_only=(sys.stdout.encoding or "").lower() != "utf-8")
    for line in ["", *lines]:
        ui.data(line)


def _save_plot(curves: dict[str, list[tuple[int, float]]], file: Path, title: str) -> None:
    from fastffn_cli.engine.plot import plot_losses

    if file.suffix.lower() != ".png":
        raise UserError(f"--plot {file}: only PNG is drawn", hint=f"Type: --plot {file.stem}.png")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--plot {file}: there is no folder {file.absolute().parent}")
    plot_losses(curves, file, title=title)
    ui.say(f"drew {file}")


def _run_rows(run: dict[str, Any]) -> list[tuple[str, str]]:
    from fastffn_cli.config.ffn import describe_approximations

    planned = run["planned_steps"]
    rows = [
        ("run", f"{run['path']} ({run['stage'] or 'stage unknown'}, {run['state']})"),
        ("model", _model_text(run)),
        *(
            ("switch", f"step {each['step']:,}: {describe_approximations(each)} ({each['reason']})")
            for each in run["switches"]
        ),
        ("device", run["device"] or "unknown"),
        *_layout_rows(run),
        ("steps", f"{run['steps']:,} of {planned:,}" if planned else f"{run['steps']:,}"),
        ("tokens", f"{run['tokens']:,}"),
    ]
    if run["loss"] is not None:
        best = run["best_loss"]
        rows.append(("loss", f"{run['loss']:.4f}, best {best['loss']:.4f} at step {best['step']}"))
    if run["eval"]:
        last, best = run["eval"][-1], run["best_eval"]
        ppl = f", perplexity {last['ppl']:.2f}" if last.get("ppl") is not None else ""
        text = f"{last['loss']:.4f} at step {last['step']}{ppl}"
        rows.append(("validation", f"{text}; best {best['loss']:.4f} at step {best['step']}"))
    speed = run["tokens_per_s"]
    rows.append(("speed", f"{speed:,.0f} tokens/s (median)" if speed else "not known yet"))
    starts = f" in {run['processes']} starts" if run["processes"] > 1 else ""
    rows.append(("time", f"{ui.duration(run['wall_s'])}{starts}"))
    for saved in run["checkpoints"]:
        state = f"DAMAGED: {saved['damage']}" if saved["damage"] else ui.size(saved["bytes"])
        rows.append(("checkpoint", f"{saved['name']}  {state}"))
    return rows


def _layout_rows(run: dict[str, Any]) -> list[tuple[str, str]]:
    """Say in how many processes a run was trained; nothing of one."""
    if run["cards"] == 1:
        return []
    layout = f": {run['layout']}" if run["layout"] else ""
    return [("layout", f"{run['cards']} processes{layout}")]


def _model_text(described: dict[str, Any]) -> str:
    from fastffn_cli.config.ffn import describe_approximations

    model = described["model"]
    heads = model["num_attention_heads"] or "unknown number of"
    return (
        f"GPT {model['num_layers']} layers x {model['hidden_size']}, "
        f"{heads} heads, vocabulary {model['vocab_size']:,}, "
        f"{describe_approximations(described)}"
    )


def _inspect_checkpoint(path: Path, plot: Path | None, tensors: bool, as_json: bool) -> None:
    from fastffn_cli.engine.inspect_checkpoint import describe_checkpoint

    described = describe_checkpoint(path)
    _show_checkpoint(described, _checkpoint_rows, tensors, as_json)


def _show_checkpoint(
    described: dict[str, Any],
    rows_of: Callable[[dict[str, Any]], list[tuple[str, str]]],
    tensors: bool,
    as_json: bool,
) -> None:
    listed: list[dict[str, Any]] = described["tensors"]
    if as_json:
        ui.data_json(described if tensors else {**described, "tensors": len(listed)})
        return
    _show(rows_of(described))
    if not tensors:
        return
    width = max((len(tensor["name"]) for tensor in listed), default=0)
    ui.data("")
    for tensor in listed:
        ui.data(f"{tensor['name']:<{width}}  {tensor['dtype']:<9} {tensor['shape']}")


def _inspect_foreign(path: Path, plot: Path | None, tensors: bool, as_json: bool) -> None:
    from fastffn_cli.interop.describe import describe_foreign

    described = describe_foreign(path)
    _show_checkpoint(described, _foreign_rows, tensors, as_json)
    if not as_json:
        ui.say(f"next: {shlex.join(['fastffn', 'convert', str(path)])}")


def _inspect_mindrecord(path: Path, plot: Path | None, tensors: bool, as_json: bool) -> None:
    from fastffn_cli.interop.describe import describe_mindrecord

    record = describe_mindrecord(path)
    if as_json:
        ui.data_json(record)
        return
    lengths = f"{record['shortest']:,} to {record['longest']:,}" if record["rows"] else "no"
    _show(
        [
            ("MindRecord", f"{record['path']} ({ui.size(record['bytes'])})"),
            ("column", record["column"]),
            ("rows", f"{record['rows']:,} of {lengths} ids"),
            ("tokens", f"{record['tokens']:,}, largest id {record['largest_id']:,}"),
            ("first row", " ".join(map(str, record["first"]))),
        ]
    )
    ui.say(f"next: fastffn prepare {shlex.quote(str(path))} --out DIR")


def _foreign_rows(checkpoint: dict[str, Any]) -> list[tuple[str, str]]:
    types = ", ".join(f"{count} {dtype}" for dtype, count in checkpoint["dtypes"].items())
    rows = [
        ("checkpoint", f"{checkpoint['path']} ({checkpoint['title']})"),
        ("step", f"{checkpoint['step']:,}" if checkpoint["step"] else "unknown"),
        ("model", _model_text(checkpoint)),
        ("parameters", f"{checkpoint['parameters']:,} in {len(checkpoint['tensors'])} tensors"),
        ("types", types),
        ("tokenizer", checkpoint["tokenizer"] or "none"),
    ]
    if checkpoint["ignored"]:
        rows.append(("ignored", f"{checkpoint['ignored']} entries that are no weights"))
    rows += [("notice", text) for text in checkpoint["notices"]]
    return rows


def _checkpoint_rows(checkpoint: dict[str, Any]) -> list[tuple[str, str]]:
    planned, loss, tokens = (checkpoint[key] for key in ("planned_steps", "loss", "tokens"))
    step = f"{checkpoint['step']:,}" + (f" of {planned:,}" if planned else "")
    rows = [
        ("checkpoint", f"{checkpoint['path']} ({checkpoint['stage'] or 'stage unknown'})"),
        ("step", step + (f", {tokens:,} tokens" if tokens is not None else "")),
        ("model", _model_text(checkpoint)),
        ("parameters", f"{checkpoint['parameters']:,} in {len(checkpoint['tensors'])} tensors"),
    ]
    if loss is not None:
        rows.insert(2, ("loss", f"{loss:.4f}"))
    for layer in checkpoint["layers"]:
        ranks = f", ranks {' and '.join(map(str, layer['ranks']))}" if layer["ranks"] else ""
        text = f"{layer['kind']}{ranks}, {layer['parameters']:,} parameters"
        rows.append((f"ffn {layer['layer']}", text))
    rows.append(("optimizer", f"{checkpoint['optimizer']} tensors"))
    rows.append(("tokenizer", checkpoint["tokenizer"] or "none"))
    total = ui.size(sum(checkpoint["files"].values()))
    rows.append(("files", f"{len(checkpoint['files'])} ({total}), whole: {checkpoint['verified']}"))
    return rows


def _inspect_data(path: Path, plot: Path | None, tensors: bool, as_json: bool) -> None:
    from fastffn_cli.data.describe import describe_tokens

    described = {"kind": "data", **describe_tokens(path)}
    if as_json:
        ui.data_json(described)
        return
    _show(_data_rows(described))
    for row in described["rows"]:
        ui.data(f"\ndocument {row['document']} ({row['tokens']:,} tokens)")
        ui.data(f"  ids   {' '.join(map(str, row['ids']))}")
        if row["text"] is not None:
            ui.data(f"  text  {row['text']!r}")


def _data_rows(data: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("data", data["path"]),
        ("tokens", f"{data['tokens']:,} in {data['documents']:,} documents"),
        ("tokenizer", data["tokenizer"] or "none (token ids only)"),
        ("vocabulary", f"{_count(data['vocab_size'])}, largest id used {data['largest_id']:,}"),
        ("end of text", _count(data["eos_id"])),
    ]
    if data["utf8_bytes"]:
        rows.append(("text", f"{data['utf8_bytes']:,} bytes of UTF-8"))
    for file in data["files"]:
        text = (
            f"{file['dtype']}, {file['tokens']:,} tokens, {ui.size(file['bytes'])}, documents of "
            f"{file['mean_document']:,.1f} tokens on average, {file['longest_document']:,} at most"
        )
        rows.append((file["name"], text))
    split = data["split"]
    parts = ", ".join(
        f"{part} {split[part]['tokens']:,} tokens" for part in ("train", "valid", "test")
    )
    rows.append(("split", f"{split['weights']} by {split['divided_by']}: {parts}"))
    return rows


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _show(rows: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        ui.data(f"{label:<{width}}  {value}")
