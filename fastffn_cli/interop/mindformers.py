"""MindFormers' GPT-2, to be written; MindSpore's system reads it as well.

The files are MindSpore's, the names those of MindFormers r0.3.
"""

from __future__ import annotations

from fastffn_cli.interop.mindspore import MindSpore
from fastffn_cli.interop.mindspore_names import MINDFORMERS

SYSTEM = MindSpore(
    "mindformers", "MindFormers GPT-2", MINDFORMERS, ("dense",), ("gelu", "fast_gelu")
)
