"""`make bench` runs: every script of docs/performance.md starts and ends well, shortened."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import provenance, size_curves
from benchmarks.all import PAGES, fill, read_all_sections, read_sections
from benchmarks.tables import SKIPPED, markdown, median_and_middle_half

ROOT = Path(__file__).parent.parent
SECTIONS = read_all_sections(PAGES)
TURN = ("--rounds", "1", "--steps", "1")
CALL = ("--rounds", "1", "--calls", "1")
TINY = ("--sizes", "tiny", "--threads", "1", *TURN)
SHORT = {
    "against_torch": TINY,
    "against_stock": TINY,
    "stage_ratio": ("--sizes", "demo", *TURN),
    "kinds": ("--hidden", "32", "--seq-len", "32", *TURN),
    "ffn_kernel": ("--hidden", "128", "--tokens", "200", "--rounds", "1"),
    "loss_kernel": ("--shapes", "300x97x16", "--rounds", "1"),
    "stage_memory": ("--sizes", "tiny", "--micro-batch-size", "1"),
    "attention_kernel": ("--cases", "small", "decoding", "--threads", "1", *CALL),
    "generation_speed": (
        *("--sizes", "tiny", "--batches", "1", "2", "--threads", "1"),
        *("--tokens", "9", "--rounds", "1"),
    ),
    "generation_prefix": (
        *("--size", "tiny", "--prefixes", "4", "8", "--tokens", "2"),
        *("--rounds", "1", "--threads", "1"),
    ),
    "size_curves": (
        "--panels",
        "layers",
        "--width",
        "32",
        "--threads",
        "1",
        "--picture",
        "curves.svg",
        *TURN,
    ),
    "engine_overhead": ("--steps", "2"),
    "startup": ("--rounds", "1", "--layers", "1", "--hidden", "32", "--vocab", "64"),
    "checkpoint_speed": ("--rounds", "1", "--layers", "1", "--hidden", "32", "--vocab", "64"),
    "soak": ("--steps", "400"),
    "profile_step": (
        *("--rounds", "1", "--stages", "dense", "-o", "Model.vocab_size=64"),
        *("-o", "Model.hidden_size=32", "-o", "Model.num_attention_heads=2"),
    ),
    "prepare_throughput": ("--rounds", "1", "--megabytes", "1"),
}

# Rows of the page's summary, by how they begin, and the table that their figures are of.
TARGETS = {
    "dense training": "against_torch",
    "stage 1 (rank 8)": "against_torch",
    "3 times as fast as stock": "against_stock",
    "stage 1 over dense": "stage_ratio",
    "thin feed-forwards": "ffn_kernel",
    "generating": "generation_speed",
    "a new token": "generation_prefix",
    "`--help`": "startup",
    "checkpoints at": "checkpoint_speed",
    "`prepare`": "prepare_throughput",
    "memory and time": "soak",
}


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_benchmark_prints_a_table(section, tmp_path):
    result = subprocess.run(
        [*section.command, *SHORT[section.name]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    needs_torch = section.name in {"against_torch", "generation_speed"}
    if needs_torch and importlib.util.find_spec("torch") is None:
        assert (result.returncode, result.stdout) == (SKIPPED, "")
        assert "is missing" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert "| --- |" in result.stdout
    assert "commit" in result.stdout


def test_every_table_has_a_section_of_its_own():
    names = [section.name for section in SECTIONS]
    assert sorted(names) == sorted(SHORT)


def test_output_takes_the_place_of_the_last_one_in_its_own_section():
    page = (
        "a\n<!-- bench: one.py -->\n\nold\n\n<!-- /bench -->\n"
        "b\n<!-- bench: one.py --big -->\n<!-- /bench -->\n"
    )
    first, second = read_sections(page)
    filled = fill(fill(page, first, "new\n"), second, "other")
    assert filled == (
        "a\n<!-- bench: one.py -->\n\nnew\n\n<!-- /bench -->\n"
        "b\n<!-- bench: one.py --big -->\n\nother\n\n<!-- /bench -->\n"
    )
    assert [section.name for section in read_sections(filled)] == ["one", "one"]


def run_all(page, scripts, monkeypatch, tmp_path):
    """Run `all.py` on a page and scripts of the test's own."""
    from benchmarks import all as bench

    for name, text in scripts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["all.py", "--pages", str(page)])
    bench.main()


def test_a_section_keeps_its_table_where_its_script_cannot_run(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    old = "<!-- bench: skips.py -->\n\nold\n\n<!-- /bench -->\n<!-- bench: runs.py -->\n"
    page.write_text(old + "<!-- /bench -->\n", encoding="utf-8")
    scripts = {"skips.py": f"raise SystemExit({SKIPPED})", "runs.py": "print('new')"}
    run_all(page, scripts, monkeypatch, tmp_path)
    assert page.read_text(encoding="utf-8") == old + "\nnew\n\n<!-- /bench -->\n"


def test_a_failing_script_is_told_after_the_others_have_run(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- bench: fails.py -->\n<!-- /bench -->\n<!-- bench: runs.py -->\n<!-- /bench -->\n",
        encoding="utf-8",
    )
    scripts = {"fails.py": "print('half'); raise SystemExit(1)", "runs.py": "print('new')"}
    with pytest.raises(SystemExit, match="failed: fails"):
        run_all(page, scripts, monkeypatch, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "new" in text
    assert "half" not in text


def test_size_curves_are_told_as_multiples_of_the_unchanged_size():
    curve = {
        layers: size_curves.Point([0.1 * layers, 0.2 * layers, 0.3 * layers], layers / 4)
        for layers in (1, 2, 4, 8)
    }
    rows = size_curves.table("layers", {"stage 1": curve})
    assert rows[0] == ["1 layers", "", "", "0.25 (0.25 to 0.25)", "0.25"]
    assert rows[3] == ["8 layers", "", "", "2.00 (2.00 to 2.00)", "2.00"]


def test_table_and_middle_half():
    assert markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert median_and_middle_half([4.0, 1.0, 2.0, 3.0, 5.0]) == "3.00 (2.00 to 4.00)"
    assert median_and_middle_half([1.234]) == "1.23"


@pytest.mark.parametrize(("target", "script"), TARGETS.items())
def test_the_summary_states_what_the_tables_say(target, script):
    page = PAGES[0].read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {target}")]
    stated = re.findall(r"\d+\.\d+", re.sub(r"\(.*?\)", "", row.split("|")[2]))
    section = page.split(f"<!-- bench: {script}.py -->")[1].split("<!-- /bench -->")[0]
    measured = [float(number) for number in re.findall(r"\d+\.\d+", section)]
    assert stated
    for number in stated:
        half = 0.501 * 10 ** -len(number.partition(".")[2])
        assert any(abs(float(number) - value) <= half for value in measured), number


@pytest.mark.parametrize(
    ("told", "processor"),
    [
        (
            "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\ncpu family\t: 9\n",
            "AMD EPYC (family 26, model 2)",
        ),
        ("model name\t: Kunpeng-920\n", "Kunpeng-920"),
    ],
)
def test_a_figure_names_the_generation_of_its_processor(told, processor, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(told, encoding="utf-8")
    monkeypatch.setattr(provenance, "CPUINFO_FILE", tmp_path / "cpuinfo")
    assert provenance.machine().startswith(f"{processor}, ")
