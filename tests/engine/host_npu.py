"""Builds `host_npu.cc`, the plugin that gives tests an `npu` without Ascend hardware."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE_FILE = Path(__file__).with_suffix(".cc")


def build_plugin(folder: Path) -> Path:
    """Compile the plugin for the installed paddle; return the folder for `CUSTOM_DEVICE_ROOT`."""
    compiler = shutil.which("g++")
    package = importlib.util.find_spec("paddle")
    if compiler is None or package is None or package.origin is None:
        pytest.skip("needs g++ and paddle")
    temporary = folder / "plugin.tmp"
    include_dir = Path(package.origin).parent / "include"
    flags = ["-std=c++17", "-O1", "-Wall", "-shared", "-fPIC", f"-I{include_dir}"]
    subprocess.run([compiler, *flags, str(SOURCE_FILE), "-o", str(temporary)], check=True)
    # Paddle opens every .so of the folder: no half-written one may be there under that name.
    os.replace(temporary, folder / "libpaddle-custom-npu.so")  # noqa: PTH105
    return folder
