"""A step of stage 1 against a dense one in fastffn itself, beside the ceiling by FLOPs.

    python benchmarks/stage_ratio.py [--sizes original demo] [--rounds N] [--steps N] [--seed N]

What `fastffn bench` measures, for the original's GPT (6 layers of width 768, vocabulary 50257,
rank 8, sequences of 1024) and for the shipped demo. The ceiling is the ratio of the FLOPs of all
matrix products; the dense step has other work too, whose part stage 1 does not make smaller, and
the thin products are narrow: reaching the ceiling takes kernels that lose nothing elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import commit, machine, start_kernels
from benchmarks.tables import markdown, median_and_middle_half, show, verdict

# Name of a size -> shipped configuration and what the data would say, or the batch must be.
SIZES = {
    "original": (
        "gpt-6l-fastffn",
        ("Data.batch_size.global_batch_size=1", "Data.batch_size.micro_batch_size=1"),
    ),
    "demo": ("demo", ("Model.vocab_size=2048",)),
}
HEADER = (
    "model", "dense, tokens/s", "stage 1, tokens/s", "stage 1 / dense", "ceiling by FLOPs", "target"
)  # fmt: skip


def main() -> None:
    args = read_arguments()
    from fastffn_cli.engine.device import use_device

    device = use_device("cpu", threads=args.threads)
    kernels = start_kernels(device)
    import paddle

    rows = [measure(size, device, args) for size in args.sizes]
    show(
        markdown(HEADER, rows),
        f"{machine()}; paddle {paddle.__version__}, kernels {kernels}; {args.rounds} rounds of "
        f"{args.steps} updates, seed {args.seed}, commit {commit()}.",
    )


def measure(size: str, device: Any, args: argparse.Namespace) -> list[str]:
    """Return the row of a size."""
    from fastffn_cli import ui
    from fastffn_cli.config.load import load_config
    from fastffn_cli.engine.bench import arm_models, flops_ceiling
    from fastffn_cli.engine.timing import WARM_UP_STEPS, Arm, synthetic_batches, time_rounds

    name, more = SIZES[size]
    dropout = ("Model.hidden_dropout_prob=0", "Model.attention_probs_dropout_prob=0")
    config = load_config(name, [*more, *dropout, f"Global.seed={args.seed}"]).config
    models = arm_models(config)
    arms = {arm: Arm(config, model, device) for arm, model in models.items()}
    batches = synthetic_batches(config, max(args.steps, WARM_UP_STEPS))
    times = time_rounds(
        arms, dict.fromkeys(arms, batches), steps=args.steps, rounds=args.rounds, say=ui.say,
        show=lambda seconds: f"{size}: {seconds['dense'] / seconds['stage1']:.3f}",
    )  # fmt: skip
    ratios = [dense / stage1 for dense, stage1 in zip(times["dense"], times["stage1"], strict=True)]
    ceiling, tokens = flops_ceiling(config), config.Data.tokens_per_step
    return [
        f"{name}, {tokens} tokens",
        *(f"{tokens / statistics.median(times[arm]):,.0f}" for arm in ("dense", "stage1")),
        median_and_middle_half(ratios),
        f"{ceiling:.3f}",
        verdict(statistics.median(ratios), round(ceiling, 3)),
    ]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="updates of a turn")
    parser.add_argument("--seed", type=int, default=1024)
    return parser.parse_args()


if __name__ == "__main__":
    main()
