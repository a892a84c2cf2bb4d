"""`make demo`: the whole two-stage run beside a dense baseline of the same number of steps.

Everything is done with the commands a user would type, on text that needs no download. What it
prints at the end is the README's demo table.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from fastffn_cli import ui
from fastffn_cli.engine.plot import plot_losses
from fastffn_cli.engine.run import read_metrics, series

PROMPTS = ("The with statement", "A class definition", "If the expression")
TITLES = {
    "stage1": "low-rank (stage 1)",
    "stage2": "merged, dense (stage 2)",
    "dense": "dense baseline",
}


@dataclass(frozen=True)
class Arm:
    """A finished run: its folder, seconds of the command, speed, last losses, test perplexity."""

    run_dir: Path
    seconds: float
    tokens_per_s: float
    train_loss: float
    valid_loss: float
    test_loss: float
    test_ppl: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to make (default: demo/run-N)")
    parser.add_argument("--steps", type=int, help="steps of each stage (default: as shipped)")
    options = parser.parse_args()
    out_dir = options.out or next_free(Path("demo"))
    out_dir.mkdir(parents=True)
    started = time.perf_counter()
    text_file = out_dir / "text.txt"
    text_file.write_text(english_text(), encoding="utf-8")

    data_dir = out_dir / "data"
    fastffn("prepare", text_file, "--out", data_dir, "--tokenizer", "train:2048")
    common = ["-o", f"Data.dataset.input_dir={data_dir}"]
    stage, whole = [], []
    if options.steps:
        stage = ["-o", f"Engine.max_steps={options.steps}"]
        whole = ["-o", f"Engine.max_steps={2 * options.steps}"]

    stage1_dir, stage2_dir, dense_dir = (out_dir / name for name in TITLES)
    merged_dir = out_dir / "merged"
    seconds = {
        "stage1": fastffn("pretrain", "-c", "demo", *common, *stage, *to(stage1_dir)),
        "convert": fastffn("convert", stage1_dir, "--out", merged_dir),
        "stage2": fastffn(
            "posttrain", "-c", "demo-post", "--from", merged_dir, *common, *stage, *to(stage2_dir)
        ),
        "dense": fastffn("pretrain", "-c", "demo-dense", *common, *whole, *to(dense_dir)),
    }
    arms = {
        name: finish(run_dir, seconds[name])
        for name, run_dir in zip(TITLES, (stage1_dir, stage2_dir, dense_dir), strict=True)
    }
    speed = json.loads(capture("bench", "-c", "demo", *common, "--json"))
    samples = [
        json.loads(
            capture("generate", prompt, "--model", stage2_dir, "--max-tokens", "48", "--json")
        )[0]
        for prompt in PROMPTS
    ]
    picture = out_dir / "loss.png"
    draw(arms, picture)
    report(arms, speed, samples, seconds, picture, time.perf_counter() - started)
    result = {name: {**vars(arm), "run_dir": str(arm.run_dir)} for name, arm in arms.items()}
    (out_dir / "result.json").write_text(json.dumps({"arms": result, "speed": speed}, indent=2))


def next_free(parent: Path) -> Path:
    """demo/run-1, or the first number that is not taken: nothing is overwritten."""
    number = 1
    while (parent / f"run-{number}").exists():
        number += 1
    return parent / f"run-{number}"


def english_text() -> str:
    """Real English text that every Python carries: the language manual, else all docstrings."""
    try:
        from pydoc_data import topics
    except ImportError:
        return docstrings_of_the_library()
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def docstrings_of_the_library() -> str:
    """Every docstring of the standard library, for installations without the manual."""
    texts = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    return "\n\n".join(text for text in texts if text)


def to(run_dir: Path) -> list[str]:
    return ["-o", f"Engine.save_load.output_dir={run_dir}"]


def fastffn(*arguments: object) -> float:
    """Run a command, shown as typed, and return its seconds; stop the demo if it fails."""
    words = [str(argument) for argument in arguments]
    ui.say(f"\n$ fastffn {shlex.join(words)}")
    begun = time.perf_counter()
    finished = subprocess.run([sys.executable, "-m", "fastffn_cli", *words], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)
    return time.perf_counter() - begun


def capture(*arguments: object) -> str:
    """Run a command, shown as typed, and return what it writes to stdout."""
    words = [str(argument) for argument in arguments]
    ui.say(f"\n$ fastffn {shlex.join(words)}")
    finished = subprocess.run(
        [sys.executable, "-m", "fastffn_cli", *words],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    if finished.returncode:
        sys.exit(finished.returncode)
    return finished.stdout


def finish(run_dir: Path, seconds: float) -> Arm:
    """Evaluate a run on the test part and collect its losses."""
    records = read_metrics(run_dir)
    measured = json.loads(capture("eval", run_dir, "--json"))
    return Arm(
        run_dir=run_dir,
        seconds=seconds,
        tokens_per_s=records[-1]["tokens_per_s"],
        train_loss=series(records, "train", "loss")[-1][1],
        valid_loss=series(records, "eval", "loss")[-1][1],
        test_loss=measured["loss"],
        test_ppl=measured["ppl"],
    )


def draw(arms: dict[str, Arm], picture: Path) -> None:
    """Three training curves over the steps of the whole run: stage 2 follows stage 1."""
    curves = {
        TITLES[name]: [*map(tuple, series(read_metrics(arm.run_dir), "train", "loss"))]
        for name, arm in arms.items()
    }
    switch = curves[TITLES["stage1"]][-1][0]
    curves[TITLES["stage2"]] = [(switch + step, loss) for step, loss in curves[TITLES["stage2"]]]
    plot_losses(
        curves,
        picture,
        title=f"two stages (merged at step {switch}) and dense, training loss",
        dashed=(TITLES["dense"],),
    )


def report(
    arms: dict[str, Arm],
    speed: dict[str, object],
    samples: list[dict[str, str]],
    seconds: dict[str, float],
    picture: Path,
    total: float,
) -> None:
    ratio, spread = float(speed["ratio"]), speed["ratio_spread"]  # type: ignore[arg-type]
    rows = []
    for name, arm in arms.items():
        relative = arm.tokens_per_s / arms["dense"].tokens_per_s
        rows.append(
            (
                TITLES[name],
                f"{relative:.2f} x",
                f"{arm.train_loss:.3f}",
                f"{arm.valid_loss:.3f}",
                f"{arm.test_ppl:.1f}",
                f"{arm.seconds:.0f} s",
            )
        )
    two_stages = seconds["stage1"] + seconds["convert"] + seconds["stage2"]
    ui.data("")
    ui.table(
        "Two stages and a dense baseline of the same number of steps: losses, test perplexity",
        ("run", "speed", "train", "valid", "test perplexity", "time"),
        rows,
    )
    ui.data(
        "speed: tokens per second over the dense run's, one run after the other\n"
        f"interleaved, a step of stage 1 is {ratio:.2f} x as fast as a dense one (rounds "
        f"{spread[0]:.2f}-{spread[1]:.2f}, ceiling by FLOPs {speed['flops_ceiling']:.2f})\n"  # type: ignore[index]
        f"two stages with their conversion took {two_stages:.0f} s, dense {seconds['dense']:.0f} s"
    )
    for sample in samples:
        ui.data(f"\n> {sample['prompt']}{sample['text']}")
    stage2 = arms["stage2"].run_dir
    ui.data(
        f"\npicture of the loss curves: {picture}\n\nwhat to type next:\n"
        f"  {FASTFFN} generate 'The with statement' --model {stage2}\n"
        f"  {FASTFFN} inspect {stage2}\n"
        f"  {FASTFFN} prepare YOUR.txt --out data/mine && "
        f"{FASTFFN} pretrain -c demo -o Data.dataset.input_dir=data/mine\n"
        f"\nall of it in {total:.0f} s"
    )


FASTFFN = ".venv/bin/fastffn" if os.path.exists(".venv/bin/fastffn") else "fastffn"  # noqa: PTH110

if __name__ == "__main__":
    main()
