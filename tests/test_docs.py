"""The pages for people who come from elsewhere: every command on them runs, with small files."""

import gzip
import re
import shlex
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FIXTURES = Path(__file__).parent / "fixtures"
PAGES = sorted(file.name for file in DOCS.glob("coming-from-*.md"))
SHORT = [
    "-o", "Engine.max_steps=2", "-o", "Engine.eval_iters=1",
    "-o", "Data.batch_size={local_batch_size: 2, micro_batch_size: 2}",
]  # fmt: skip
# The original's model, at the size of the stored one.
TINY = ["-o", "Model={vocab_size: 97, hidden_size: 16, num_layers: 2, num_attention_heads: 2, "
        "max_position_embeddings: 31, masked_token_id: 96}", "-o", "Data.dataset.max_seq_len=31",
        "-o", "Data.dataset.split=80,20,0"]  # fmt: skip

pytestmark = pytest.mark.slow


def lines_of(page):
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def follow(page, fastffn, extra=()):
    """Run a page's commands one after the other; what each of them said on stdout."""
    said = {}
    for line in lines_of(page):
        program, *arguments = shlex.split(line)
        assert program == "fastffn", f"{page} shows an unknown program: {line}"
        short = [*SHORT, *extra] if arguments[0] in ("pretrain", "posttrain") else []
        done = fastffn(*arguments, *short)
        assert done.code == 0, f"{line}\n{done.err}"
        said[line] = done.out
    return said


def test_there_is_a_page_a_system():
    from fastffn_cli.interop.registry import SYSTEMS

    assert len(PAGES) == 3
    for name in SYSTEMS:
        assert any(f"--format {name}" in (DOCS / page).read_text() for page in PAGES), name


def test_fleetx_page(fastffn, workplace):
    fleetx = FIXTURES / "fleetx"
    shutil.copytree(fleetx / "tiny_data", workplace.dir / "data")
    shutil.copytree(fleetx / "eval" / "step_100_fp16", workplace.dir / "GPT_345M")
    shutil.copy(FIXTURES / "fleetx_yaml" / "E_eval_config.yaml", workplace.dir / "gpt_345m.yaml")
    shutil.copy(fleetx / "wiki.txt", workplace.dir)
    shutil.copy(fleetx / "lambada.jsonl", workplace.dir)
    copy_gpt2_vocabulary(workplace.dir / "gpt2")
    said = follow("coming-from-fleetx.md", fastffn)
    assert "11.047650" in said["fastffn eval gpt-345m --data wiki.txt"]  # expected_E.json
    cloze = said["fastffn eval gpt-345m --task cloze --data lambada.jsonl"]
    assert re.search(r"\b5 of 12\b", cloze)
    assert load_as_fleetx_does(workplace.dir / "for-fleetx") > 0


def load_as_fleetx_does(folder):
    """Run the loading lines of the page; the number of tensors."""
    page = (DOCS / "coming-from-fleetx.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    names = {}
    exec(code.replace("for-fleetx", str(folder)), names)
    return len(names["model_dict"])


def test_hugging_face_page(fastffn, workplace):
    shutil.copytree(FIXTURES / "hf_gpt2" / "model", workplace.dir / "gpt2")
    (workplace.dir / "book.txt").write_text("It was a bright cold day in April. " * 200)
    follow("coming-from-hugging-face.md", fastffn)


def test_mindspore_page(fastffn, workplace):
    mindspore = FIXTURES / "mindspore"
    (workplace.dir / "wiki").mkdir()
    record = workplace.dir / "wiki" / "wiki.mindrecord"
    record.write_bytes(gzip.decompress((mindspore / "tiny_text.mindrecord.gz").read_bytes()))
    shutil.copy(mindspore / "tiny_text.mindrecord.db", record.with_name("wiki.mindrecord.db"))
    shutil.copy(mindspore / "tiny_fastffn.ckpt", workplace.dir / "gpt-76_10.ckpt")
    shutil.copytree(FIXTURES / "mindformers_yaml", workplace.dir / "configs")
    follow("coming-from-mindspore.md", fastffn, TINY)


def test_schedules_page(fastffn, workplace):
    (workplace.dir / "book.txt").write_text("It was a bright cold day in April. " * 2000)
    follow("schedules.md", fastffn, extra=["-o", "Engine.max_steps=3"])
    for run in ("demo-one-run", "fork", "slope", "blocked", "sandwich"):
        metrics = (workplace.dir / "runs" / run / "metrics.jsonl").read_text()
        assert '"event": "switch"' in metrics, run


def test_rank_tables_page(fastffn, workplace, monkeypatch):
    tables = FIXTURES / "rank_tables"
    for machine in (1, 2, 3):
        shutil.copy(tables / f"hccl_8p_01234567_10.155.111.14{machine}.json", workplace.dir)
    tool = workplace.dir / "bin" / "hccn_tool"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "ipaddr:192.$(($2 % 4 + 1)).27.$(($2 / 4 + 6))"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    follow("rank-tables.md", fastffn)
    for name in ("hccl_4s_32p.json", "hccl_4p_4567_10.155.111.140.json"):
        assert (workplace.dir / name).read_bytes() == (tables / name).read_bytes()


def copy_gpt2_vocabulary(folder):
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FIXTURES / "hf_gpt2" / "model" / name, folder)


@pytest.mark.parametrize("page", sorted(file.name for file in DOCS.glob("*.md")))
def test_links_lead_to_files(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (DOCS / target).exists(), target
