"""The loss curve is a picture that other programs can open."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fastffn_cli.engine.plot import plot_losses, smooth
from tests.conftest import TrainedRun


def png_size(file: Path) -> tuple[int, int]:
    """Width and height from the header; the file must also end as a PNG does."""
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-12:-4] == b"\x00\x00\x00\x00IEND"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_a_run_leaves_a_png(trained_run: TrainedRun) -> None:
    width, height = png_size(trained_run.dir / "loss.png")
    assert width >= 640
    assert height >= 400


def test_curves_of_any_length_are_drawn_and_nothing_else_stays(tmp_path: Path) -> None:
    curves = {
        "long": [(step, 5.0 / step) for step in range(1, 200)],
        "short": [(10, 2.0)],
        "none": [],
    }
    plot_losses(curves, tmp_path / "loss.png", title="three", dashed=["short"])
    png_size(tmp_path / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value() -> None:
    assert smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smooth([8.0, 2.0], weight=0.9)[0] == pytest.approx(8.0)
    assert smooth([1.0, 0.0], weight=0.5)[1] == pytest.approx(1 / 3)
