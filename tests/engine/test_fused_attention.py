"""Attention as one operator: the layout around it, and what an operator must do to be used.

The operators are Paddle's own one, which computes on a CPU as well, and broken ones made from it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import Tensor
from paddle.nn.functional.flash_attention import flash_attention

from fastffn_cli.config.load import load_config
from fastffn_cli.config.schema import Config
from fastffn_cli.engine.device import Device
from fastffn_cli.engine.fused_attention import (
    FusedCore,
    Operator,
    Unusable,
    check_core,
    choose_attention,
    install_attention,
    run_gpu_operator,
)
from models.gpt import GPT, GPTConfig
from models.kernels import library
from models.kernels.attention import attend
from tests.conftest import TINY_YAML

SEQ_LEN, VOCAB = 12, 31
CPU = Device("cpu")
FUSED = FusedCore(run_gpu_operator, "float32")


def tiny_gpt(core: FusedCore | None, **settings: object) -> GPT:
    paddle.seed(3)
    sizes = {"vocab_size": VOCAB, "hidden_size": 24, "num_layers": 2, "num_attention_heads": 3}
    model = GPT(GPTConfig(**sizes, ffn_hidden_size=32, max_position_embeddings=SEQ_LEN, **settings))
    if core is not None:
        install_attention(model, core)
    return model


def tokens(rng: np.random.Generator | None = None, rows: int = 4) -> Tensor:
    rng = rng or np.random.default_rng(8)
    return paddle.to_tensor(rng.integers(0, VOCAB, (rows, SEQ_LEN)))


def gradients(model: GPT) -> dict[str, np.ndarray]:
    paddle.seed(9)
    model.train()
    paddle.sum(model(tokens()) ** 2).backward()
    return {name: each.grad.numpy() for name, each in model.named_parameters()}


def test_a_gpt_with_fused_attention_has_the_logits_and_gradients_of_the_plain_one() -> None:
    nothing_random = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain, fused = (tiny_gpt(core, **nothing_random) for core in (None, FUSED))
    assert all(layer.self_attn.core is FUSED for layer in fused.layers)
    ids = tokens(np.random.default_rng())
    np.testing.assert_allclose(fused(ids).numpy(), plain(ids).numpy(), rtol=0, atol=1e-5)
    expected = gradients(plain)
    for name, found in gradients(fused).items():
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize("granularity", ["core_attn", "full_attn", "full"])
def test_recomputation_draws_the_dropout_of_the_operator_again(granularity: str) -> None:
    expected = gradients(tiny_gpt(FUSED, attention_probs_dropout_prob=0.3))
    recomputed = tiny_gpt(
        FUSED,
        attention_probs_dropout_prob=0.3,
        use_recompute=True,
        recompute_granularity=granularity,
    )
    for name, found in gradients(recomputed).items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


def test_the_operator_drops_in_training_alone() -> None:
    model = tiny_gpt(FUSED, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.3)
    model.train()
    assert not np.array_equal(model(tokens()).numpy(), model(tokens()).numpy())
    model.eval()
    expected = tiny_gpt(None)
    expected.eval()
    np.testing.assert_allclose(
        model(tokens()).numpy(), expected(tokens()).numpy(), rtol=0, atol=1e-5
    )


def test_another_mask_than_the_causal_one_is_left_to_the_plain_core() -> None:
    plain, fused = tiny_gpt(None), tiny_gpt(FUSED)
    for model in (plain, fused):
        model.eval()
    padding = paddle.zeros([4, 1, SEQ_LEN, SEQ_LEN])
    padding[:, :, :, :2] = -1e4
    ids = tokens()
    np.testing.assert_array_equal(
        fused(ids, mask=padding).numpy(), plain(ids, mask=padding).numpy()
    )


def test_tokens_behind_cached_ones_see_them() -> None:
    plain, fused = tiny_gpt(None), tiny_gpt(FUSED)
    ids = tokens()
    logits = []
    for model in (plain, fused):
        model.eval()
        cache = model.new_cache(4, SEQ_LEN)
        model(ids[:, :7], cache=cache)
        logits.append(model(ids[:, 7:], cache=cache).numpy())
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5)


def test_a_copy_of_a_model_keeps_its_core() -> None:
    copied = copy.deepcopy(tiny_gpt(FUSED))
    assert [layer.self_attn.core for layer in copied.layers] == [FUSED, FUSED]


def acausal(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    return flash_attention(q, k, v, dropout=dropout, causal=False)[0]


def swapped_heads(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    return run_gpu_operator(q, k, v, dropout).flip([2])


def not_a_number(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    return run_gpu_operator(q, k, v, dropout) * float("nan")


def without_gradient_of_keys(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    return run_gpu_operator(q, k * 0.5 + (k * 0.5).detach(), v, dropout)


def without_dropout(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    return run_gpu_operator(q, k, v, 0.0)


def one_mask(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    if dropout:
        paddle.seed(1)
    return run_gpu_operator(q, k, v, dropout)


def seeds_of_its_own() -> Operator:
    seeds = iter(range(1000))

    def attend_so(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        if dropout:
            paddle.seed(next(seeds))
        return run_gpu_operator(q, k, v, dropout)

    return attend_so


def gradient_without_dropout(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    whole = run_gpu_operator(q, k, v, 0.0)
    return whole + (run_gpu_operator(q, k, v, dropout) - whole).detach()


def gradient_of_another_mask(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    first, second = (run_gpu_operator(q, k, v, dropout) for _ in range(2))
    return second + (first - second).detach()


@pytest.mark.parametrize("head_size", [4, 8, 24])
@pytest.mark.parametrize("seq_len", [7, 33])
def test_an_operator_that_does_what_it_should_passes(head_size: int, seq_len: int) -> None:
    check_core(FUSED, head_size=head_size, seq_len=seq_len, drops=True)


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (acausal, "output is off by"),
        (swapped_heads, "output is off by"),
        (not_a_number, "output is off by nan"),
        (without_gradient_of_keys, "gradient of k is off by"),
    ],
)
@pytest.mark.parametrize("drops", [False, True])
def test_an_operator_with_other_numbers_is_refused(
    operator: Operator, reason: str, drops: bool
) -> None:
    with pytest.raises(Unusable, match=reason):
        check_core(FusedCore(operator, "float32"), head_size=8, seq_len=16, drops=drops)


@pytest.mark.parametrize(
    ("make_operator", "reason"),
    [
        (lambda: without_dropout, "drops nothing new"),
        (lambda: one_mask, "drops nothing new"),
        (seeds_of_its_own, "does not follow the seed"),
        (lambda: gradient_without_dropout, "does not drop what its output does"),
        (lambda: gradient_of_another_mask, "does not drop what its output does"),
    ],
)
def test_bad_dropout_is_refused_where_there_is_dropout(
    make_operator: Callable[[], Operator], reason: str
) -> None:
    core = FusedCore(make_operator(), "float32")
    check_core(core, head_size=8, seq_len=16, drops=False)
    with pytest.raises(Unusable, match=reason):
        check_core(core, head_size=8, seq_len=16, drops=True)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY_YAML.format(data_dir="data"), encoding="utf-8")

    def load(*overrides: str) -> Config:
        return load_config(str(file), ["Model.vocab_size=257", *overrides]).config

    return load


def test_nobody_asks_nothing_is_said(configured: Callable[..., Config]) -> None:
    assert choose_attention(configured(), "float16", Device("npu")) == (None, None)


@pytest.mark.parametrize(
    ("overrides", "dtype", "device", "reason"),
    [
        ([], "float32", Device("npu"), "the fused one is for float16 and bfloat16"),
        (["Model.masked_token_id=0"], "float16", Device("npu"), "Model.masked_token_id needs"),
    ],
)
def test_the_notice_says_why_attention_is_plain(
    configured: Callable[..., Config], overrides: list[str], dtype: str, device: Device, reason: str
) -> None:
    core, notice = choose_attention(
        configured("Model.use_flash_attn=True", *overrides), dtype, device
    )
    assert core is None
    assert notice is not None
    assert notice.startswith("Model.use_flash_attn: attention is the plain one: ")
    assert reason in notice
    assert "\n" not in notice


def test_a_cpu_attends_fused_by_itself(configured: Callable[..., Config]) -> None:
    library.load()
    wish = ["Model.use_flash_attn=True", "Model.masked_token_id=0"]
    assert choose_attention(configured(*wish), "float32", CPU) == (None, None)


@pytest.mark.parametrize(
    ("overrides", "suspended", "reason"),
    [
        ([], True, "the CPU kernels are not in use (fastffn doctor)"),
        (["Model.num_attention_heads=1", "Model.hidden_size=512"], False, "at most 256 are fused"),
    ],
)
def test_the_notice_says_why_a_cpu_attends_plainly(
    configured: Callable[..., Config], overrides: list[str], suspended: bool, reason: str
) -> None:
    library.load()
    with library.suspended() if suspended else contextlib.nullcontext():
        core, notice = choose_attention(
            configured("Model.use_flash_attn=True", *overrides), "float32", CPU
        )
    assert core is None
    assert notice is not None
    assert notice.startswith("Model.use_flash_attn: attention is the plain one: ")
    assert reason in notice


def test_a_gpu_that_fails_is_no_error(configured: Callable[..., Config]) -> None:
    if paddle.is_compiled_with_cuda():
        pytest.skip("this Paddle may have a GPU on which the operator works")
    core, notice = choose_attention(
        configured("Model.use_flash_attn=True"), "float16", Device("gpu")
    )
    assert core is None
    assert notice is not None
    assert "the operator fails: " in notice


def test_the_plain_core_is_what_models_begin_with() -> None:
    assert all(layer.self_attn.core is attend for layer in tiny_gpt(None).layers)
