"""The GPT's own promises: cache, masks, recompute, closed-form counts."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from models.gpt import GPT, MASKED, GPTConfig, count_parameters, flops_per_token

CONFIG = GPTConfig(
    vocab_size=67,
    hidden_size=32,
    num_layers=3,
    num_attention_heads=4,
    ffn_hidden_size=128,
    max_position_embeddings=24,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
LOW_RANK = {"kind": "low_rank", "rank": 4}


@pytest.fixture
def model():
    paddle.seed(11)
    gpt = GPT(CONFIG)
    gpt.eval()
    return gpt


@pytest.fixture
def ids(rng):
    return paddle.to_tensor(rng.integers(0, CONFIG.vocab_size, (3, 20)))


def reference_logits(model, ids):
    """The same mathematics with float64 numpy and the usual 4-D transposes."""
    state = {name: value.numpy().astype(np.float64) for name, value in model.named_parameters()}
    heads, k = CONFIG.num_attention_heads, CONFIG.hidden_size // CONFIG.num_attention_heads
    batch, steps = ids.shape

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x, name):
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    x = state["word_embeddings.weight"][ids] + state["position_embeddings.weight"][:steps]
    for index in range(CONFIG.num_layers):
        layer = f"layers.{index}"
        qkv = linear(norm(x, f"{layer}.norm1"), f"{layer}.self_attn.qkv_proj")
        q, key, v = np.split(
            qkv.reshape(batch, steps, heads, 3 * k).transpose(0, 2, 1, 3), 3, axis=-1
        )
        scores = q @ key.transpose(0, 1, 3, 2) / np.sqrt(k)
        scores[..., np.triu(np.ones((steps, steps), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, steps, -1)
        x = x + linear(attended, f"{layer}.self_attn.out_proj")
        u = linear(norm(x, f"{layer}.norm2"), f"{layer}.ffn.linear1")
        g = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        x = x + linear(g, f"{layer}.ffn.linear2")
    return norm(x, "norm") @ state["word_embeddings.weight"].T


def test_logits_equal_a_float64_reference(model, ids):
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    np.testing.assert_allclose(model(ids).numpy(), reference_logits(model, ids.numpy()), atol=2e-5)


@pytest.mark.parametrize("pieces", [[20], [7, 13], [1] * 20, [5, 1, 1, 13]])
def test_cached_forward_equals_the_whole_one(model, ids, pieces):
    whole = model(ids).numpy()
    cache = model.new_cache(batch_size=3, capacity=20)
    parts, start = [], 0
    for length in pieces:
        parts.append(model(ids[:, start : start + length], cache=cache).numpy())
        start += length
    assert cache.length == 20
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_a_full_cache_says_so(model, ids):
    cache = model.new_cache(batch_size=3, capacity=10)
    with pytest.raises(ValueError, match="the cache holds 10 tokens, 20 were asked for"):
        model(ids, cache=cache)


def test_cache_select_repeats_and_reorders_sequences(model, ids):
    cache = model.new_cache(batch_size=3, capacity=20)
    model(ids[:, :12], cache=cache)
    order = [2, 0, 0, 1]
    cache.select(paddle.to_tensor(order))
    continued = model(paddle.index_select(ids, paddle.to_tensor(order))[:, 12:], cache=cache)
    np.testing.assert_allclose(continued.numpy(), model(ids).numpy()[order][:, 12:], atol=1e-5)


def test_left_padding_with_mask_and_positions_changes_nothing(model, ids):
    alone = model(ids[:1, :9]).numpy()
    pad = 5
    padded = paddle.concat([paddle.zeros([1, pad], "int64"), ids[:1, :9]], axis=1)
    mask = paddle.zeros([1, 1, 1, pad + 9])
    mask[:, :, :, :pad] = MASKED
    positions = paddle.to_tensor([[0] * pad + list(range(9))])
    out = model(padded, positions_BT=positions, mask=mask).numpy()
    np.testing.assert_allclose(out[:, pad:], alone, atol=1e-5)


def test_no_position_sees_the_future(model, ids):
    before = model(ids).numpy()
    changed = ids.numpy().copy()
    changed[:, 12:] = (changed[:, 12:] + 1) % CONFIG.vocab_size
    after = model(paddle.to_tensor(changed)).numpy()
    np.testing.assert_array_equal(after[:, :12], before[:, :12])
    assert np.abs(after[:, 12:] - before[:, 12:]).max() > 1e-3


@pytest.mark.parametrize(("own", "kept"), [(None, False), (0.0, True), (0.9, False)])
def test_embeddings_have_a_dropout_of_their_own(ids, own, kept):
    config = replace(CONFIG, num_layers=0, hidden_dropout_prob=0.9, embedding_dropout_prob=own)
    gpt = GPT(config)
    gpt.train()
    embedded = gpt.hidden(ids).numpy()
    gpt.eval()
    assert np.array_equal(embedded, gpt.hidden(ids).numpy()) == kept


# --- a token that no position attends to ---------------------------------------------------------

HIDDEN = 5


@pytest.fixture
def masking(model):
    gpt = GPT(replace(CONFIG, masked_token_id=HIDDEN))
    gpt.set_state_dict(model.state_dict())
    gpt.eval()
    return gpt


@pytest.fixture
def documents(ids):
    """Sequences with the hidden token first, inside, twice in a row, and not at all."""
    tokens = ids.numpy().copy()
    tokens[tokens == HIDDEN] += 1
    tokens[0, [0, 9]] = HIDDEN
    tokens[1, [4, 5, 13]] = HIDDEN
    return tokens


def attention_of(layer, x, hidden):
    """The original's formula in float64: score + (1 - m_i m_j [j <= i]) * -1e4, per sequence."""
    k, heads = layer.head_size, layer.heads
    state = {name: value.numpy().astype(np.float64) for name, value in layer.named_parameters()}
    qkv = x @ state["qkv_proj.weight"] + state["qkv_proj.bias"]
    q, key, v = np.split(qkv.reshape(*x.shape[:2], heads, 3 * k).transpose(0, 2, 1, 3), 3, axis=-1)
    alive = (~hidden).astype(np.float64)
    pairs = alive[:, None, :, None] * alive[:, None, None, :] * np.tri(x.shape[1])
    scores = q @ key.transpose(0, 1, 3, 2) / np.sqrt(k) + (1 - pairs) * MASKED
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    joined = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    return joined @ state["out_proj.weight"] + state["out_proj.bias"]


