"""The checks of `doctor` for Ascend: driver, CANN, versions that must match, environment.

Nothing here imports paddle or calls CANN, so that a machine on which either does not start still
gets its answer. What is looked at, and where it stands: Huawei's CANN 8.0 installation guide
("File Paths"), ascend-toolkit's `set_env.sh`, and PaddleCustomDevice's issues (docs/ascend.md).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from fastffn_cli.engine.diagnose import NPU_PACKAGE, Check
from fastffn_cli.engine.paddle_build import INSTALL_NPU

DRIVER_RECORD = Path("/etc/ascend_install.info")
ASCEND_DIR = Path("/usr/local/Ascend")
SMI_TIMEOUT_S = 20

CANN_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
VISIBLE_CARDS = "ASCEND_RT_VISIBLE_DEVICES"
LIBRARY_PATH = "LD_LIBRARY_PATH"
PLUGIN_ROOT = "CUSTOM_DEVICE_ROOT"
# What PaddleNLP's scripts for Ascend and the plugin read; told, not judged.
TOLD_VARIABLES = (
    "FLAGS_npu_jit_compile", "FLAGS_npu_storage_format", "FLAGS_use_stride_kernel",
    "FLAGS_allocator_strategy", "CUSTOM_DEVICE_BLACK_LIST", "HCCL_DETERMINISTIC",
)  # fmt: skip

# CANN that the plugin of a Paddle release was built with, as far as it is known (docs/ascend.md).
CANN_OF_PADDLE = {"2.6": "7", "3.0": "8.0", "3.3": "8.0"}

DRIVER_REMEDY = (
    "Install the driver and firmware of the card; in a container, mount /usr/local/Ascend/driver, "
    "/usr/local/dcmi and npu-smi, and pass /dev/davinci* (docs/ascend.md)"
)
CANN_REMEDY = (
    "Install CANN 8.0.0 (toolkit and kernels), then: "
    "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
)
SET_ENV_REMEDY = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"


@dataclass(frozen=True)
class Cards:
    """What `npu-smi info` says: its version, and the health of each card by its number."""

    version: str
    health: dict[int, str]


def check_ascend(*, works: bool) -> Iterator[Check]:
    """Yield all checks; `works` says that the device is there and trains.

    What is missing then stops nothing, and is a note: npu-smi is often absent in containers.
    """
    cards, cann = read_cards(), check_cann()
    paths = check_paths() if cann.status == "ok" else ()  # else they are wrong for the same reason
    for check in (check_driver(cards), cann, *paths, *check_environment(cards)):
        yield replace(check, status="note") if works and check.status == "problem" else check
    yield check_versions(works=works)


def read_cards() -> Cards | str:
    """Ask npu-smi; a text says why there is no answer."""
    program = shutil.which("npu-smi")
    if program is None:
        return "npu-smi is not on the PATH"
    try:
        done = subprocess.run(
            [program, "info"], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npu-smi does not answer: {error}"
    version = re.search(r"Version:\s*(\S+)", done.stdout)
    if done.returncode != 0 or version is None:
        said = " ".join((done.stdout + " " + done.stderr).split())
        return f"npu-smi info fails (exit code {done.returncode}): {said[-200:]}"
    rows = re.findall(r"^\|\s*(\d+)\s+\S+\s*\|\s*([A-Za-z]+)\s*\|", done.stdout, re.MULTILINE)
    return Cards(version[1], {int(number): health for number, health in rows})


def check_driver(cards: Cards | str) -> Check:
    """The driver's version, and the cards it shows."""
    version = driver_version()
    told = f"driver {version}, " if version else ""
    if isinstance(cards, str):
        return Check("npu driver", "problem", told + cards, DRIVER_REMEDY)
    told = told or f"npu-smi {cards.version}, "
    if not cards.health:
        return Check("npu driver", "problem", f"{told}no card", DRIVER_REMEDY)
    ill = [f"{number}: {health}" for number, health in cards.health.items() if health != "OK"]
    if ill:
        remedy = "npu-smi info -t health -i N   tells more; a reset or the log of the driver helps"
        return Check("npu driver", "problem", f"{told}card {', '.join(ill)}", remedy)
    count = len(cards.health)
    return Check("npu driver", "ok", f"{told}{count} card{'s' if count > 1 else ''}, health OK")


def driver_version() -> str | None:
    """Read the version file of the driver that is installed here."""
    found = _read_value(DRIVER_RECORD, "Driver_Install_Path_Param")
    return _read_value(Path(found or ASCEND_DIR) / "driver" / "version.info", "Version")


def check_cann() -> Check:
    """CANN's folder and version."""
    given = [(name, os.environ[name]) for name in CANN_HOMES if os.environ.get(name)]
    if not given:
        there = sorted(ASCEND_DIR.glob("ascend-toolkit/set_env.sh"))
        there += sorted(ASCEND_DIR.glob("cann*/set_env.sh"))
        remedy = f"source {there[0]}" if there else CANN_REMEDY
        return Check("cann", "problem", f"{' and '.join(CANN_HOMES)} are not set", remedy)
    for name, folder in given:
        if not Path(folder).is_dir():
            return Check("cann", "problem", f"{name}={folder}: no such folder", CANN_REMEDY)
    version = cann_version()
    if version is None:
        detail = f"{given[0][1]} does not tell its version"
        return Check("cann", "problem", detail, f"Is it a whole installation? {CANN_REMEDY}")
    return Check("cann", "ok", f"{version} in {given[0][1]}")


