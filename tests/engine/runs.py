"""Reading runs and steering training processes, for the tests of this folder."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastffn_cli.engine.checkpoint import read_tensors
from fastffn_cli.engine.run import read_metrics
from tests.conftest import PROCESS_TIMEOUT_S, program, program_env

EXACT_KEYS = ("loss", "grad_norm", "learning_rate", "tokens", "epoch", "ppl")


def exact_metrics(run_dir: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What must be equal between two runs: losses, norms, rates; the last record of a step wins."""
    return {
        (record["event"], record["step"]): {key: record.get(key) for key in EXACT_KEYS}
        for record in read_metrics(run_dir)
        if record["event"] in ("train", "eval")
    }


def assert_same_bits(first_file: Path, second_file: Path) -> None:
    """Both safetensors files hold the same names and the same bits."""
    first, second = read_tensors(first_file), read_tensors(second_file)
    assert first.keys() == second.keys()
    different = [name for name in first if first[name].tobytes() != second[name].tobytes()]
    assert not different


def assert_same_state(first_dir: Path, second_dir: Path) -> None:
    """Both checkpoints hold the same weights and the same optimizer."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert_same_bits(first_dir / name, second_dir / name)


@contextlib.contextmanager
def started(*arguments: str | Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the program with its stderr in a pipe; whatever happens, it is gone afterwards."""
    process = subprocess.Popen(
        program(*arguments),
        cwd=cwd,
        env=program_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def interrupt_at(
    process: subprocess.Popen[str], text: str, number: signal.Signals
) -> tuple[int, str]:
    """Send a signal as soon as stderr shows `text`; return exit code and all of stderr."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            process.send_signal(number)
            break
    seen += process.stderr.read()
    return process.wait(PROCESS_TIMEOUT_S), seen


def printed_command(text: str) -> list[str]:
    """The arguments of the `fastffn ...` line that a message shows."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("fastffn ")]
    assert len(lines) == 1, text
    return shlex.split(lines[0])[1:]


def flip_byte(file: Path, place: int) -> None:
    """Damage one byte and keep the size."""
    content = bytearray(file.read_bytes())
    content[place] ^= 0xFF
    file.write_bytes(bytes(content))


def random_batch(seed: int, rows: int, seq_len: int, vocab_size: int, masked: float = 0.4) -> Any:
    """A batch whose rows have very different numbers of valid tokens."""
    from fastffn_cli.data.dataset import Batch

    source = np.random.default_rng(seed)
    ids = source.integers(0, vocab_size, (rows, seq_len + 1))
    shares = np.linspace(0.0, 2 * masked, rows)[:, None]
    mask = (source.random((rows, seq_len)) >= shares).astype(np.float32)
    return Batch(ids[:, :-1], ids[:, 1:], mask)
