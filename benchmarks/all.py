"""`make bench`: every benchmark whose figures the README states, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fastffn_cli import ui

HERE = Path(__file__).parent
# The vocabulary is that of the demo's own tokenizer.
BENCH = ("-m", "fastffn_cli", "bench", "-c", "demo", "-o", "Model.vocab_size=2048")
SCRIPTS = ("prepare_throughput.py", "engine_overhead.py", "kinds.py")
COMMANDS = (BENCH, *((str(HERE / script),) for script in SCRIPTS))


def main() -> None:
    for command in COMMANDS:
        ui.say(f"\n$ python {' '.join(Path(word).name for word in command)}")
        finished = subprocess.run([sys.executable, *command], check=False)
        if finished.returncode:
            sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
