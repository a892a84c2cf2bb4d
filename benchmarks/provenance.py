"""Where a figure comes from: what is printed beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastffn_cli.engine.device import Device

CPUINFO_FILE = Path("/proc/cpuinfo")
GENERATION = {"cpu family": "family", "model": "model"}  # of x86


def commit() -> str:
    """The commit that is measured, or `unknown` outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """The processor, the cores that this process may use, and Python."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, Python {platform.python_version()}"


def describe(versions: Mapping[str, str]) -> str:
    """Name versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def start_kernels(device: Device) -> str:
    """Compile and load the CPU kernels, as training does; return their path, or `none`."""
    from fastffn_cli import ui
    from fastffn_cli.engine.kernels import prepare_kernels
    from models.kernels import library

    missing = prepare_kernels(device, wanted=True, say=ui.say)
    if missing:
        ui.notice(missing)
    return library.path() or "none"


def _processor() -> str:
    """The processor's name and generation, which virtual machines often leave out of the name."""
    told: dict[str, str] = {}
    if CPUINFO_FILE.is_file():
        for line in CPUINFO_FILE.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            told.setdefault(key.strip(), value.strip())
    name = told.get("model name") or platform.processor() or platform.machine()
    parts = [f"{short} {told[key]}" for key, short in GENERATION.items() if key in told]
    return f"{name} ({', '.join(parts)})" if parts else name
