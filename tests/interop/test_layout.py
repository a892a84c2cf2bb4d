"""The tables that tie our tensors to theirs: values move, and move back."""

from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.engine.tensor_file import stored
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.layout import (
    SAME,
    TRANSPOSED,
    join_tensors,
    qkv_blocks,
    qkv_separate,
    rule,
    split_tensors,
)

HEADS, K = 3, 4
D = HEADS * K
WEIGHT = np.arange(5 * 3 * D, dtype=np.float32).reshape(5, 3 * D)
BIAS = np.arange(3 * D, dtype=np.float32)
ARRANGEMENTS = {
    "same": (SAME, WEIGHT),
    "transposed": (TRANSPOSED, WEIGHT),
    "blocks": (qkv_blocks(HEADS), WEIGHT),
    "blocks bias": (qkv_blocks(HEADS), BIAS),
    "separate": (qkv_separate(HEADS), WEIGHT),
    "separate bias": (qkv_separate(HEADS), BIAS),
    "separate transposed": (qkv_separate(HEADS, transposed=True), WEIGHT),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_split_and_join_are_inverse_and_of_the_announced_shapes(name):
    arrangement, ours = ARRANGEMENTS[name]
    theirs = arrangement.split(ours)
    assert [part.shape for part in theirs] == arrangement.shapes(ours.shape)
    np.testing.assert_array_equal(arrangement.join(theirs), ours)


def test_columns_of_the_fused_projection_are_where_fleetx_has_them():
    q, k, v = qkv_separate(HEADS).split(WEIGHT)
    for head in range(HEADS):
        for place, part in enumerate((q, k, v)):
            for column in range(K):
                np.testing.assert_array_equal(
                    part[:, head * K + column], WEIGHT[:, (head * 3 + place) * K + column]
                )


def test_blocks_are_queries_then_keys_then_values():
    (blocks,) = qkv_blocks(HEADS).split(WEIGHT)
    np.testing.assert_array_equal(blocks, np.concatenate(qkv_separate(HEADS).split(WEIGHT), 1))


def test_everything_that_does_not_fit_is_listed_together():
    rules = [rule("a", "A"), rule("b", "B"), rule("c", "C"), rule("d", "D")]
    theirs = {
        "A": stored(np.zeros((2, 3), np.float32)),
        "B": stored(np.zeros((3, 2), np.float32)),
        "C": stored(np.zeros((2, 3), np.int64)),
        "E": stored(np.zeros(1, np.float32)),
        "F": stored(np.zeros(1, np.float32)),
    }
    with pytest.raises(CheckpointError) as error:
        join_tensors(rules, theirs, dict.fromkeys("abcd", (2, 3)), Path("x.bin"), ignored=["F"])
    lines = error.value.message.splitlines()[1:]
    assert lines == [
        "B is [3, 2], expected [2, 3]",
        "C is of type int64, expected floating point",
        "missing: D [2, 3]",
        "unexpected: E [1]",
    ]


def test_half_precision_is_read_as_float32_and_nothing_before_it_is_asked_for():
    half = np.float16([[1.5, 2.25]])
    tensors = join_tensors([rule("a", "A")], {"A": stored(half)}, {"a": (1, 2)}, Path("x"))
    assert tensors["a"].dtype == "float32"
    np.testing.assert_array_equal(tensors["a"].read(), np.float32([[1.5, 2.25]]))


def test_split_keeps_the_order_of_the_table():
    ours = {"w": stored(WEIGHT), "b": stored(BIAS)}
    rules = [rule("b", "q", "k", "v", arrangement=qkv_separate(HEADS)), rule("w", "weight")]
    theirs = split_tensors(rules, ours)
    assert list(theirs) == ["q", "k", "v", "weight"]
    np.testing.assert_array_equal(theirs["k"].read(), BIAS.reshape(HEADS, 3, K)[:, 1].reshape(-1))
