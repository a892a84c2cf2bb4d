"""Conversions that only move values hold one tensor at a time, whatever the size of the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import program_env

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
MIB = 1 << 20
# 12 layers x 512 with 25,000 ids: 248 MiB, whose largest tensor has 49 MiB.
LARGEST = 25_000 * 512 * 4
MEASURE = """
import json, resource, sys
from pathlib import Path

from fastffn_cli.engine.device import use_device
from fastffn_cli.interop.transfer import Wish, plan_transfer, run_transfer

source, target_system, out = sys.argv[1:4]
use_device("cpu")
wish = Wish(
    path=Path(source), out_dir=Path(out), kind="dense", options={}, source_system="auto",
    target_system=target_system, config=None, overrides=sys.argv[4:], tokenizer=None,
    tolerance=0.0, dtype="float32",
)
plan = plan_transfer(wish)  # headers only; paddle is loaded by now
Path("/proc/self/clear_refs").write_text("5")  # start the record of the peak anew
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
run_transfer(plan, None)
peak = next(
    int(line.split()[1]) * 1024
    for line in Path("/proc/self/status").read_text().splitlines()
    if line.startswith("VmHWM")
)
print(json.dumps(peak - before))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A native checkpoint of random weights, written tensor by tensor."""
    import numpy as np

    from fastffn_cli.config.load import default_config
    from fastffn_cli.engine.checkpoint import hollow_model, write_checkpoint
    from fastffn_cli.engine.tensor_file import StoredTensor

    config = default_config(
        ["Model={vocab_size: 25000, hidden_size: 512, num_layers: 12, num_attention_heads: 8, "
         "max_position_embeddings: 64}", "Data.dataset.max_seq_len=64",
         "Offline_Eval.overlapping_eval=32"]
    ).config  # fmt: skip
    generator = np.random.default_rng(0)

    def random(shape):
        return StoredTensor(shape, "float32", lambda: generator.random(shape, np.float32))

    tensors = {
        name: random(tuple(parameter.shape))
        for name, parameter in hollow_model(config).named_parameters()
    }
    folder = tmp_path_factory.mktemp("large") / "native"
    trainer = {"step": 1, "ffn": {"kind": "dense"}, "stage": "convert"}
    write_checkpoint(folder, config=config, trainer=trainer, tensors=tensors)
    return folder


def measure(source, system, out):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), system, str(out)]
        + (["Model.num_attention_heads=8"] if system == "native" else []),
        cwd=ROOT, env=program_env(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("system", ["fleetx", "hf", "mindspore"])
def test_peak_memory_is_that_of_the_largest_tensor(large, system, tmp_path):
    outward = measure(large, system, tmp_path / "theirs")
    back = measure(tmp_path / "theirs", "native", tmp_path / "back")
    for peak in (outward, back):
        assert peak < 1.3 * LARGEST + 8 * MIB, f"{peak / MIB:.0f} MiB"
    ours, again = (folder / "model.safetensors" for folder in (large, tmp_path / "back"))
    assert ours.read_bytes() == again.read_bytes()
