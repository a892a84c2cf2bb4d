"""The written report: complete for every state of a comparison, whole in one HTML file."""

import re
import xml.dom.minidom
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fastffn_cli.comparison.report import write_report
from fastffn_cli.comparison.results import StepTime
from tests.comparison.report_runs import OUT, arm, cheap, dense, results, run, unfinished


class Page(HTMLParser):
    """Tags that are open, attributes that name other files, and the text of the cells."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags, self.cells = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def table(markdown, heading):
    """Rows of the first table under a heading, as dictionaries."""
    part = markdown.split(f"## {heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n?)+", part, re.M)[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def full_comparison():
    sweep = [
        replace(run("narrow", 1, (4.0, loss), budget="sweep"), learning_rate=rate)
        for rate, loss in ((1e-3, 3.5), (3e-3, 3.4))
    ]
    downstream = [
        run(name, seed, (loss + seed / 100,), budget="downstream")
        for name, loss in (("none", 6.0), ("dense", 4.0), ("narrow", 3.9))
        for seed in (1, 2, 3)
    ]
    narrow = cheap((2.9, 3.01, 3.1), sweep=sweep, at_edge=True, learning_rate=3e-3)
    narrow = replace(
        narrow, runs=tuple(replace(each, switched_at=50, dense_steps=50) for each in narrow.runs)
    )
    return results(
        dense(), narrow, downstream=tuple(downstream), downstream_data="wikitext-2-tokens"
    )


def test_the_sentence_comes_first_in_both_files(tmp_path):
    report = write_report(full_comparison(), tmp_path)
    assert report.sentence.startswith("Pick narrow")
    assert report.markdown == report.markdown_path.read_text(encoding="utf-8")
    assert report.markdown.splitlines()[2].startswith("**Pick narrow")
    page = report.html_path.read_text(encoding="utf-8")
    assert page.index("Pick narrow") < page.index("<table")


def test_table_of_losses_and_times(tmp_path):
    rows = table(write_report(full_comparison(), tmp_path).markdown, "Equal tokens")
    baseline, narrow = rows
    assert baseline["arm"] == "dense (baseline)"
    assert baseline["final loss"] == "3.1000 ± 0.1000"
    assert narrow["difference to baseline (error)"] == "-0.0967 (0.0033)"
    assert narrow["seeds"] == "3 of 3"
    assert narrow["learning rate"] == "0.003 \\*"
    # Targets 3.1: 112.5 s plus 2/3, 0.8163, 1 of 37.5 s, over 200 s.
    assert narrow["time to its loss"] == "71.8% ± 3.1%"


def test_step_times_beside_what_flops_promise(tmp_path):
    _, narrow = table(write_report(full_comparison(), tmp_path).markdown, "Step times")
    assert narrow["stage 1: measured"] == "1.333"
    assert narrow["whole run: measured"] == "1.333 ± 0.000"
    (head,) = [
        line
        for line in write_report(full_comparison(), tmp_path).markdown.splitlines()
        if line.startswith("| narrow | narrow all the way")
    ]
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    assert cells[6] == "1.250"  # 1000 / 800
    assert cells[8] == "1.111 ± 0.000"  # half of the steps at 800, half at 1000


def test_sweep_and_its_edge(tmp_path):
    markdown = write_report(full_comparison(), tmp_path).markdown
    _, narrow = table(markdown, "Learning rates")
    assert narrow == {"arm": "narrow", "0.001": "3.5000", "0.003": "→ 3.4000"}
    assert "best rate of narrow lies at an edge" in markdown


def test_downstream_with_and_without_pre_training(tmp_path):
    rows = table(write_report(full_comparison(), tmp_path).markdown, "On other text")
    assert [row["begun from"] for row in rows] == ["no pre-training", "dense", "narrow"]
    none, base, narrow = rows
    assert base["perplexity"].startswith("55.7")  # exp(4.02)
    assert narrow["difference to baseline (error)"] == "-0.1000 (0.0000)"
    assert none["loss"] == "6.0200 ± 0.0100"


def test_html_is_whole_and_asks_nothing_of_the_network(tmp_path):
    text = write_report(full_comparison(), tmp_path).html_path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page.links)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "http" not in text.split("</style>")[0]


def test_markdown_figures_are_there(tmp_path):
    markdown = write_report(full_comparison(), tmp_path).markdown
    files = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(files) == 2
    for file in files:
        assert xml.dom.minidom.parse(str(tmp_path / file)).documentElement.tagName == "svg"


def test_nothing_else_is_written(tmp_path):
    write_report(full_comparison(), tmp_path)
    write_report(full_comparison(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures", "report.html", "report.md",
    ]  # fmt: skip


def test_the_same_results_give_the_same_files(tmp_path):
    first = write_report(full_comparison(), tmp_path / "a").html_path.read_bytes()
    assert first == write_report(full_comparison(), tmp_path / "b").html_path.read_bytes()


EVIL = '<script>alert(1)</script> & "x" | `y` *z* $\\alpha$ _u_ [a](javascript:b)\n# h'


def test_what_users_name_is_text(tmp_path):
    evil = cheap((2.9, 3.0, 3.1), name=EVIL, description=EVIL)
    report = write_report(
        results(dense(), evil, name=EVIL, machine=EVIL, model=EVIL, downstream_data=EVIL), tmp_path
    )
    page = Page(report.html_path.read_text(encoding="utf-8"))
    assert page.open == []
    assert "script" not in page.tags and "a" not in page.tags
    assert EVIL.replace("\n", " ") in page.cells
    for line in report.markdown.splitlines():
        assert "<script" not in line
        assert not re.search(r"(?<!\\)\]\(javascript", line)
        assert not line.startswith("# h")
    # A row has as many cells as its heading: the bar in the name is escaped.
    rows = [line for line in report.markdown.splitlines() if "alert" in line and line[0] == "|"]
    heads = [line for line in report.markdown.splitlines() if line.startswith("| arm |")]
    assert len(re.split(r"(?<!\\)\|", rows[0])) == len(re.split(r"(?<!\\)\|", heads[0]))


def test_ordinary_names_stay_readable(tmp_path):
    arms = (dense(), cheap((2.9, 3.0, 3.1), name="low_rank_8"))
    assert "| low_rank_8 |" in write_report(results(*arms), tmp_path).markdown


def half_done():
    narrow = arm(
        "narrow",
        [
            run("narrow", 1, (4.0, 2.9), step_s=1.5),
            unfinished("narrow", 2, problem="diverged at step 12"),
        ],
        step_s=1.5,
    )
    begun = arm("monarch", [unfinished("monarch", 1)])
    return results(dense((3.0, 3.1)), narrow, begun)


def test_unfinished_and_diverged_runs_are_named(tmp_path):
    report = write_report(half_done(), tmp_path)
    assert "narrow, tokens, seed 2, learning rate 0.001: diverged at step 12" in report.markdown
    assert "monarch, tokens, seed 1" in report.markdown
    assert "unfinished: step 40 of 100" in report.markdown
    assert "dense, equal tokens, seed 3: not run" in report.markdown
    rows = {row["arm"]: row for row in table(report.markdown, "Equal tokens")}
    assert rows["narrow"]["seeds"] == "1 of 3, 1 diverged"
    assert rows["narrow"]["final loss"] == "2.9000 (one seed)"
    # 4.0 at 75 s, 2.9 at 150 s: 3.0 at 143.2 s of 200 s.
    assert rows["narrow"]["time to its loss, paired"] == (
        "71.6% (one seed), not reached with 1 of 2 seeds"
    )
    assert rows["monarch"]["final loss"] == "–"
    assert "Pick" not in report.sentence


def test_a_loss_that_is_not_reached_is_said_so(tmp_path):
    report = write_report(results(dense(), cheap((3.3, 3.3, 3.4))), tmp_path)
    _, narrow = table(report.markdown, "Equal tokens")
    assert narrow["time to its loss"] == "not reached"


@pytest.mark.parametrize(
    "arms",
    [
        (arm("dense"), arm("narrow")),
        (arm("dense", [unfinished("dense", 1)]), arm("narrow")),
        (dense((3.0,)),),
        (arm("dense", [replace(unfinished("dense", 1), evals=())]), cheap((3.0,))),
        (dense((3.0,)), arm("narrow", learning_rate=None, stage1_step=StepTime(0, 0, 0))),
        (dense((float("nan"), 3.0)), cheap((float("inf"), 2.0))),
    ],
)
def test_a_report_is_written_however_little_is_there(arms, tmp_path):
    report = write_report(results(*arms), tmp_path)
    assert report.html_path.exists()
    assert not re.search(r"\bnan\b", report.markdown.split("## All runs")[0])


def test_seconds_budget_has_its_own_table_and_figure(tmp_path):
    runs = [run("narrow", 1, (4.0, 2.9), step_s=1.5, steps=133, budget="seconds")]
    markdown = write_report(results(dense(), arm("narrow", runs)), tmp_path).markdown
    baseline, narrow = table(markdown, "Equal seconds")
    assert narrow["final loss"] == "2.9000 (one seed)"
    assert baseline["final loss"] == "3.1000 ± 0.1000"
    assert "## Equal tokens" not in markdown
    assert (tmp_path / "figures" / "equal-seconds-loss-by-seconds.svg").exists()


def test_setting_is_stated(tmp_path):
    markdown = write_report(full_comparison(), tmp_path).markdown
    for stated in ("2 cores of a test", "paddle 3.3.1", "abc1234", "Seeds: 1, 2, 3", "calibrated"):
        assert stated in markdown
    assert f"{OUT}" not in markdown  # folders are named below the comparison's own
    assert "runs/dense-tokens-1" in markdown