def test_attention_around_the_hidden_token_is_the_originals(masking, documents, rng):
    layer = masking.layers[0].self_attn
    for parameter in layer.parameters():
        parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
    x = rng.normal(size=(*documents.shape, CONFIG.hidden_size)).astype(np.float32)
    mask = masking._scores_mask(paddle.to_tensor(documents), None, None)
    found = layer(paddle.to_tensor(x), mask).numpy()
    hidden = documents == HIDDEN
    expected = attention_of(layer, x.astype(np.float64), hidden)
    np.testing.assert_allclose(found[~hidden], expected[~hidden], atol=1e-5)
    # Next to -1e4, float32 keeps a score to about 5e-4.
    np.testing.assert_allclose(found[hidden], expected[hidden], atol=1e-2)


def test_what_is_not_a_hidden_tokens_row_ignores_it(masking, documents):
    """Another embedding of the hidden token changes its own rows and no other."""
    before = masking(paddle.to_tensor(documents)).numpy()[..., :HIDDEN]
    with paddle.no_grad():
        masking.word_embeddings.weight[HIDDEN] = paddle.randn([CONFIG.hidden_size])
    after = masking(paddle.to_tensor(documents)).numpy()[..., :HIDDEN]
    rows = documents != HIDDEN
    np.testing.assert_allclose(after[rows], before[rows], atol=1e-6)
    assert np.abs(after[~rows] - before[~rows]).max() > 0.1


@pytest.mark.parametrize("pieces", [[20], [7, 13], [1] * 20, [5, 1, 1, 13]])
def test_cached_forward_around_the_hidden_token_equals_the_whole_one(masking, documents, pieces):
    """All rows but the hidden token's own, which see what follows in the same piece."""
    ids = paddle.to_tensor(documents)
    whole = masking(ids).numpy()
    cache = masking.new_cache(batch_size=3, capacity=20)
    start = 0
    for length in pieces:
        end = start + length
        logits = masking(ids[:, start:end], cache=cache).numpy()
        rows = documents[:, start:end] != HIDDEN
        np.testing.assert_allclose(logits[rows], whole[:, start:end][rows], atol=1e-5)
        start = end


