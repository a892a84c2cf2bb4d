"""What to type where a file is not YAML: PyYAML's complaints in the writer's words."""

from __future__ import annotations

import re

import yaml
from yaml.reader import ReaderError


def explain_syntax_error(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Return the line (from 1) and an explanation that ends in what to type."""
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"the character {chr(error.character)!r} is not allowed: remove it"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return 1, f"not valid YAML: {error}"
    problem = error.problem or ""
    line = error.problem_mark.line + 1
    start = error.context_mark.line + 1 if error.context_mark else line
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())] or "'\\t'" in problem:
        return line, "a tab stands in the indentation: use spaces"
    if "mapping values are not allowed" in problem:
        return _explain_mapping(lines, line)
    if "could not find expected ':'" in problem:
        return start, "a key without a colon: write 'key: value'"
    if written[error.problem_mark.column :][:1] in ("]", "}"):
        return (
            line,
            f"a '{written[error.problem_mark.column]}' without its opening bracket: remove it",
        )
    if "expected <block end>" in problem:
        return line, (
            f"this line does not line up with the block that begins in line {start}: give keys of "
            "one block the same indentation"
        )
    if "quoted scalar" in (error.context or ""):
        return start, "a quote is opened and not closed: close it"
    if problem.startswith(("expected ',' or", "expected the node content")) or (
        "flow" in (error.context or "")
    ):
        return start, "a bracket is opened and not closed, or a comma is missing: write [a, b]"
    if "cannot start any token" in problem:
        character = written[error.problem_mark.column : error.problem_mark.column + 1]
        return line, f"a value may not begin with {character!r}: put it in quotes"
    if "undefined alias" in problem:
        return line, "an alias without its anchor: put a value that begins with '*' in quotes"
    if "another document" in problem or "document start" in problem:
        return line, "a second document begins here: keep one document in a file"
    return line, f"not valid YAML: {problem}"


def _explain_mapping(lines: list[str], line: int) -> tuple[int, str]:
    """Explain a ': ' where none may be, by the line itself and the one above it."""
    above = line - 1
    while above >= 1 and not lines[above - 1].split("#")[0].strip():
        above -= 1
    before = lines[above - 1].split(" #")[0].rstrip() if above >= 1 else ""
    if re.fullmatch(r"\s*[\w.]+:[^\s:].*", before):
        key, _, value = before.strip().partition(":")
        return above, f"no space after the colon: write '{key}: {value}'"
    if re.fullmatch(r"\s*[\w.]+", before):
        return above, f"a key without a colon: write '{before.strip()}:'"
    written = lines[line - 1] if line <= len(lines) else ""
    deeper = len(written) - len(written.lstrip()) > len(before) - len(before.lstrip())
    if above >= 1 and deeper and before and not before.endswith(":"):
        return line, (
            f"this line is indented under line {above}, which has a value already: give keys of "
            "one block the same indentation"
        )
    return line, "a second ': ' in this line: put a value that holds ': ' in quotes"
