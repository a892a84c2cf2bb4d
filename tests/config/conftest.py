"""Shared by the tests of foreign YAML."""

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(text)` puts a file into the test's own folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write_file(text, name="theirs.yaml"):
        Path(name).write_text(text)
        return name

    return write_file
