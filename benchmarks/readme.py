"""`make readme`: put the key table, and the output of a demo, between the README's markers."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastffn_cli.config.table import key_table_markdown

README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="a file with what `make demo` wrote to stdout")
    options = parser.parse_args()
    text = replace(README.read_text(encoding="utf-8"), "keys", key_table_markdown())
    if options.demo:
        output = options.demo.read_text(encoding="utf-8").strip("\n")
        text = replace(text, "demo", f"```text\n{output}\n```\n")
    README.write_text(text, encoding="utf-8")


def replace(text: str, marker: str, content: str) -> str:
    """Exchange what stands between `<!-- marker:begin -->` and `<!-- marker:end -->`."""
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end)[1]


if __name__ == "__main__":
    main()
