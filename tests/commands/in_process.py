"""Run the program inside the test's own process: everything but a new interpreter, and fast."""

from dataclasses import dataclass
from unittest import mock

from fastffn_cli.app import main


@dataclass(frozen=True)
class Finished:
    returncode: int
    stdout: str
    stderr: str


def run_in_process(capsys, *arguments):
    """Call the program's own `main` with `arguments`; as `call_program`, minus the start."""
    capsys.readouterr()
    code = 0
    with mock.patch("sys.argv", ["fastffn", *map(str, arguments)]):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    shown = capsys.readouterr()
    return Finished(code, shown.out, shown.err)
