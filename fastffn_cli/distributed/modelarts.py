"""ModelArts (Huawei Cloud, and AICC centres): what a job's environment and flags say.

Two ways a job comes. Ascend-Powered-Engine runs the boot file once a card and names a rank table
(RANK_TABLE_FILE, RANK_ID, RANK_SIZE, ASCEND_DEVICE_ID: the vendor's page "Starting a Preset Image's
Boot File"); GPU and custom images run it once a machine and name the machines (VC_WORKER_HOSTS,
VC_TASK_INDEX, MA_NUM_GPUS). Nothing here starts a process or looks at the machine, but for reading
the table.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastffn_cli.distributed.cluster import ClusterLayout, Node
from fastffn_cli.distributed.rank_table import read_rank_table
from fastffn_cli.errors import ConfigError

SOURCE = "the environment of this ModelArts job"
# MindFormers r0.3 knows the platform by any of these.
SIGNS = (
    "MA_LOG_DIR",
    "MA_JOB_DIR",
    "MA_LOCAL_LOG_PATH",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "BATCH_GROUP_NAME",
)
LOOPBACK = "127.0.0.1"

INPUT_FLAGS = ("--data_url", "--dataset", "--dataset_dir")
NAME_FLAG = "--dataset_id"
OUTPUT_FLAG = "--train_url"
PASSED_ON = ("--config", "-c", "--override", "-o", "--device", "--from", "--resume")
REMOTE = ("obs://", "s3://")


def runs_on_modelarts(environment: Mapping[str, str]) -> bool:
    """Whether this is a ModelArts job; no variable's value is looked at."""
    return any(name in environment for name in SIGNS)


def must_stand_by(environment: Mapping[str, str]) -> bool:
    """Whether this process must end at once: another card's one starts this machine's workers."""
    return environment.get("ASCEND_DEVICE_ID", "0").strip() != "0"


def read_layout(environment: Mapping[str, str]) -> ClusterLayout:
    """Find machines, cards and this machine's place among them.

    A rank table that the platform names goes first. Raises `ConfigError` with every variable that
    is missing or contradicts another one.
    """
    variables = _Variables(environment)
    file = environment.get("RANK_TABLE_FILE", "").strip()
    layout = _from_table(variables, Path(file)) if file else _from_hosts(variables)
    if variables.problems or layout is None:
        raise ConfigError(SOURCE, variables.problems)
    return layout


class _Variables:
    """Numbers out of an environment, and what is wrong with them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[str] = []

    def number(self, name: str, *, least: int = 0) -> int | None:
        text = self.environment.get(name, "").strip()
        if not text:
            return None
        if re.fullmatch(r"[0-9]{1,6}", text) and int(text) >= least:
            return int(text)
        self.problems.append(f"{name}  is {text!r}, and must be a number of at least {least}")
        return None


def _from_table(variables: _Variables, file: Path) -> ClusterLayout | None:
    rank_size, rank = variables.number("RANK_SIZE", least=1), variables.number("RANK_ID")
    try:
        table = read_rank_table(file, rank_size=rank_size)
    except ConfigError as error:
        variables.problems += error.problems
        return None
    if rank is not None:
        for index, node in enumerate(table.nodes):
            if rank in node.ranks:
                return ClusterLayout(table.nodes, index)
        variables.problems.append(f"RANK_ID  is {rank}, and {file} has no such rank")
        return None
    if variables.problems:
        return None
    return _place_by_address(variables, table.nodes, file)


def _place_by_address(
    variables: _Variables, nodes: tuple[Node, ...], file: Path
) -> ClusterLayout | None:
    """Find this machine without RANK_ID: a boot file that runs once a machine."""
    address = variables.environment.get("MA_CURRENT_IP", "").strip()
    hosts = [node.host for node in nodes]
    if len(nodes) == 1:
        return ClusterLayout(nodes, 0)
    if address in hosts:
        return ClusterLayout(nodes, hosts.index(address))
    said = f"MA_CURRENT_IP {address} is none of its machines" if address else "no MA_CURRENT_IP"
    variables.problems.append(
        f"RANK_ID  is missing, and {said}: which of the {len(nodes)} machines of {file} is this?"
    )
    return None


def _from_hosts(variables: _Variables) -> ClusterLayout | None:
    environment, problems = variables.environment, variables.problems
    listed = [host.strip() for host in environment.get("VC_WORKER_HOSTS", "").split(",")]
    hosts = [host for host in listed if host]
    cards = variables.number("MA_NUM_GPUS", least=1)
    index = variables.number("VC_TASK_INDEX")
    counts = {name: variables.number(name, least=1) for name in ("VC_WORKER_NUM", "MA_NUM_HOSTS")}
    if len(set(hosts)) != len(hosts):
        problems.append(f"VC_WORKER_HOSTS  names a machine twice: {', '.join(hosts)}")
    for name, count in counts.items():
        if count is not None and count != max(len(hosts), 1):
            problems.append(f"{name}  is {count}, and VC_WORKER_HOSTS names {len(hosts)} machines")
    if cards is None and not environment.get("MA_NUM_GPUS", "").strip():
        problems.append("MA_NUM_GPUS  is missing: how many cards has a machine?")
    if not hosts:
        hosts = [environment.get("MA_CURRENT_IP", "").strip() or LOOPBACK]
    if index is None and len(hosts) > 1 and not environment.get("VC_TASK_INDEX", "").strip():
        problems.append(f"VC_TASK_INDEX  is missing: which of the {len(hosts)} machines is this?")
    if index is not None and index >= len(hosts):
        problems.append(f"VC_TASK_INDEX  is {index}, and machines are 0 to {len(hosts) - 1}")
    if problems or cards is None:
        return None
    devices = tuple(range(cards))
    nodes = tuple(
        Node(host, devices, tuple(range(number * cards, (number + 1) * cards)))
        for number, host in enumerate(hosts)
    )
    return ClusterLayout(nodes, index or 0)


@dataclass(frozen=True)
class JobArguments:
    """What a job's flags mean here."""

    input_dir: str | None  # for Data.dataset.input_dir
    output_dir: str | None  # for Engine.save_load.output_dir
    passed_on: tuple[str, ...]  # options of this program, as they were written
    notices: tuple[str, ...]


