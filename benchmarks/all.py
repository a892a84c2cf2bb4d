"""`make bench`: every benchmark whose figures README and docs state, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fastffn_cli import ui

HERE = Path(__file__).parent
SCRIPTS = ("prepare_throughput.py", "engine_overhead.py")


def main() -> None:
    commands = [[sys.executable, "-m", "fastffn_cli", "bench", "-c", "demo"]]
    commands += [[sys.executable, str(HERE / script)] for script in SCRIPTS]
    for command in commands:
        ui.say(f"\n$ {' '.join(Path(word).name for word in command)}")
        finished = subprocess.run(command, check=False)
        if finished.returncode:
            sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
