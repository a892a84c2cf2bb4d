"""The Python lines of the page for people who come from Hugging Face."""

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import FIXTURES_DIR, ROOT_DIR

NEEDED = "needs torch and transformers: make parity"
pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("transformers", reason=NEEDED)

pytestmark = pytest.mark.parity
PAGE = (ROOT_DIR / "docs" / "coming-from-hugging-face.md").read_text(encoding="utf-8")


def test_the_exported_folder_opens_with_the_lines_of_the_page(fastffn, workplace):
    shutil.copytree(FIXTURES_DIR / "hf_gpt2" / "model", workplace.dir / "gpt2")
    for arguments in (("gpt2", "--out", "ours"), ("ours", "--format", "hf", "--out", folder())):
        done = fastffn("convert", *arguments)
        assert done.code == 0, done.err
    names = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], names)
    assert names["model"].num_parameters() == 404_584
    assert names["tokenizer"]("Once upon a time")["input_ids"] == [7454, 2402, 257, 640]


def folder() -> Path:
    return Path(re.search(r"--format hf --out (\S+)", PAGE)[1])
