"""`make bench`: run every benchmark of docs/performance.md and put its table in there.

    python benchmarks/all.py [--only NAME ...] [--pages FILE ...]

The pages (the README quotes some tables) say what is run: between `<!-- bench: NAME.py ARGUMENTS
-->` and `<!-- /bench -->` stands what `python benchmarks/NAME.py ARGUMENTS` printed last. A script
that cannot run on this machine (exit code 77, `tables.skip`) says so, and its section stays as it
was; so does that of a script that fails, and then the exit code is 1 when all others have run.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tables import SKIPPED
from fastffn_cli import ui

HERE = Path(__file__).resolve().parent
PAGES = (HERE.parent / "docs" / "performance.md", HERE.parent / "README.md")
SECTION = re.compile(
    r"(?<=<!-- bench: )(?P<words>.+?) -->\n(?P<table>.*?)(?=<!-- /bench -->)", re.S
)


@dataclass(frozen=True)
class Section:
    """A place of the page: the command that fills it."""

    words: str

    @property
    def name(self) -> str:
        """The script without its ending."""
        return Path(shlex.split(self.words)[0]).stem

    @property
    def command(self) -> list[str]:
        """What is run."""
        script, *arguments = shlex.split(self.words)
        return [sys.executable, str(HERE / script), *arguments]


def main() -> None:
    args = read_arguments()
    sections = read_all_sections(args.pages)
    unknown = set(args.only) - {each.name for each in sections}
    if unknown:
        sys.exit(f"there is no section of {', '.join(sorted(unknown))}")
    failed = []
    for section in sections:
        if args.only and section.name not in args.only:
            continue
        ui.say(f"\n$ python benchmarks/{section.words}")
        begun = time.perf_counter()
        done = subprocess.run(section.command, stdout=subprocess.PIPE, text=True, check=False)
        ui.say(f"{done.stdout.rstrip()}\n({time.perf_counter() - begun:.0f} s)")
        if done.returncode == 0:
            for page in args.pages:  # read again: somebody may have edited it meanwhile
                text = page.read_text(encoding="utf-8")
                page.write_text(fill(text, section, done.stdout), encoding="utf-8")
        elif done.returncode != SKIPPED:
            ui.say(f"exit code {done.returncode}: the section of {section.name} stays as it was")
            failed.append(section.name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def read_sections(page: str) -> list[Section]:
    """Return the sections in the order of the page."""
    return [Section(found["words"]) for found in SECTION.finditer(page)]


def read_all_sections(pages: Sequence[Path]) -> list[Section]:
    """Return the sections of all pages in their order, each command once."""
    found = [each for page in pages for each in read_sections(page.read_text(encoding="utf-8"))]
    return list(dict.fromkeys(found))


def fill(page: str, section: Section, output: str) -> str:
    """Return the page with what a section's command printed in its place."""

    def replace(found: re.Match[str]) -> str:
        if found["words"] != section.words:
            return found[0]
        return f"{section.words} -->\n\n{output.strip()}\n\n"

    return SECTION.sub(replace, page)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="scripts to run")
    parser.add_argument("--pages", nargs="+", type=Path, default=PAGES, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
