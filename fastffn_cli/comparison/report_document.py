"""A document of a few plain blocks, written as Markdown and as one HTML file of its own.

Every text is plain: what users named is escaped in both, so that it is read as it was typed.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 or 2."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `strong` is what has to be read first."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list without order."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with a heading row; `left` counts the columns of text, the others are numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Figure:
    """An SVG picture: `file` is where the Markdown finds it, `alt` what it shows."""

    file: str
    alt: str
    svg: str


Block = Heading | Paragraph | Bullets | Table | Figure

STYLE = """
:root { color-scheme: light dark; --line: #c8c8c8; --soft: #f3f5f7; --strong: #eaf3ea; }
@media (prefers-color-scheme: dark) {
  :root { --line: #4a4a4a; --soft: #24272b; --strong: #1f2f23; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.strong { background: var(--strong); border-radius: 6px; font-size: 1.15rem;
  padding: .9rem 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; }
th { background: var(--soft); }
.text { text-align: left; }
img { background: #fff; border: 1px solid var(--line); border-radius: 6px; max-width: 100%; }
"""


def write_markdown(blocks: Sequence[Block]) -> str:
    """Return the document as Markdown with tables (GitHub's dialect)."""
    return "\n\n".join(_MARKDOWN[type(block)](block) for block in blocks) + "\n"


def write_html(blocks: Sequence[Block], title: str) -> str:
    """Return the document as a page that needs no other file, no network and no script."""
    body = "\n".join(_HTML[type(block)](block) for block in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_plain(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it was typed, on one line."""
    text = html.escape(_one_line(text), quote=False)
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    # Between letters an underscore is one; at the edge of a word it would begin emphasis.
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return re.sub(r"^(\s*)(#|>|[+-](?=\s)|\d+[.)](?=\s))", r"\1\\\2", text)


def _one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", text)


def _plain(text: str) -> str:
    return html.escape(_one_line(text), quote=True)


def _markdown_paragraph(block: Paragraph) -> str:
    text = escape_markdown(block.text)
    return f"**{text}**" if block.strong else text


def _markdown_table(block: Table) -> str:
    ruler = ["---" if index < block.left else "---:" for index in range(len(block.columns))]
    rows = [[escape_markdown(cell) for cell in row] for row in (block.columns, *block.rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in (rows[0], ruler, *rows[1:])]
    return "\n".join(lines)


def _html_paragraph(block: Paragraph) -> str:
    look = ' class="strong"' if block.strong else ""
    return f"<p{look}>{_plain(block.text)}</p>"


def _html_table(block: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag} class=text>{_plain(cell)}</{tag}>"
            if index < block.left
            else f"<{tag}>{_plain(cell)}</{tag}>"
            for index, cell in enumerate(cells)
        )

    head = f"<thead><tr>{row(block.columns, 'th')}</tr></thead>"
    body = "\n".join(f"<tr>{row(cells, 'td')}</tr>" for cells in block.rows)
    return f'<div class="scroll"><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _html_figure(block: Figure) -> str:
    # As an image an SVG runs no script, whatever its text says.
    data = base64.b64encode(block.svg.encode()).decode()
    return f'<p><img alt="{_plain(block.alt)}" src="data:image/svg+xml;base64,{data}"></p>'


_MARKDOWN: dict[type, Callable[..., str]] = {
    Heading: lambda block: f"{'#' * block.level} {escape_markdown(block.text)}",
    Paragraph: _markdown_paragraph,
    Bullets: lambda block: "\n".join(f"* {escape_markdown(item)}" for item in block.items),
    Table: _markdown_table,
    Figure: lambda block: f"![{escape_markdown(block.alt)}]({block.file})",
}
_HTML: dict[type, Callable[..., str]] = {
    Heading: lambda block: f"<h{block.level}>{_plain(block.text)}</h{block.level}>",
    Paragraph: _html_paragraph,
    Bullets: lambda block: (
        f"<ul>{''.join(f'<li>{_plain(item)}</li>' for item in block.items)}</ul>"
    ),
    Table: _html_table,
    Figure: _html_figure,
}
