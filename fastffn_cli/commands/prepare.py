"""`fastffn prepare`: text to token files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import JsonOption


def run(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="Text: .txt (one document a file) and .jsonl (one a line), also .gz, or folders.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to make; never overwritten.")
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="SPEC",
            help="bytes; train:N (byte-level BPE of N ids, trained on INPUT); a tokenizer.json; "
            "or a folder with tokenizer.json or GPT-2's vocabulary and merges.",
        ),
    ] = "train:8000",
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
    as_json: JsonOption = False,
) -> None:
    """Turn text into token files for training.

    Every document ends with the end-of-text token. The files are FleetX's (NAME_ids.npy,
    NAME_idx.npz), with the tokenizer and meta.json beside them.

    **Examples**

    `fastffn prepare novel.txt --out data/novel --tokenizer train:8000`

    `fastffn prepare corpus/ more.jsonl.gz --out data/corpus --tokenizer gpt2/ --workers 8`

    `fastffn prepare tiny.txt --out data/tiny --tokenizer bytes --json`
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
        )
    )
    seconds = time.monotonic() - started
    size = sum(source["bytes"] for source in meta["sources"])
    files = len(meta["sources"])
    ui.card(
        f"prepared {out}",
        [
            ("text", f"{ui.size(size)} in {files:,} file{'s' if files != 1 else ''}"),
            ("documents", f"{meta['documents']:,}"),
            ("tokens", f"{meta['tokens']:,} ({meta['dtype']})"),
            ("tokenizer", f"{meta['tokenizer']}, {meta['vocab_size']:,} ids"),
            ("bytes a token", f"{meta['utf8_bytes'] / meta['tokens']:.2f}"),
            ("time", f"{ui.duration(seconds)}, {size / 1e6 / seconds:.1f} MB/s"),
            ("next", f"fastffn pretrain -c CONFIG -o Data.dataset.input_dir={out}"),
        ],
    )
    if as_json:
        ui.data_json(meta)
