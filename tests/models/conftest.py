"""Fixtures of the model tests."""

import numpy as np
import paddle
import pytest


@pytest.fixture
def double_precision():
    """New layers are float64 inside the test."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype("float64")
    yield
    paddle.set_default_dtype(before)


@pytest.fixture
def rng():
    """Fresh random input; the seed is printed when the test fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"random input of seed {seed}")
    return np.random.default_rng(seed)
