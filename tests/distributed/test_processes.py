"""The starter of real processes tells what went wrong in them, and leaves none behind."""

import time

import psutil
import pytest

from tests.distributed.processes import run_processes

FAILING = """\
import os, sys, time
if os.environ["PADDLE_TRAINER_ID"] == "1":
    sys.exit("rank one is broken")
time.sleep(60)
"""


def write(folder, text):
    script = folder / "member_of_a_test.py"
    script.write_text(text)
    return script


@pytest.mark.slow
def test_every_process_answers_with_its_rank_and_arguments(tmp_path):
    script = write(
        tmp_path,
        "import json, os, sys\n"
        'print(json.dumps([os.environ["PADDLE_TRAINER_ID"], sys.argv[1], os.environ["MORE"]]))\n',
    )
    done = run_processes(script, ["word"], 3, env={"MORE": "x"})
    assert [member.answer for member in done] == [[str(rank), "word", "x"] for rank in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [(FAILING, "rank one is broken"), ("import time; time.sleep(60)", "not done after 2 s")],
    ids=["failing", "hanging"],
)
def test_a_failure_is_told_at_once_and_the_others_are_ended(tmp_path, text, message):
    script, begun = write(tmp_path, text), time.monotonic()
    with pytest.raises(AssertionError, match=message):
        run_processes(script, [], 2, timeout=2)
    assert time.monotonic() - begun < 20
    left = [each for each in psutil.Process().children() if str(script) in each.cmdline()]
    assert left == []
