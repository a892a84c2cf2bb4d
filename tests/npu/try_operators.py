"""Tries the npu's fused attention with every fault it can have; prints JSON.

The program of test_fused_attention.py: {dtype: {fault: the notice, or None where it is used}}; the
fault "" is none.
"""

from __future__ import annotations

import json
import os
import sys

from fastffn_cli.config.load import load_config
from fastffn_cli.engine.device import random_generator, use_device

place = use_device("npu")

import paddle  # noqa: E402

from fastffn_cli.engine import fused_attention  # noqa: E402

FAULTS = (
    *("", "raises", "wrong", "wrong gradient"),
    *("own random numbers", "whole output", "whole gradient"),
)


def try_with(fault: str, dtype: str) -> str | None:
    """Return the notice of a fault."""
    os.environ["FLASH_ATTENTION_FAULT"] = fault
    fused_attention._tried.cache_clear()
    random_generator().manual_seed(5)
    core, notice = fused_attention.choose_attention(config, dtype, place)
    assert (core is None) == (notice is not None)
    assert paddle.rand([3]).tolist() == AS_SEEDED
    return notice


random_generator().manual_seed(5)
AS_SEEDED = paddle.rand([3]).tolist()
config = load_config(sys.argv[1], ["Model.use_flash_attn=True"]).config
found = {
    dtype: {fault: try_with(fault, dtype) for fault in FAULTS} for dtype in ("float16", "bfloat16")
}
json.dump(found, sys.stdout)
