"""Memory that really runs out, and the advice that follows."""

from __future__ import annotations

import resource

import pytest

from fastffn_cli.engine.memory import MemoryEstimate
from fastffn_cli.engine.out_of_memory import advise
from fastffn_cli.errors import is_out_of_memory
from tests.conftest import Workplace
from tests.engine.runs import printed_command

MIB = 2**20
MICRO = "Data.batch_size.micro_batch_size"


@pytest.mark.slow
def test_a_step_without_room_ends_with_the_micro_batch_to_type(workplace: Workplace) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1500 * MIB, 1500 * MIB))

    wide = [
        *("-o", "Data.batch_size.global_batch_size=1024", "-o", "Engine.max_steps=1"),
        *("-o", "Data.dataset.max_seq_len=256", "-o", "Model.max_position_embeddings=256"),
    ]
    arguments = ["pretrain", "-c", "tiny.yaml", *wide, "-o", f"{MICRO}=1024"]
    tried = 1024
    done = workplace.run_fastffn(*arguments, preexec=limit)
    assert done.returncode == 3, done.stderr
    # An address space is used up by more than tensors, so the advice may have to be asked again;
    # it must come down every time, be accepted as it is printed, and lead to a run that fits.
    while done.returncode == 3:
        assert f"out of memory:\nmicro_batch_size {tried} needs about" in done.stderr
        assert "Traceback" not in done.stderr
        arguments = printed_command(done.stderr.rpartition("Go on with: ")[2])
        assert arguments[-3:-1] == ["--resume", "-o"]
        key, _, advised = arguments[-1].partition("=")
        assert key == MICRO
        assert f"    -o {key}={advised}\n" in done.stderr
        assert int(advised) < tried
        assert 1024 % int(advised) == 0
        tried = int(advised)
        done = workplace.run_fastffn(*arguments, preexec=limit)
    assert done.returncode == 0, done.stderr


ESTIMATE = MemoryEstimate(fixed=100, kept=10)


@pytest.mark.parametrize(
    ("free", "micro", "local", "advised"),
    [
        (1000, 64, 64, 64 // 2),  # 0.9 * 1000 = 900 -> 80 fit, 64 did not: the next divisor
        (400, 64, 64, 16),  # 360 -> 26 fit
        (None, 8, 8, 4),
        (400, 9, 9, 3),
        (220, 12, 12, 6),  # 198 -> 9 fit; 8 and 9 do not divide 12, 6 does
    ],
)
def test_the_advice_is_the_largest_divisor_that_fits_and_was_not_tried(
    free: int | None, micro: int, local: int, advised: int
) -> None:
    error = advise(ESTIMATE, micro_batch_size=micro, local_batch_size=local, free=free)
    assert error.exit_code == 3
    assert f"-o Data.batch_size.micro_batch_size={advised}" in error.message
    assert f"{local // advised} x accumulation" in error.message


@pytest.mark.parametrize(("free", "micro"), [(110, 8), (10_000, 1)])
def test_without_a_smaller_micro_batch_the_advice_is_a_smaller_model(free: int, micro: int) -> None:
    error = advise(ESTIMATE, micro_batch_size=micro, local_batch_size=8, free=free)
    assert "micro_batch_size=" not in error.message
    assert error.hint is not None
    assert "use_recompute=True" in error.hint


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("(ResourceExhausted) Fail to alloc memory of 536870912 size."), True),
        (RuntimeError("Out of memory error on GPU 0. Cannot allocate 2GB"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("(InvalidArgument) shapes do not match"), False),
        (KeyError("memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
