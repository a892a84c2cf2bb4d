"""`fastffn rank-table`: streams, exit codes, files, options."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import FIXTURES_DIR, Outcome, Workplace

TABLES = FIXTURES_DIR / "rank_tables"
WHOLE = TABLES / "hccl_4s_32p.json"
PARTS = [TABLES / f"hccl_8p_01234567_10.155.111.14{machine}.json" for machine in range(4)]
OPTIONS = {
    "make": ["--device-ips", "--devices", "--json", "--out", "--server-ip"],
    "merge": ["--json", "--out", "TABLES"],
    "check": ["--base-port", "--dp-degree", "--json", "--mp-degree", "--node", "--pp-degree",
              "--rank-size", "--sharding-degree", "FILE"],
}  # fmt: skip

Call = Callable[..., Outcome]


def test_options_are_frozen() -> None:
    from typer.main import get_command

    from fastffn_cli.commands.rank_table import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    declared = {
        name: sorted(
            option.opts[0] if option.opts[0].startswith("-") else option.name.upper()
            for option in command.params
        )
        for name, command in commands.items()
    }
    assert declared == OPTIONS


def test_merge_writes_the_originals_file_and_prints_its_path(
    fastffn: Call, workplace: Workplace
) -> None:
    done = fastffn("rank-table", "merge", *PARTS)
    assert (done.code, done.out) == (0, "hccl_4s_32p.json\n")
    assert "4 machines, 32 cards" in done.err
    assert (workplace.dir / "hccl_4s_32p.json").read_bytes() == WHOLE.read_bytes()


def test_merge_never_overwrites(fastffn: Call, workplace: Workplace) -> None:
    (workplace.dir / "hccl_4s_32p.json").write_text("mine")
    done = fastffn("rank-table", "merge", *PARTS)
    assert done.code == 2
    assert (workplace.dir / "hccl_4s_32p.json").read_text() == "mine"


def test_merge_says_what_it_leaves_out(fastffn: Call, workplace: Workplace) -> None:
    document = json.loads(PARTS[0].read_text())
    (workplace.dir / "part.json").write_text(json.dumps({**document, "job": "mine"}))
    done = fastffn("rank-table", "merge", "part.json", PARTS[1], "--json")
    assert json.loads(done.out) == {"path": "hccl_2s_16p.json", "servers": 2, "cards": 16}
    assert "left out of the merged table: job" in done.err


def test_make_by_hand_writes_the_originals_file(fastffn: Call, workplace: Workplace) -> None:
    addresses = ",".join(f"192.{card + 1}.27.7" for card in range(4))
    done = fastffn(
        "rank-table", "make", "--devices", "4-7", "--device-ips", addresses,
        "--server-ip", "10.155.111.140", "--out", "tables",
    )  # fmt: skip
    name = "hccl_4p_4567_10.155.111.140.json"
    assert (done.code, done.out) == (0, f"tables/{name}\n")
    assert (workplace.dir / "tables" / name).read_bytes() == (TABLES / name).read_bytes()


def test_make_asks_hccn_tool(
    fastffn: Call, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = workplace.dir / "bin" / "hccn_tool"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "ipaddr:192.$(($2 % 4 + 1)).27.$(($2 / 4 + 6))"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    done = fastffn("rank-table", "make", "--server-ip", "10.155.111.140", "--json")
    assert json.loads(done.out) == {"path": PARTS[0].name, "servers": 1, "cards": 8}
    assert (workplace.dir / PARTS[0].name).read_bytes() == PARTS[0].read_bytes()


def test_make_without_cards_says_what_to_type(
    fastffn: Call, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    if Path("/etc/hccn.conf").exists() or shutil.which("hccn_tool"):
        pytest.skip("this machine has Ascend cards")
    before = sorted(workplace.dir.iterdir())
    done = fastffn("rank-table", "make")
    assert done.code == 2 and done.out == ""
    assert "--device-ips reserve" in done.err
    assert sorted(workplace.dir.iterdir()) == before


def test_make_reserves_addresses_on_a_machine_without_ascend_cards(
    fastffn: Call, workplace: Workplace
) -> None:
    done = fastffn(
        "rank-table", "make", "--devices", "0-5", "--device-ips", "reserve",
        "--server-ip", "10.0.0.1",
    )  # fmt: skip
    assert done.code == 0
    table = json.loads((workplace.dir / "hccl_6p_012345_10.0.0.1.json").read_text())
    assert {card["device_ip"] for card in table["server_list"][0]["device"]} == {"reserve"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "2-5", "--device-ips", "1.1.1.1,2.2.2.2"], "both boards"),
        (["--devices", "0-1", "--device-ips", "1.1.1.1"], "1 addresses, and --devices 2 cards"),
        (["--devices", "0-1", "--device-ips", "1.1.1.1,1.1.1.1"], '"1.1.1.1" is at'),
        (["--devices", "0-1", "--device-ips", "1.1.1.1,x"], "no IP address"),
        (["--devices", "0", "--device-ips", "1.1.1.1", "--server-ip", "../up"], "no address"),
    ],
)  # fmt: skip
def test_make_refuses_what_no_job_can_start_from(
    fastffn: Call, workplace: Workplace, arguments: list[str], said: str
) -> None:
    before = sorted(workplace.dir.iterdir())
    done = fastffn("rank-table", "make", "--server-ip", "10.0.0.1", *arguments)
    assert done.code == 2
    assert said in done.err
    assert sorted(workplace.dir.iterdir()) == before


def test_check_shows_machines_and_exits_with_0(fastffn: Call) -> None:
    done = fastffn(
        "rank-table", "check", WHOLE, "--rank-size", "32",
        "--dp-degree", "4", "--mp-degree", "2", "--pp-degree", "4", "--node", "10.155.111.141",
    )  # fmt: skip
    assert done.code == 0
    assert "4 machines, 32 cards" in done.out
    assert "1 *" in done.out and "24-31" in done.out
    assert "rank 0 listens at 10.155.111.140:6070" in done.err


def test_check_as_json_lists_the_endpoints(fastffn: Call) -> None:
    done = fastffn("rank-table", "check", WHOLE, "--base-port", "7000", "--json")
    described = json.loads(done.out)
    assert set(described) == {
        "path", "servers", "cards", "master", "node", "nodes", "endpoints",
    }  # fmt: skip
    assert described["node"] is None
    assert described["nodes"][1]["ranks"] == list(range(8, 16))
    assert described["endpoints"][8] == "10.155.111.141:7000"


def test_check_reports_every_problem_with_exit_code_2(fastffn: Call, workplace: Workplace) -> None:
    text = WHOLE.read_text().replace('"completed"', '"initializing"').replace("192.1.27.8", "x")
    (workplace.dir / "bad.json").write_text(text)
    done = fastffn("rank-table", "check", "bad.json", "--dp-degree", "16")
    assert done.code == 2 and done.out == ""
    assert "3 problems" in done.err
    assert "bad.json: status  " in done.err
    assert "bad.json: server_list[1].device[0].device_ip  " in done.err
    assert "dp 16 need 16" in done.err


def test_check_of_a_machine_that_is_not_there_is_an_error(fastffn: Call) -> None:
    done = fastffn("rank-table", "check", WHOLE, "--node", "10.155.111.150")
    assert done.code == 2
    assert "10.155.111.143" in done.err


@pytest.mark.slow
def test_paddle_is_never_imported() -> None:
    program = (
        "import sys\n"
        "from fastffn_cli.app import main\n"
        f"sys.argv = ['fastffn', 'rank-table', 'check', {str(WHOLE)!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('paddle' in sys.modules or 'numpy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
