"""The report of a comparison, for people: one sentence, tables and curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastffn_cli.comparison.report_contents import compose
from fastffn_cli.comparison.report_document import Figure, write_html, write_markdown
from fastffn_cli.comparison.report_verdict import judge
from fastffn_cli.comparison.results import Results
from fastffn_cli.engine.storage import write_file

MARKDOWN_FILE, HTML_FILE = "report.md", "report.html"


@dataclass(frozen=True)
class Report:
    """What was written: the recommendation, the Markdown text, and where both files lie."""

    sentence: str
    markdown: str
    html_path: Path
    markdown_path: Path


def write_report(results: Results, out_dir: Path) -> Report:
    """Write report.md, its figures and report.html, which needs no other file, into `out_dir`.

    A report that was there is replaced, each file at once. Unfinished comparisons are reported as
    far as they are. Raises `DiskFull` where there is no room.
    """
    sentence = judge(results).sentence
    blocks = compose(results, sentence)
    markdown = write_markdown(blocks)
    for block in blocks:
        if isinstance(block, Figure):
            (out_dir / block.file).parent.mkdir(parents=True, exist_ok=True)
            write_file(out_dir / block.file, block.svg)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_file(out_dir / MARKDOWN_FILE, markdown)
    write_file(out_dir / HTML_FILE, write_html(blocks, f"Comparison: {results.name}"))
    return Report(sentence, markdown, out_dir / HTML_FILE, out_dir / MARKDOWN_FILE)
