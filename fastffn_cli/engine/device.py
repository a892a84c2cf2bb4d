"""The one module that decides where tensors live; nothing else names a device.

Paddle knows three families: `cpu`, `gpu` (CUDA builds), and CustomDevice types that a plugin
registers under a name of its own (`npu` for Ascend). No call here needs a GPU build: whatever a
family cannot answer is None, and the callers say "unknown".
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastffn_cli.distributed import job
from fastffn_cli.engine import host_memory
from fastffn_cli.engine.cpu import prepare_environment, usable_cores
from fastffn_cli.engine.kernels import use_kernels
from fastffn_cli.engine.paddle_build import INSTALL_GPU, INSTALL_NPU, first_line, import_paddle
from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.config.schema import Config
    from fastffn_cli.engine.kernels import LowRankForm

# Types of plugins for which auto_cast of Paddle 3.3.1 computes in bfloat16; for others it warns.
BFLOAT16_PLUGINS = frozenset({"npu", "intel_hpu", "iluvatar_gpu", "metax_gpu"})
# What people from other frameworks type.
OTHER_NAMES = {"cuda": "gpu", "nvidia": "gpu", "ascend": "npu", "host": "cpu"}


@dataclass(frozen=True)
class Device:
    """One place for tensors: `type` (cpu, gpu, npu, ...) and `index` on this machine."""

    type: str
    index: int = 0

    @property
    def name(self) -> str:
        """Return Paddle's name of the place: `cpu`, `gpu:0`, `npu:0`."""
        return "cpu" if self.type == "cpu" else f"{self.type}:{self.index}"

    def synchronize(self) -> None:
        """Wait until everything queued on the device has run; a CPU has no queue."""
        if self.type != "cpu":
            import paddle

            paddle.device.synchronize(self.name)

    def count(self) -> int:
        """Return how many processes this machine has devices of the type for: a CPU its cores."""
        if self.type == "cpu":
            return usable_cores()
        return gpu_count() if self.type == "gpu" else custom_device_count(self.type)

    def free_memory(self) -> int | None:
        """Return the bytes that a new tensor may take, None where the device does not tell."""
        if self.type == "cpu":
            return host_memory.free_memory()
        memory = self._device_memory()
        return None if memory is None else memory[0]

    def total_memory(self) -> int | None:
        """Return the device's memory in bytes, None where the device does not tell."""
        if self.type == "cpu":
            return host_memory.total_memory()
        memory = self._device_memory()
        return None if memory is None else memory[1]

    def peak_memory(self) -> int:
        """Return the most memory used since `reset_peak`, in bytes.

        On a CPU that is the resident size of the whole process, elsewhere Paddle's tensors.
        """
        if self.type == "cpu":
            return host_memory.peak_memory()
        import paddle

        return int(paddle.device.max_memory_allocated(self.name))

    def reset_peak(self) -> None:
        """Start a new measurement of `peak_memory`."""
        if self.type == "cpu":
            host_memory.reset_peak()
            return
        import paddle

        paddle.device.reset_max_memory_allocated(self.name)

    def supports(self, dtype: str) -> bool:
        """Tell whether AMP really computes in `dtype` (`float16`, `bfloat16`) here.

        False on a CPU: Paddle 3.3.1 accepts AMP there and ignores it, as it does bfloat16 on all
        but a few plugins' types. A plugin that denies both types has no answer to Paddle's
        question (Ascend's had none): then AMP is taken to work.
        """
        if self.type == "cpu":
            return False
        if self.type == "gpu":
            return self._tells_support(dtype)
        if dtype == "bfloat16" and self.type not in BFLOAT16_PLUGINS:
            return False
        told = {each: self._tells_support(each) for each in ("float16", "bfloat16")}
        return told[dtype] or not any(told.values())

    def _tells_support(self, dtype: str) -> bool:
        import paddle

        asked: dict[str, Callable[[str], bool]] = {
            "float16": paddle.amp.is_float16_supported,
            "bfloat16": paddle.amp.is_bfloat16_supported,
        }
        try:
            return bool(asked[dtype](self.name))
        except (RuntimeError, ValueError, NotImplementedError):
            return False

    def describe(self) -> str:
        """Return one line for people: the name, the product where it is known, the memory."""
        parts = [self.name]
        product = self._product_name()
        if product:
            parts.append(product)
        total, free = self.total_memory(), self.free_memory()
        if total is not None and free is not None:
            parts.append(f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
        return ", ".join(parts)

    def _product_name(self) -> str | None:
        if self.type == "cpu":
            return _processor_name()
        if self.type != "gpu":
            return None  # Paddle 3.3.1 raises for CustomDevice types
        import paddle

        with contextlib.suppress(Exception):  # a name is not worth a failed run
            return str(paddle.device.cuda.get_device_name(self.index))
        return None

    def _device_memory(self) -> tuple[int, int] | None:
        """Return (free, total) of a GPU; CustomDevice plugins offer no such call."""
        if self.type != "gpu":
            return None
        import paddle

        with contextlib.suppress(Exception):  # not in every 3.x release
            free, total = paddle.cuda.mem_get_info(self.index)
            return int(free), int(total)
        with contextlib.suppress(Exception):
            total = int(paddle.device.cuda.get_device_properties(self.index).total_memory)
            return total - int(paddle.device.cuda.memory_reserved(self.index)), total
        return None


def use_device(
    name: str = "auto",
    *,
    threads: int | None = None,
    fast_math: bool = True,
    kernels: bool = True,
    low_rank_ffn: LowRankForm = "auto",
) -> Device:
    """Import paddle with the CPU set up, resolve `name`, and make it the current place.

    On a CPU, with `kernels`, our own operators are used where they are compiled already; it is
    `engine.kernels.prepare_kernels` that compiles them. `low_rank_ffn` is the form of feed-forwards
    of thin factors.

    `name`: `auto` (a visible GPU, else a plugin's device, else the CPU), `cpu`, `gpu[:index]`,
    `npu[:index]`, or any type that a plugin registers. Without an index it is the device that a
    launcher gave this process, or the first one. Raises `UserError` with the remedy when
    paddle or the device is absent.
    """
    prepare_environment(threads, fast_math)
    import_paddle()
    device = resolve_device(name)
    if device.type == "cpu":
        host_memory.keep_freed_memory()
    import paddle

    try:
        paddle.set_device(device.name)
    except Exception as error:
        raise UserError(
            f"{device.name} cannot be used: {first_line(error)}",
            hint=f"fastffn doctor --device {device.name}   looks for the cause",
        ) from error
    use_kernels(device, wanted=kernels, low_rank_ffn=low_rank_ffn)
    return device


def use_configured_device(config: Config, name: str | None = None) -> Device:
    """Return `use_device` by a configuration; `name` beats its device."""
    section = config.Global
    return use_device(
        name or section.device,
        threads=section.cpu_threads,
        fast_math=section.cpu_fast_math,
        kernels=section.cpu_kernels,
        low_rank_ffn=config.Fused.low_rank_ffn,
    )


def resolve_device(name: str) -> Device:
    """Turn a name of the user's into a device of this machine; needs paddle imported."""
    import paddle

    kind, _, index_text = name.strip().lower().partition(":")
    custom = custom_device_types()
    if kind == "auto":
        _refuse_index(name, index_text)
        return _choose_device(custom)
    if kind == "cpu":
        _refuse_index(name, index_text)
        return Device("cpu")
    if kind == "gpu":
        if not paddle.is_compiled_with_cuda():
            raise UserError(
                f"device '{name}': this PaddlePaddle is built for the CPU only",
                hint=f"{INSTALL_GPU}   (after: pip uninstall paddlepaddle), or --device cpu",
            )
        return Device("gpu", _parse_index(name, index_text, gpu_count()))
    if kind in custom:
        return Device(kind, _parse_index(name, index_text, custom_device_count(kind)))
    raise _unknown_device(name, kind, custom)


def custom_device_types() -> list[str]:
    """Return the device types that plugins have registered, `npu` among them on Ascend."""
    import paddle

    return list(paddle.device.get_all_custom_device_type() or [])


def custom_device_count(kind: str) -> int:
    """Count this machine's devices of a plugin's type."""
    import paddle

    available = paddle.device.get_available_custom_device() or []
    return sum(1 for each in available if each.split(":")[0] == kind)


def gpu_count() -> int:
    """Count the visible GPUs; 0 when the driver does not answer."""
    import paddle

    if not paddle.is_compiled_with_cuda():
        return 0
    try:
        return int(paddle.device.cuda.device_count())
    except (RuntimeError, OSError, ValueError):
        return 0


def random_generator() -> Any:
    """Return the current device's generator of random numbers: Paddle's `Generator`."""
    import paddle
    from paddle.base import core

    kind, _, index = paddle.get_device().partition(":")
    if kind == "cpu":
        return core.default_cpu_generator()
    if kind == "gpu":
        return core.default_cuda_generator(int(index))
    return core.default_custom_device_generator(core.CustomPlace(kind, int(index)))


def _choose_device(custom: list[str]) -> Device:
    if gpu_count() > 0:
        return Device("gpu", job.device_index("gpu") or 0)
    for kind in custom:
        if custom_device_count(kind) > 0:
            return Device(kind, job.device_index(kind) or 0)
    return Device("cpu")


def _refuse_index(name: str, index_text: str) -> None:
    if index_text not in {"", "0"}:
        kind = name.partition(":")[0]
        raise UserError(f"device '{name}': {kind} takes no index", hint=f"Type --device {kind}")


def _parse_index(name: str, index_text: str, count: int) -> int:
    kind = name.strip().lower().partition(":")[0]
    if "," in index_text:
        raise UserError(
            f"device '{name}': this version trains on one device",
            hint=f"Type --device {kind}:{index_text.split(',')[0]}",
        )
    if index_text and not index_text.isdecimal():
        raise UserError(
            f"device '{name}': '{index_text}' is not a number", hint=f"Type --device {kind}:0"
        )
    index = int(index_text) if index_text else job.device_index(kind) or 0
    if count == 0:
        raise UserError(
            f"device '{name}': no {kind} is visible on this machine",
            hint="Look at the driver and at variables such as CUDA_VISIBLE_DEVICES or "
            "ASCEND_RT_VISIBLE_DEVICES, or use --device cpu",
        )
    if index >= count:
        there = f"{kind}:0" if count == 1 else f"{kind}:0 to {kind}:{count - 1}"
        raise UserError(
            f"device '{name}': this machine has {count} ({there})", hint=f"Type --device {kind}:0"
        )
    return index


def _unknown_device(name: str, kind: str, custom: list[str]) -> UserError:
    if kind == "npu":
        others = f" Plugins here offer: {', '.join(custom)}." if custom else ""
        return UserError(
            f"device '{name}': no plugin registers 'npu' with this PaddlePaddle",
            hint=f"{INSTALL_NPU}   then: source /usr/local/Ascend/ascend-toolkit/set_env.sh,"
            f" or --device cpu.{others}",
        )
    known = ["auto", "cpu", "gpu", "npu", *(each for each in custom if each != "npu")]
    near = OTHER_NAMES.get(kind) or next(iter(difflib.get_close_matches(kind, known, 1)), None)
    guess = f" Did you mean '{near}'?" if near else ""
    return UserError(f"unknown device '{name}'.{guess}", hint=f"One of: {', '.join(known)}")


def _processor_name() -> str | None:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None
