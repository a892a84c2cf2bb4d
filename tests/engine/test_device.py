"""Devices: how a name becomes a place, what an absent one tells, and memory figures."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.engine import cpu, host_memory
from fastffn_cli.engine.device import Device, gpu_count, resolve_device, use_device
from fastffn_cli.errors import UserError
from tests.conftest import program_env

MIB = 2**20


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=program_env(env)
    )


def test_cpu_is_always_there() -> None:
    device = use_device("cpu")
    assert (device.type, device.index, device.name) == ("cpu", 0, "cpu")
    assert "GiB free" in device.describe()


def test_auto_prefers_a_gpu_and_takes_the_cpu_without_one() -> None:
    use_device("cpu")
    assert resolve_device("auto").type == ("gpu" if gpu_count() else "cpu")


def test_amp_is_not_claimed_on_a_cpu() -> None:
    assert not Device("cpu").supports("float16")
    assert not Device("cpu").supports("bfloat16")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("npu", "no plugin registers 'npu'", 'pip install "fastffn[npu]"'),
        ("npu:1", "no plugin registers 'npu'", "--device cpu"),
        ("cuda:0", "Did you mean 'gpu'?", "auto, cpu, gpu, npu"),
        ("ascend", "Did you mean 'npu'?", "auto, cpu, gpu, npu"),
        ("cpuu", "Did you mean 'cpu'?", "auto, cpu, gpu, npu"),
        ("tpu9000", "unknown device 'tpu9000'", "auto, cpu, gpu, npu"),
        ("cpu:1", "cpu takes no index", "--device cpu"),
    ],
)
def test_absent_device_names_the_remedy(name: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        use_device(name)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_gpu_on_a_cpu_build_shows_the_install_line() -> None:
    import paddle

    if paddle.is_compiled_with_cuda():
        pytest.skip("this paddle has CUDA")
    with pytest.raises(UserError, match="built for the CPU only") as caught:
        use_device("gpu")
    assert "https://www.paddlepaddle.org.cn/packages/stable/cu126/" in str(caught.value.hint)


def test_missing_paddle_offers_three_builds() -> None:
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'paddle': raise ModuleNotFoundError('absent', name='paddle')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from fastffn_cli.engine.device import use_device\n"
        "from fastffn_cli.errors import UserError\n"
        "try: use_device()\n"
        "except UserError as error: print(error.message, error.hint)\n"
    )
    done = run_python(code)
    assert "is not installed" in done.stdout, done.stderr
    for extra in ("fastffn[cpu]", "fastffn[gpu]", "fastffn[npu]"):
        assert extra in done.stdout


def test_a_crash_is_told_on_stderr_and_not_among_data() -> None:
    code = (
        "import os\n"
        "from fastffn_cli.engine.device import use_device\n"
        "use_device('cpu'); print('data', flush=True); os.abort()\n"
    )
    done = run_python(code)
    assert done.stdout == "data\n"
    assert "Fatal Python error: Aborted" in done.stderr
    assert 'File "<string>", line 3' in done.stderr


def test_module_comes_without_paddle_and_use_is_quiet() -> None:
    code = (
        "import sys; from fastffn_cli.engine.device import use_device\n"
        "assert 'paddle' not in sys.modules\n"
        "use_device('cpu')\n"
        "assert 'paddle' in sys.modules\n"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine whose kernel does not let the peak be reset."""
    monkeypatch.setattr(host_memory, "CLEAR_REFS_FILE", tmp_path / "absent" / "clear_refs")
    monkeypatch.setattr(host_memory, "_sampler", None)
    return


def touch_and_free(size: int) -> None:
    # The kernel's own memory: the C library keeps what it frees.
    array = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    array[:] = 1
    # Long enough for the sampler's 5 ms on a busy machine.
    for _ in range(200):
        array[:: 4096 * 64] += 1
        host_memory.time.sleep(0.0005)
    del array


def test_peak_memory_sees_what_was_freed_and_forgets_on_reset() -> None:
    device = Device("cpu")
    device.reset_peak()
    before = device.peak_memory()
    touch_and_free(96 * MIB)
    peak = device.peak_memory()
    device.reset_peak()
    assert peak - before > 80 * MIB
    assert peak - device.peak_memory() > 80 * MIB


def test_peak_memory_is_sampled_where_the_kernel_refuses(sampled: None) -> None:
    device = Device("cpu")
    device.reset_peak()
    before = device.peak_memory()
    touch_and_free(96 * MIB)
    assert host_memory._sampler is not None
    assert device.peak_memory() - before > 80 * MIB


def test_container_limit_bounds_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "membership").write_text("0::/box\n")
    box = tmp_path / "box"
    box.mkdir()
    (box / "memory.max").write_text(f"{300 * MIB}\n")
    (box / "memory.current").write_text(f"{200 * MIB}\n")
    (box / "memory.stat").write_text(f"anon 1\ninactive_file {50 * MIB}\n")
    monkeypatch.setattr(cpu, "CGROUP_FILE", tmp_path / "membership")
    monkeypatch.setattr(cpu, "CGROUP_DIR", tmp_path)
    assert Device("cpu").total_memory() == 300 * MIB
    # The file cache of the container can be dropped, so it counts as free.
    assert Device("cpu").free_memory() == 150 * MIB


PLUGIN_PROBE = """
import json
import mmap
from fastffn_cli.engine.device import use_device
from fastffn_cli.errors import UserError
device = use_device("npu:1")
import paddle
device.reset_peak()
kept = paddle.ones([256, 1024])
device.synchronize()
seen = {
    "name": device.name, "place": str(kept.place), "peak": device.peak_memory(),
    "float16": device.supports("float16"), "bfloat16": device.supports("bfloat16"),
    "free": device.free_memory(), "auto": use_device("auto").name, "errors": {},
}
for name in ("npu:2", "npu:x", "npu:0,1"):
    try:
        use_device(name)
    except UserError as error:
        seen["errors"][name] = error.message
print(json.dumps(seen))
"""


@pytest.mark.slow  # the plugin is built on first use
def test_plugin_device_is_used_through_the_same_calls(npu_env: dict[str, str]) -> None:
    variables = {"HOST_NPU_DEVICES": "2", "HOST_NPU_TYPES": "float16"}
    done = run_python(PLUGIN_PROBE, **npu_env, **variables)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["name"], seen["place"]) == ("npu:1", "Place(npu:1)")
    assert seen["peak"] >= MIB
    assert (seen["float16"], seen["bfloat16"], seen["free"]) == (True, False, None)
    assert seen["auto"] == "npu:0"
    assert "this machine has 2 (npu:0 to npu:1)" in seen["errors"]["npu:2"]
    assert "'x' is not a number" in seen["errors"]["npu:x"]
    assert "one device" in seen["errors"]["npu:0,1"]
