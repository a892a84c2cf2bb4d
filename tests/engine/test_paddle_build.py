"""What importing paddle leaves behind in the process."""

from __future__ import annotations

import subprocess
import sys

SPARED = """
import gc, weakref
from fastffn_cli.engine.paddle_build import import_paddle

if {enabled}:
    gc.enable()
else:
    gc.disable()
import_paddle()

class Loop:
    def __init__(self):
        self.me = self

seen = weakref.ref(Loop())
print(gc.isenabled(), gc.get_freeze_count() > 50_000)
gc.collect()
print(seen() is None)
"""


def run(enabled: bool) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SPARED.format(enabled=enabled)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_collector_is_spared_what_was_imported_and_collects_what_comes_later() -> None:
    assert run(enabled=True) == ["True", "True", "True"]


def test_a_collector_that_was_off_stays_off() -> None:
    assert run(enabled=False) == ["False", "True", "True"]
