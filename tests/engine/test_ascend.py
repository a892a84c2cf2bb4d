"""What `doctor` finds out about Ascend, on machines that are made of folders and variables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastffn_cli.engine import ascend, paddle_build
from fastffn_cli.engine.diagnose import Check

INFO = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 23.0.3                   Version: 23.0.3                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 91.2        38                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3162 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | {health:<14}| 90.1        37                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3162 / 65536         |
+===========================+===============+====================================================+
"""
VARIABLES = (
    *ascend.CANN_HOMES, *ascend.TOLD_VARIABLES, ascend.VISIBLE_CARDS, ascend.LIBRARY_PATH,
    ascend.PLUGIN_ROOT, "ASCEND_OPP_PATH", "LD_PRELOAD",
)  # fmt: skip


class Machine:
    """A machine with two cards, CANN 8.0.0 and a whole environment; tests take things away."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.versions = {"paddlepaddle": "3.3.1", "paddle-custom-npu": "3.3.0"}
        self.cann_dir = folder / "ascend-toolkit" / "8.0.0"
        for variable in VARIABLES:
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setattr(ascend, "ASCEND_DIR", folder)
        monkeypatch.setattr(ascend, "DRIVER_RECORD", folder / "ascend_install.info")
        monkeypatch.setattr(ascend, "_version", self.versions.get)
        monkeypatch.setattr(ascend.platform, "machine", lambda: "x86_64")
        self.write(
            "ascend_install.info", f"UserName=HwHiAiUser\nDriver_Install_Path_Param={folder}\n"
        )
        self.write("driver/version.info", "Version=23.0.3\nascendhal_version=7.35.19\n")
        self.write("ascend-toolkit/set_env.sh", "")
        self.write(
            "ascend-toolkit/8.0.0/aarch64-linux/ascend_toolkit_install.info",
            "package_name=Ascend-cann-toolkit\nversion=8.0.0\ninnerversion=V100R001C20\n",
        )
        self.write("ascend-toolkit/8.0.0/lib64/libascendcl.so", "")
        self.write("ascend-toolkit/8.0.0/opp/version.info", "")
        self.answer(INFO.format(health="OK"))
        self.set("ASCEND_TOOLKIT_HOME", self.cann_dir)
        self.set("ASCEND_OPP_PATH", self.cann_dir / "opp")
        self.set("LD_LIBRARY_PATH", f"/somewhere:{self.cann_dir / 'lib64'}")

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def answer(self, text: str, code: int = 0) -> None:
        """Let npu-smi print `text`."""
        said = self.write("said.txt", f"{text}\n")
        # The PATH has nothing else: the shell alone must do.
        script = (
            f'#!/bin/sh\nwhile IFS= read -r line; do echo "$line"; done < {said}\nexit {code}\n'
        )
        self.write("bin/npu-smi", script).chmod(0o755)

    def set(self, variable: str, value: object) -> None:
        self.monkeypatch.setenv(variable, str(value))

    def unset(self, variable: str) -> None:
        self.monkeypatch.delenv(variable)

    def checks(self, *, works: bool = False) -> dict[str, Check]:
        return {check.name: check for check in ascend.check_ascend(works=works)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    return Machine(tmp_path, monkeypatch)


def test_a_whole_installation_is_ok(machine: Machine) -> None:
    machine.set("FLAGS_npu_jit_compile", "False")
    machine.set("ASCEND_RT_VISIBLE_DEVICES", "0,1")
    checks = machine.checks()
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(
        ("npu driver", "cann", "npu flags", "npu versions"), "ok"
    )
    assert checks["npu driver"].detail == "driver 23.0.3, 2 cards, health OK"
    assert checks["cann"].detail == f"8.0.0 in {machine.cann_dir}"
    assert checks["npu flags"].detail == "FLAGS_npu_jit_compile=False"
    assert checks["npu versions"].detail == (
        "paddlepaddle 3.3.1, paddle-custom-npu 3.3.0, CANN 8.0.0"
    )


def expect(machine: Machine, name: str, detail: str, remedy: str) -> None:
    """This check is the one problem, and says so."""
    checks = machine.checks()
    problems = [check.name for check in checks.values() if check.status == "problem"]
    assert problems == [name]
    assert detail in checks[name].detail
    assert remedy in str(checks[name].remedy)
    # What is missing where everything works is worth a note at most.
    if name != "npu versions":
        assert machine.checks(works=True)[name].status == "note"


def test_absent_driver(machine: Machine) -> None:
    (machine.folder / "bin" / "npu-smi").unlink()
    expect(machine, "npu driver", "npu-smi is not on the PATH", "mount /usr/local/Ascend/driver")


def test_driver_that_does_not_answer(machine: Machine) -> None:
    machine.answer("dcmi module initialize failed. ret is -8005", code=1)
    expect(machine, "npu driver", "exit code 1): dcmi module initialize failed", "/dev/davinci*")


def test_driver_that_hangs(machine: Machine) -> None:
    machine.monkeypatch.setattr(ascend, "SMI_TIMEOUT_S", 0.2)
    machine.write("bin/npu-smi", "#!/bin/sh\nwhile :; do :; done\n").chmod(0o755)
    expect(machine, "npu driver", "timed out after 0.2 seconds", "driver")


def test_no_card(machine: Machine) -> None:
    machine.answer(INFO.split("| 0     910B3")[0].format())
    expect(machine, "npu driver", "driver 23.0.3, no card", "/dev/davinci*")


def test_ill_card(machine: Machine) -> None:
    machine.answer(INFO.format(health="Alarm"))
    expect(machine, "npu driver", "card 1: Alarm", "npu-smi info -t health")


def test_environment_of_cann_not_sourced(machine: Machine) -> None:
    machine.unset("ASCEND_TOOLKIT_HOME")
    expect(machine, "cann", "are not set", f"source {machine.folder}/ascend-toolkit/set_env.sh")


def test_cann_not_installed(machine: Machine) -> None:
    machine.unset("ASCEND_TOOLKIT_HOME")
    (machine.folder / "ascend-toolkit" / "set_env.sh").unlink()
    expect(machine, "cann", "are not set", "Install CANN 8.0.0")


def test_folder_of_cann_that_is_gone(machine: Machine) -> None:
    machine.set("ASCEND_HOME_PATH", "/usr/local/Ascend/gone")
    expect(machine, "cann", "ASCEND_HOME_PATH=/usr/local/Ascend/gone: no such folder", "set_env.sh")


def test_version_of_cann_by_its_other_file(machine: Machine) -> None:
    (machine.cann_dir / "aarch64-linux" / "ascend_toolkit_install.info").unlink()
    expect(machine, "cann", "does not tell its version", "whole installation")
    machine.write(
        "ascend-toolkit/8.0.0/version.cfg",
        "# version: 1.0\ntoolkit_running_version=[7.6.0.1.220:8.0.0]\n"
        "toolkit_installed_version=[7.3.0.1.231:8.0.RC2][7.6.0.1.220:8.0.0]\n",
    )
    assert machine.checks()["cann"].detail.startswith("8.0.0 in ")


def test_plugin_of_another_release(machine: Machine) -> None:
    machine.versions["paddle-custom-npu"] = "3.1.0"
    expect(machine, "npu versions", "must be of one release", 'paddle-custom-npu==3.3.*"')


def test_plugin_not_installed(machine: Machine) -> None:
    del machine.versions["paddle-custom-npu"]
    expect(machine, "npu versions", "paddle-custom-npu absent", 'pip install "fastffn[npu]"')


def test_gpu_build_beside_the_plugin(machine: Machine) -> None:
    machine.versions["paddlepaddle-gpu"] = "3.3.1"
    expect(machine, "npu versions", "the plugin extends the CPU build", "pip uninstall")


@pytest.mark.parametrize("version", ["8.5.1", "7.0.0", "8.00"])
def test_cann_that_the_plugin_was_not_built_with(machine: Machine, version: str) -> None:
    machine.write(
        "ascend-toolkit/8.0.0/aarch64-linux/ascend_toolkit_install.info", f"version={version}\n"
    )
    expect(machine, "npu versions", f"CANN {version}: this plugin was built with CANN 8.0", "8.0.0")


def test_combination_of_which_nothing_is_known(machine: Machine) -> None:
    machine.versions.update({"paddlepaddle": "3.2.0", "paddle-custom-npu": "3.2.0"})
    check = machine.checks()["npu versions"]
    assert (check.status, check.remedy) == (
        "note", "docs/ascend.md has the combinations that are known"
    )  # fmt: skip


def test_library_path_without_cann(machine: Machine) -> None:
    machine.unset("LD_LIBRARY_PATH")
    expect(machine, "LD_LIBRARY_PATH", "libascendcl.so", "set_env.sh")


def test_operators_that_are_not_found(machine: Machine) -> None:
    machine.set("ASCEND_OPP_PATH", "/nowhere")
    expect(machine, "ASCEND_OPP_PATH", "/nowhere: no such folder", "set_env.sh")


@pytest.mark.parametrize(
    ("value", "words"), [("", "names no card"), ("npu:0", "names no card"), ("0,5", "no card 5")]
)
def test_cards_made_visible_that_are_none(machine: Machine, value: str, words: str) -> None:
    machine.set("ASCEND_RT_VISIBLE_DEVICES", value)
    expect(machine, "ASCEND_RT_VISIBLE_DEVICES", words, "unset ASCEND_RT_VISIBLE_DEVICES")


def test_folder_of_plugins_without_one(machine: Machine) -> None:
    machine.set("CUSTOM_DEVICE_ROOT", machine.folder)
    expect(machine, "CUSTOM_DEVICE_ROOT", "has no plugin", "unset CUSTOM_DEVICE_ROOT")


def test_aarch64_without_libgomp_is_a_note(machine: Machine) -> None:
    machine.monkeypatch.setattr(ascend.platform, "machine", lambda: "aarch64")
    assert machine.checks()["LD_PRELOAD"].status == "note"
    machine.set("LD_PRELOAD", "/usr/lib/aarch64-linux-gnu/libgomp.so.1")
    assert "LD_PRELOAD" not in machine.checks()


def test_the_pages_and_the_program_name_the_same_commands_to_install() -> None:
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert paddle_build.INSTALL_NPU in (root / "docs" / "ascend.md").read_text(encoding="utf-8")
    assert paddle_build.INSTALL_NPU in readme
    assert paddle_build.INSTALL_GPU in readme