def cann_version() -> str | None:
    """Return e.g. `8.0.0` or `8.0.RC2`, from the files that CANN's installers leave."""
    for name in CANN_HOMES:
        if not (folder := os.environ.get(name)):
            continue
        home = Path(folder)
        for file in sorted(home.glob("*-linux/ascend_toolkit_install.info")):
            if version := _read_value(file, "version"):
                return version
        # toolkit_running_version=[7.6.0.1.220:8.0.0]
        running = _read_value(home / "version.cfg", "toolkit_running_version")
        if running and (found := re.search(r":([^\]:]+)\]$", running)):
            return found[1]
    return None


def check_versions(*, works: bool) -> Check:
    """paddlepaddle against the plugin, and both against CANN."""
    paddle, plugin = _version("paddlepaddle"), _version(NPU_PACKAGE)
    told = f"paddlepaddle {paddle or 'absent'}, {NPU_PACKAGE} {plugin or 'absent'}"
    told += f", CANN {cann_version() or 'unknown'}"
    if _version("paddlepaddle-gpu"):
        detail = f"paddlepaddle-gpu is installed; the plugin extends the CPU build ({told})"
        remedy = f"pip uninstall -y paddlepaddle paddlepaddle-gpu   then: {INSTALL_NPU}"
        return Check("npu versions", "problem", detail, remedy)
    if plugin is None or paddle is None:
        return Check("npu versions", "note" if works else "problem", told, INSTALL_NPU)
    if _minor(paddle) != _minor(plugin):
        detail = f"{told}: the first two must be of one release"
        remedy = f'pip install "{NPU_PACKAGE}=={_minor(paddle)}.*"   or the paddlepaddle it fits'
        return Check("npu versions", "problem", detail, remedy)
    known, cann = CANN_OF_PADDLE.get(_minor(plugin)), cann_version()
    if known is None or cann is None:
        remedy = "docs/ascend.md has the combinations that are known"
        return Check("npu versions", "note", f"{told}: nothing is known of this one", remedy)
    if cann != known and not cann.startswith(f"{known}."):
        detail = f"{told}: this plugin was built with CANN {known}"
        remedy = f"Install CANN {known}.0, or a plugin that was built with {cann}"
        return Check("npu versions", "note" if works else "problem", detail, remedy)
    return Check("npu versions", "ok", told)


def check_paths() -> Iterator[Check]:
    """The paths that CANN's `set_env.sh` sets; one check for each that is wrong."""
    folders = [Path(text) for text in os.environ.get(LIBRARY_PATH, "").split(":") if text]
    if not any((folder / "libascendcl.so").exists() for folder in folders):
        detail = "no folder of it has libascendcl.so, which the plugin loads"
        yield Check(LIBRARY_PATH, "problem", detail, SET_ENV_REMEDY)
    operators = os.environ.get("ASCEND_OPP_PATH")
    if operators is None or not Path(operators).is_dir():
        detail = f"{operators}: no such folder" if operators else "not set: CANN finds no operators"
        yield Check("ASCEND_OPP_PATH", "problem", detail, SET_ENV_REMEDY)


def check_environment(cards: Cards | str) -> Iterator[Check]:
    """The other variables of CANN, Paddle and the plugin; one check for each that is wrong."""
    yield from _check_visible_cards(cards)
    plugins = os.environ.get(PLUGIN_ROOT)
    if plugins and not any(Path(plugins).glob("*.so")):
        detail = f"{plugins} has no plugin (*.so)"
        yield Check(PLUGIN_ROOT, "problem", detail, f"unset {PLUGIN_ROOT}")
    if platform.machine() == "aarch64" and "libgomp" not in os.environ.get("LD_PRELOAD", ""):
        detail = "without libgomp, which Paddle's Ascend guide preloads on aarch64"
        remedy = "export LD_PRELOAD=/usr/lib/aarch64-linux-gnu/libgomp.so.1"
        yield Check("LD_PRELOAD", "note", detail, remedy)
    given = [f"{name}={os.environ[name]}" for name in TOLD_VARIABLES if name in os.environ]
    yield Check("npu flags", "ok", ", ".join(given) or "none set")


def _check_visible_cards(cards: Cards | str) -> Iterator[Check]:
    visible = os.environ.get(VISIBLE_CARDS)
    if visible is None:
        return
    remedy = f"unset {VISIBLE_CARDS}   or name cards by their numbers, such as 0,1"
    if not re.fullmatch(r"\d+([-,]\d+)*", visible):
        yield Check(VISIBLE_CARDS, "problem", f"'{visible}' names no card", remedy)
        return
    wanted = {int(number) for number in re.findall(r"\d+", visible)}
    absent = sorted(wanted - cards.health.keys()) if isinstance(cards, Cards) else []
    if absent:
        detail = f"{visible}: npu-smi shows no card {', '.join(map(str, absent))}"
        yield Check(VISIBLE_CARDS, "problem", detail, remedy)


def _read_value(file: Path, key: str) -> str | None:
    """Return the value of the first line `key=value` of a file, None without one."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, found, value = line.partition("=")
        if found and name.strip() == key:
            return value.strip() or None
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