def read_arguments(
    arguments: Sequence[str], passed_on: Collection[str] = PASSED_ON
) -> JobArguments:
    """Read the flags of a boot file: `--name=value`, or `--name value`.

    `--data_url`, `--dataset` and `--dataset_dir` are the training input, `--dataset_id` is a data
    set inside of it, `--train_url` the output; options in `passed_on` are kept; any other flag is
    left out with a notice, because the platform adds flags of its own. Raises `ConfigError` for
    contradicting flags, and for object storage that nobody has fetched.
    """
    problems: list[str] = []
    places: dict[str, str] = {}
    kept: list[str] = []
    ignored: list[str] = []
    for name, value, words in _split(arguments):
        if name in (*INPUT_FLAGS, NAME_FLAG, OUTPUT_FLAG):
            if not value:
                problems.append(f"{name}  has no value")
            elif places.setdefault(name, value) != value:
                problems.append(f"{name}  is {places[name]} and {value}")
        elif name in passed_on:
            kept += words
        else:
            ignored.append(name)
    problems += [
        f"{name}  is {value}, which is not on this machine: let the platform fetch it (an input "
        "of the training job), and name the folder"
        for name, value in places.items()
        if value.lower().startswith(REMOTE)
    ]
    inputs = {name: places[name] for name in INPUT_FLAGS if name in places}
    if len(set(inputs.values())) > 1:
        spelled = ", ".join(f"{name} {value}" for name, value in inputs.items())
        problems.append(f"{spelled}  are different inputs: give one")
    if problems:
        raise ConfigError("the flags of this ModelArts job", problems)
    parts = [*list(inputs.values())[:1], *filter(None, [places.get(NAME_FLAG)])]
    return JobArguments(
        input_dir=str(Path(*parts)) if parts else None,
        output_dir=places.get(OUTPUT_FLAG),
        passed_on=tuple(kept),
        notices=(f"flags of ModelArts left out: {', '.join(ignored)}",) if ignored else (),
    )


def _split(arguments: Sequence[str]) -> list[tuple[str, str | None, list[str]]]:
    """Cut a command line into (flag, value, its words); a word that belongs to no flag is one."""
    flags: list[tuple[str, str | None, list[str]]] = []
    for word in arguments:
        if word.startswith("-") and len(word) > 1:
            name, equals, value = word.partition("=")
            flags.append((name, value if equals else None, [word]))
        elif flags and flags[-1][1] is None and flags[-1][0].startswith("-"):
            name, _, words = flags[-1]
            flags[-1] = (name, word, [*words, word])
        else:
            flags.append((word, "", [word]))
    return flags
