"""What to type when memory ran out."""

from __future__ import annotations

from fastffn_cli.engine.memory import MemoryEstimate
from fastffn_cli.errors import OutOfMemory
from fastffn_cli.ui import size

# Part of the free memory that an estimate may plan with: allocators and libraries need some.
USABLE = 0.9


def advise(
    memory: MemoryEstimate,
    *,
    micro_batch_size: int,
    local_batch_size: int,
    free: int | None,
    continue_command: str | None = None,
) -> OutOfMemory:
    """Return the error for a step that ran out of memory at `micro_batch_size`.

    `free` is what was free before the model was built. The advice is the largest divisor of the
    local batch that the estimate fits into it, and never the size that just failed.
    `continue_command` ends in options, so that the advice can be added to it.
    """
    needed = size(memory.total(micro_batch_size))
    message = f"micro_batch_size {micro_batch_size} needs about {needed}"
    if free is not None:
        message += f", {size(free)} were free"
    room = int(free * USABLE) if free is not None else memory.total(micro_batch_size)
    fitting = memory.largest_micro_batch(room, local_batch_size, below=micro_batch_size)
    if fitting is None:
        return OutOfMemory(
            message,
            hint="Use a smaller model, a shorter Data.dataset.max_seq_len, "
            "or -o Model.use_recompute=True",
        )
    rounds = local_batch_size // fitting
    option = f"-o Data.batch_size.micro_batch_size={fitting}"
    message += (
        f". micro_batch_size {fitting} should fit (same global batch, {rounds} x accumulation):\n"
        f"    {option}"
    )
    hint = f"Go on with: {continue_command} {option}" if continue_command else None
    return OutOfMemory(message, hint=hint)
