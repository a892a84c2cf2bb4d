"""A launch of tiny workers, as a program: `python launch_scene.py LOGS NPROC RESTARTS MODE ...`.

`worker MODE ...` is one of its processes. Both are run by `test_launcher.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 60.0


def start(logs: str, nproc: str, restarts: str, *mode: str) -> None:
    from fastffn_cli import ui
    from fastffn_cli.distributed.launch_plan import plan_by_hand
    from fastffn_cli.distributed.launcher import Job, launch
    from fastffn_cli.errors import FastFFNError

    first, again = (
        [sys.executable, __file__, "worker", name, *mode] for name in ("first", "again")
    )
    plan = plan_by_hand(device="cpu", nproc=int(nproc))
    try:
        launch(
            plan,
            Job(first, again, lambda: "from step 7"),
            Path(logs),
            max_restarts=int(restarts),
        )
    except FastFFNError as error:
        ui.show_error(error)
        sys.exit(error.exit_code)


def work(turn: str, mode: str, *details: str) -> None:
    from fastffn_cli.distributed.failure import leave_record
    from fastffn_cli.errors import Diverged

    rank = int(os.environ["PADDLE_TRAINER_ID"])
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    print(json.dumps({"rank": rank, "turn": turn, "variables": dict(os.environ)}), flush=True)
    print(f"talk of rank {rank}", file=sys.stderr, flush=True)
    if mode == "done" or (mode == "killed-once" and turn == "again"):
        return
    if mode == "killed-once" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "diverged" and rank == 1:
        time.sleep(1.0)  # after rank 0 has lost the connection, as it may come about
        error = Diverged("the loss is not a number", hint="lower the rate")
        leave_record(error)
        sys.exit(error.exit_code)
    if mode == "diverged":
        lost = RuntimeError("gloo/transport/tcp/pair.cc:576 Read error: Connection reset by peer")
        leave_record(lost)
        raise lost
    until = time.monotonic() + PATIENCE_S
    while not asked and time.monotonic() < until:
        time.sleep(0.05)
    if asked:
        time.sleep(float(details[0]) if details else 0.0)
        print(f"rank {rank} has saved", file=sys.stderr, flush=True)
        sys.exit(143)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # not this folder
    (work if sys.argv[1] == "worker" else start)(*sys.argv[2 if sys.argv[1] == "worker" else 1 :])
