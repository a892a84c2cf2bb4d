"""`fastffn prepare`: text, or MindRecord files, to token files."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import JsonOption


def run(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="Text: .txt (one document a file) and .jsonl (one a line), also .gz; or "
            "MindRecord files; or folders of either.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to make; never overwritten.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="SPEC",
            help="bytes; train:N (byte-level BPE of N ids, trained on INPUT); a tokenizer.json; "
            "or a folder with tokenizer.json or GPT-2's vocabulary and merges. For MindRecord: the "
            "one that made the ids.",
            show_default="train:8000; none for MindRecord",
        ),
    ] = None,
    json_key: Annotated[
        str,
        typer.Option("--json-key", metavar="KEY", help="Where the text is in a line of .jsonl."),
    ] = "text",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="Threads that encode.", show_default="all cores"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Files are NAME_ids.npy and NAME_idx.npz.",
            show_default="the name of --out",
        ),
    ] = None,
    eos_token: Annotated[
        str | None,
        typer.Option(
            "--eos-token",
            metavar="TOKEN",
            help="The tokenizer's end-of-text token.",
            show_default="found by itself",
        ),
    ] = None,
    eos_id: Annotated[
        int | None,
        typer.Option(
            "--eos-id",
            metavar="N",
            min=0,
            help="MindRecord only: id of end-of-text, where documents end.",
            show_default="the tokenizer's; 50256 if it is the largest",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn text into token files for training.

    Every document ends with the end-of-text token. The files are FleetX's (NAME_ids.npy,
    NAME_idx.npz), with the tokenizer and meta.json beside them. MindSpore's MindRecord files hold
    token ids already (a column text or input_ids): their rows are put one behind the other.

    **Examples**

    `fastffn prepare novel.txt --out data/novel --tokenizer train:8000`

    `fastffn prepare corpus/ more.jsonl.gz --out data/corpus --tokenizer gpt2/ --workers 8`

    `fastffn prepare tiny.txt --out data/tiny --tokenizer bytes --json`

    `fastffn prepare wiki.mindrecord --out data/wiki --tokenizer gpt2/`
    """
    from fastffn_cli.data.prepare import Request, prepare
    from fastffn_cli.engine.cpu import usable_cores

    started = time.monotonic()
    meta = prepare(
        Request(
            inputs=tuple(inputs),
            out_dir=out,
            tokenizer=tokenizer,
            json_key=json_key,
            name=name,
            workers=workers or usable_cores(),
            eos_token=eos_token,
            eos_id=eos_id,
        )
    )
    ui.card(f"prepared {out}", _describe(meta, out, time.monotonic() - started))
    if as_json:
        ui.data_json(meta)


def _describe(meta: dict[str, Any], out: Path, seconds: float) -> list[tuple[str, str]]:
    size = sum(source["bytes"] for source in meta["sources"])
    files = len(meta["sources"])
    speed = f"{size / 1e6 / seconds:.1f} MB/s"
    source = f"{ui.size(size)} in {files:,} file{'s' if files != 1 else ''}"
    lines = [("text", source)]
    if "rows" in meta:
        shortest, longest = meta["row_tokens"]
        length = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
        lines = [("MindRecord", source), ("rows", f"{meta['rows']:,} of {length} ids")]
        speed = f"{meta['tokens'] / 1e6 / seconds:.1f} million tokens/s"  # pages may be empty
    lines += [
        ("documents", f"{meta['documents']:,}"),
        ("tokens", f"{meta['tokens']:,} ({meta['dtype']})"),
    ]
    if meta["tokenizer"] is None:
        needed = f"Model.vocab_size has to be above {meta['largest_id']:,}"
        lines.append(("tokenizer", f"none; {needed}"))
    else:
        lines.append(("tokenizer", f"{meta['tokenizer']}, {meta['vocab_size']:,} ids"))
    if meta["utf8_bytes"] is not None:
        lines.append(("bytes a token", f"{meta['utf8_bytes'] / meta['tokens']:.2f}"))
    return [
        *lines,
        ("time", f"{ui.duration(seconds)}, {speed}"),
        ("next", f"fastffn pretrain -c CONFIG -o {shlex.quote(f'Data.dataset.input_dir={out}')}"),
    ]