def test_a_hidden_token_at_the_end_is_read_the_same_with_a_cache(masking, documents):
    ids = paddle.to_tensor(np.where(documents == HIDDEN, 1, documents)[:, :12])
    ids[:, -1] = HIDDEN
    cache = masking.new_cache(batch_size=3, capacity=12)
    for start, end in ((0, 5), (5, 11)):
        masking(ids[:, start:end], cache=cache)
    last = masking(ids[:, 11:], cache=cache).numpy()[:, -1]
    np.testing.assert_allclose(last, masking(ids).numpy()[:, -1], atol=1e-5)


def test_selected_sequences_keep_their_own_hidden_tokens(masking, documents):
    ids = paddle.to_tensor(documents)
    cache = masking.new_cache(batch_size=3, capacity=20)
    masking(ids[:, :12], cache=cache)
    order = [2, 0, 0, 1]
    cache.select(paddle.to_tensor(order))
    continued = masking(paddle.to_tensor(documents[order][:, 12:]), cache=cache).numpy()
    rows = documents[order][:, 12:] != HIDDEN
    expected = masking(ids).numpy()[order][:, 12:]
    np.testing.assert_allclose(continued[rows], expected[rows], atol=1e-5)


@pytest.mark.parametrize("granularity", ["full", "full_attn", "core_attn"])
def test_recompute_gives_the_same_loss_and_gradients_with_dropout(ids, granularity):
    def gradients(use_recompute):
        paddle.seed(3)
        gpt = GPT(
            replace(
                CONFIG,
                ffn=LOW_RANK,
                use_recompute=use_recompute,
                recompute_granularity=granularity,
            )
        )
        gpt.train()
        paddle.seed(4)
        loss = (gpt(ids) ** 2).mean()
        loss.backward()
        return loss.item(), {name: p.grad.numpy() for name, p in gpt.named_parameters()}

    plain_loss, plain = gradients(False)
    loss, recomputed = gradients(True)
    assert loss == plain_loss
    for name, gradient in plain.items():
        np.testing.assert_allclose(recomputed[name], gradient, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("ffn", [{"kind": "dense"}, LOW_RANK])
def test_parameter_count_in_closed_form(ffn):
    config = replace(CONFIG, ffn=ffn)
    assert count_parameters(config) == sum(p.size for p in GPT(config).parameters())


def test_published_parameter_counts():
    gpt2 = GPTConfig(
        vocab_size=50257,
        hidden_size=768,
        num_layers=12,
        num_attention_heads=12,
        ffn_hidden_size=3072,
    )
    assert count_parameters(gpt2) == 124_439_808
    assert count_parameters(replace(gpt2, ffn={"kind": "low_rank", "rank": 8})) == 68_553_984
    fleetx = replace(gpt2, vocab_size=50304, hidden_size=1024, num_layers=24, ffn_hidden_size=4096)
    assert count_parameters(replace(fleetx, num_attention_heads=16)) == 354_871_296


def test_flops_give_the_published_ceiling_of_the_seed_experiment():
    seed = GPTConfig(
        vocab_size=50257,
        hidden_size=768,
        num_layers=6,
        num_attention_heads=12,
        ffn_hidden_size=3072,
    )
    dense = flops_per_token(seed, 1024)
    assert 3 * dense / 1e6 == pytest.approx(543.0, abs=0.05)
    low_rank = flops_per_token(replace(seed, ffn={"kind": "low_rank", "rank": 8}), 1024)
    assert dense / low_rank == pytest.approx(1.447, abs=5e-4)


@pytest.mark.parametrize("ffn", [{"kind": "dense"}, LOW_RANK])
def test_flops_equal_the_sum_over_all_matrix_products(ffn):
    config = replace(CONFIG, ffn=ffn)
    gpt = GPT(config)
    steps = 16
    matrices = [
        parameter
        for name, parameter in gpt.named_parameters()
        if len(parameter.shape) == 2 and "position" not in name
    ]
    products = sum(2 * parameter.size for parameter in matrices)  # the tied head counts as one
    attention = config.num_layers * 2 * 2 * steps * config.hidden_size
    assert flops_per_token(config, steps) == products + attention
