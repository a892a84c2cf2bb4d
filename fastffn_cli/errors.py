"""Every way a command can end badly, and the exit code of each.

The only place that names exit codes (design, section 4). A `FastFFNError` is something the user can
act on: the program prints its text without a traceback. Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_OUT_OF_MEMORY = 3
EXIT_DIVERGED = 4
EXIT_MERGE_CHECK = 5
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class FastFFNError(Exception):
    """Base of all errors that are shown as a message; `hint` is what to type or read next."""

    exit_code = EXIT_UNEXPECTED
    title = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(FastFFNError):
    """Wrong usage, configuration or data: exit 2."""

    exit_code = EXIT_USAGE


class ConfigError(UserError):
    """One or more problems in a configuration, all reported together, each with file:line.

    `problems` are complete lines such as
    `bad.yaml:3  unknown key 'Engine.max_stps'. Did you mean 'Engine.max_steps'?`
    """

    def __init__(self, source: str, problems: Sequence[str], *, hint: str | None = None) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        self.title = f"{count} problem{'s' if count != 1 else ''} in {source}"
        super().__init__("\n".join(self.problems), hint=hint)


class DataError(UserError):
    """A file that cannot be used: the message names the file and the place in it. Exit 2."""


class CheckpointError(UserError):
    """A checkpoint or run folder that is missing, incomplete or of another shape. Exit 2."""


class OutOfMemory(FastFFNError):
    """The device has no room: the message names the micro batch that should fit. Exit 3."""

    exit_code = EXIT_OUT_OF_MEMORY
    title = "out of memory"


# Paddle's allocators on CPU, GPU and custom devices, and C++'s own.
OUT_OF_MEMORY_SIGNS = (
    "resourceexhausted",
    "out of memory",
    "fail to alloc",
    "bad_alloc",
    "cannot allocate memory",
    # C_FAILED: a plugin's answer to an allocation that fails, and all that Paddle 3.3.1 says of it.
    "customdevice error, the error code is : 2.",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device or the machine had no memory left."""
    if isinstance(error, MemoryError):
        return True
    text = f"{type(error).__name__} {error}".lower()
    return any(sign in text for sign in OUT_OF_MEMORY_SIGNS)


class Diverged(FastFFNError):
    """Loss or gradient is not finite; weights were not updated with it. Exit 4."""

    exit_code = EXIT_DIVERGED
    title = "training diverged"


class MergeCheckFailed(FastFFNError):
    """The merged model does not compute the function of its factors. Exit 5."""

    exit_code = EXIT_MERGE_CHECK
    title = "merge check failed"


class RunFailed(FastFFNError):
    """A run that this program started ended with an error of its own, whose exit code this is."""

    title = "a run failed"

    def __init__(self, message: str, *, exit_code: int, hint: str | None = None):
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class Interrupted(FastFFNError):
    """Ctrl-C or SIGTERM, raised after the step was finished and saved. Exit 130 or 143."""

    title = "interrupted"

    def __init__(self, message: str, *, exit_code: int = EXIT_SIGINT, hint: str | None = None):
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
