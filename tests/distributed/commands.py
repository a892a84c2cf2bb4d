"""`python -m tests.distributed.commands FILE`: run command lines one after the other.

FILE holds a JSON list of them. One process that runs several spares the import of paddle and the
meeting of all processes, which take longer than the small trainings of tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastffn_cli.app import main


def run(command_lines: list[list[str]]) -> None:
    """Run them until one fails, with its exit code."""
    for words in command_lines:
        sys.argv = ["fastffn", *words]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
