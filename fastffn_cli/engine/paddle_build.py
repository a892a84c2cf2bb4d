"""Importing paddle: which build to install when there is none, what to say when it is broken.

Separate from the devices so that a machine without paddle still gets an answer (`doctor`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import os
import sys
import warnings
from collections.abc import Iterator

from fastffn_cli.errors import UserError

GPU_INDEX_URL = "https://www.paddlepaddle.org.cn/packages/stable/cu126/"
CPU_INDEX_URL = "https://www.paddlepaddle.org.cn/packages/stable/cpu/"
NPU_INDEX_URL = "https://www.paddlepaddle.org.cn/packages/stable/npu/"
INSTALL_CPU = 'pip install "fastffn[cpu]"'
INSTALL_GPU = f'pip install "fastffn[gpu]" --extra-index-url {GPU_INDEX_URL}'
# Paddle's own indexes: of the plugin, and of the paddlepaddle that it goes with.
INSTALL_NPU = (
    f'pip install "fastffn[npu]" --extra-index-url {CPU_INDEX_URL} '
    f"--extra-index-url {NPU_INDEX_URL}"
)


def import_paddle() -> None:
    """Import paddle, without the warnings on our own thread setting; plain errors when it fails.

    Raises `UserError`: not installed (with the three ways to install it) or broken.
    """
    if "paddle" in sys.modules:
        return
    # The log of plugins being loaded (level 0) is no news to the user.
    os.environ.setdefault("GLOG_minloglevel", "1")
    stderr = sys.stderr
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), warnings.catch_warnings(), _kept_for_good():
            warnings.filterwarnings("ignore", message="No ccache found")
            import paddle  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise broken_paddle(error) from error
        raise missing_paddle() from error
    except (ImportError, OSError, ValueError, RuntimeError, AttributeError) as error:
        raise broken_paddle(error) from error
    finally:
        for line in captured.getvalue().splitlines():
            if "OMP_NUM_THREADS" not in line:
                stderr.write(line + "\n")
    _tell_of_crashes_on_stderr()


@contextlib.contextmanager
def _kept_for_good() -> Iterator[None]:
    """Spare the garbage collector what is imported: now, later, and when the process ends.

    None of those 130,000 objects ever is garbage. To look through them takes an eighth of
    the import, a fifth of a second at the end of each command, and time in between.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _tell_of_crashes_on_stderr() -> None:
    """Python's traceback of a crash on stderr, in the place of Paddle's on stdout, among data."""
    sys.modules["paddle"].disable_signal_handler()
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)


def missing_paddle() -> UserError:
    """Return the error for a machine without paddle: one of three builds has to be chosen."""
    return UserError(
        "PaddlePaddle is not installed: fastffn leaves the choice of its build to you",
        hint=f"CPU:    {INSTALL_CPU}\nGPU:    {INSTALL_GPU}\nAscend: {INSTALL_NPU}",
    )


def broken_paddle(error: Exception) -> UserError:
    """Return the error for a paddle that is there but does not start."""
    plugins = os.environ.get("CUSTOM_DEVICE_ROOT")
    suspect = ""
    if plugins:
        suspect = f" CUSTOM_DEVICE_ROOT={plugins} loads plugins: try without it; "
        suspect += "fastffn doctor --device npu   looks at what Ascend's needs."
    return UserError(
        f"PaddlePaddle is installed but cannot be imported: {first_line(error)}",
        hint=f"Reinstall it: pip install --force-reinstall paddlepaddle.{suspect}",
    )


def first_line(error: BaseException) -> str:
    """Return the first telling line of Paddle's long error texts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -\t")]
    return lines[0] if lines else type(error).__name__
