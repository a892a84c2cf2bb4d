"""Command lines of further processes of this program. Imports nothing heavy."""

from __future__ import annotations

import json
import sys

# The other process imports from where this one does: `python -m` would look into the current folder
# first, where the user may well have a `models` of their own.
PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
FASTFFN = "from fastffn_cli.app import main; main()"
KILLED = -9  # how Linux ends the process that takes the last memory


def own_process(statement: str, *arguments: str) -> list[str]:
    """Return the command line that runs a statement, which finds `arguments` in sys.argv[1:]."""
    return [sys.executable, "-c", PROGRAM + statement, json.dumps(sys.path), *arguments]


def own_command(*arguments: str) -> list[str]:
    """Return the command line of `fastffn ARGUMENTS`."""
    return own_process(FASTFFN, *arguments)
