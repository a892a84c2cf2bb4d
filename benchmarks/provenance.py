"""Where a figure comes from: what is printed beside every result."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit that is measured, or `unknown` outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
