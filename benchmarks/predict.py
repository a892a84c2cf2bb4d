"""What a roofline model expects of the shipped GPT sizes on accelerators, as Markdown tables.

    python benchmarks/predict.py [--fused]

Nothing is measured here: `fastffn_cli/engine/roofline.py` says what is assumed, and
`fastffn_cli/engine/chips.py` where the chips' peaks come from. The ceiling is what stage 1 would
gain if only the FLOPs of matrix products took time; fewer hidden units also save the memory traffic
of GELU, by which `thin` and `narrow` may exceed it. A cell reads: speed-up of a stage-1 step (of
the whole run, where 50 % / 75 % of its steps are stage 1). `--fused` expects attention and loss to
keep their large intermediates out of memory: attention does where a run finds its device's fused
operator, the chunked loss halfway, for its chunks pass through memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit

SHAPES = ("gpt-6l", "gpt-124m", "gpt-345m")
SHARES = (0.5, 0.75)
KINDS: dict[str, dict[str, Any]] = {
    "low_rank 8": {"kind": "low_rank", "rank": 8},
    "low_rank 32": {"kind": "low_rank", "rank": 32},
    "low_rank 128": {"kind": "low_rank", "rank": 128},
    "thin D/8, D/4": {"kind": "thin", "rank": "D/8", "width": "D/4"},
    "narrow D/4": {"kind": "narrow", "width": "D/4"},
    "monarch 4": {"kind": "monarch", "blocks": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fused", action="store_true", help="fused attention and loss")
    fused = parser.parse_args().fused
    lines = [line for shape in SHAPES for line in predict(shape, fused=fused)]
    sys.stdout.write("\n".join([*lines, *sources(), f"Commit {commit()}.", ""]))


def predict(shape: str, *, fused: bool) -> Iterator[str]:
    """The table of one shipped configuration, line by line."""
    from fastffn_cli.config.load import load_config
    from fastffn_cli.engine.chips import CHIPS
    from fastffn_cli.engine.model import gpt_config
    from fastffn_cli.engine.roofline import estimate_step, whole_run_speedup
    from models.gpt import flops_per_token

    config = load_config(f"{shape}-dense").config
    dense = gpt_config(config)
    seq_len, micro_batch = config.Data.dataset.max_seq_len, config.Data.batch_size.micro_batch_size
    sizes = {"seq_len": seq_len, "micro_batch_size": micro_batch, "fused": fused}
    seconds = {name: estimate_step(dense, chip, **sizes) for name, chip in CHIPS.items()}
    how = "fused attention and loss" if fused else "attention and loss in single operators"
    yield f"**{shape}**: {micro_batch} sequences of {seq_len} tokens a step, {how}"
    yield ""
    yield f"| kind | ceiling | {' | '.join(CHIPS)} |"
    yield "|---" * (2 + len(CHIPS)) + "|"
    ffn_share = " | ".join(f"{each.ffn / each.total:.0%}" for each in seconds.values())
    yield f"| *share of dense FFN in the step* | | {ffn_share} |"
    for kind, spec in KINDS.items():
        parts = {"D/4": dense.hidden_size // 4, "D/8": dense.hidden_size // 8}
        model = replace(dense, ffn={key: parts.get(value, value) for key, value in spec.items()})
        cells = [f"{flops_per_token(dense, seq_len) / flops_per_token(model, seq_len):.2f}"]
        for name, chip in CHIPS.items():
            stage1 = seconds[name].total / estimate_step(model, chip, **sizes).total
            runs = " / ".join(f"{whole_run_speedup(stage1, share):.2f}" for share in SHARES)
            cells.append(f"{stage1:.2f} ({runs})")
        yield f"| {kind} | {' | '.join(cells)} |"
    yield ""


def sources() -> Iterator[str]:
    """Where the chips' figures come from, and what share of each peak is taken."""
    from fastffn_cli.engine.chips import CHIPS

    for chip in CHIPS.values():
        yield (
            f"* {chip.name}: {chip.source}. Taken: {chip.matrix_share:.0%} of the matrix peak, "
            f"{chip.bandwidth_share:.0%} of the bandwidth."
        )
    yield ""


if __name__ == "__main__":
    main()
