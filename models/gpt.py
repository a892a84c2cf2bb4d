"""FleetX's GPT: pre-norm decoder, learned positions, tanh GELU, head tied to the word embeddings.

Mathematics of PaddleFleetX `fleetx/models/gpt_model/modeling.py` (3589c682): layer norm eps 1e-5,
dropout after the embeddings, on attention probabilities and after both sublayers, one fused qkv
projection whose columns are interleaved per head, causal mask of -1e4, Normal(0,
initializer_range) for all matrices and embeddings. Feed-forwards, attention projections and the
word embeddings may be in cheaper forms; `models.ffn.merge` makes all of them dense.

Shape legend: B batch, T new tokens, S tokens attended to (cached + new), D hidden_size, H heads,
K head size, V vocabulary. HB is heads x batch, heads outermost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from models import ffn
from models.factored_embedding import FactoredEmbedding, TiedEmbedding
from models.ffn.base import Cost, Shape, is_bare
from models.ffn.low_rank import LowRankLinear, LowRankOptions
from models.kernels.attention import MASKED, AttentionCore, attend, causal_mask
from models.kernels.dropout import Dropout
from models.kernels.layer_norm import LayerNorm
from models.kernels.linear import linear
from models.kernels.linear_cross_entropy import linear_cross_entropy, token_losses
from models.kv_cache import KVCache

# What factors of attention and embeddings take over from the options of the feed-forwards.
SHARED_OPTIONS = ("init", "lr_rule", "lr_cap", "decay_rule")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes and switches of a GPT; `ffn` is a spec of `models.ffn`, e.g. {"kind": "low_rank"}.

    `masked_token_id` is a token that no position attends to; its own row attends to all keys alike,
    later ones too. The original FastFFN and MindFormers' GPT-2 hide end-of-text so.
    `attention_rank` and `embedding_rank` are those of factors in the place of the attention
    projections and of the tied word embeddings; None: whole matrices.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    ffn_hidden_size: int
    max_position_embeddings: int = 1024
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    embedding_dropout_prob: float | None = None  # None: as hidden_dropout_prob
    initializer_range: float = 0.02
    use_recompute: bool = False
    recompute_granularity: Literal["full", "full_attn", "core_attn"] = "full"
    masked_token_id: int | None = None
    hidden_act: str = "gelu"  # a name of `models.ffn.base.ACTIVATIONS`
    attention_rank: int | None = None
    embedding_rank: int | None = None
    ffn: Mapping[str, Any] = field(default_factory=lambda: {"kind": "dense"})

    @property
    def ffn_shape(self) -> Shape:
        """The dense feed-forward that the configured kind stands for."""
        return Shape(
            self.hidden_size, self.ffn_hidden_size, self.initializer_range, self.hidden_act
        )

    @property
    def ffn_specs(self) -> list[dict[str, Any]]:
        """The spec of each layer's feed-forward."""
        return ffn.layer_specs(self.ffn, self.num_layers)

    @property
    def ffn_costs(self) -> list[Cost]:
        """The cost of each layer's feed-forward, in closed form."""
        return ffn.costs(self.ffn, self.ffn_shape, self.num_layers)

    @property
    def approximations(self) -> dict[str, Any]:
        """The fields that make the model another one than the dense model of its sizes."""
        return {
            "ffn": dict(self.ffn),
            "attention_rank": self.attention_rank,
            "embedding_rank": self.embedding_rank,
        }

    def factor_options(self, rank: int) -> LowRankOptions:
        """How factors of attention and embeddings start and train: as those of `ffn`, if any."""
        shared = {name: self.ffn[name] for name in SHARED_OPTIONS if name in self.ffn}
        return LowRankOptions(rank=rank, **shared)


class SelfAttention(nn.Layer):
    """Causal multi-head attention with a fused, per-head interleaved qkv projection.

    `core` is how the heads attend: another one of the same meaning may be put in its place.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // self.heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.recompute_core = config.use_recompute and config.recompute_granularity == "core_attn"
        self.core: AttentionCore = attend
        projections = build_projections(config, config.attention_rank)
        self.qkv_proj, self.out_proj = projections["qkv_proj"], projections["out_proj"]

    def forward(
        self, x_BTD: Tensor, mask: Tensor | None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Map [B, T, D] to [B, T, D]; `mask` is additive, [T, S] or [B, T, S], None is causal."""
        qkv = project(self.qkv_proj, x_BTD)
        dropout_prob = self.dropout_prob if self.training else 0.0
        past = None if cache is None else cache.layer(layer)
        if self.recompute_core and self.training:
            joined = recompute(
                self.core, qkv, self.heads, mask, dropout_prob, past, use_reentrant=False
            )
        else:
            joined = self.core(qkv, self.heads, mask, dropout_prob, past)
        return project(self.out_proj, joined)


class DecoderLayer(nn.Layer):
    """x + dropout(attention(norm1(x))), then x + dropout(ffn(norm2(x)))."""

    def __init__(self, config: GPTConfig, ffn_spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size)
        self.self_attn = SelfAttention(config)
        self.dropout1 = Dropout(config.hidden_dropout_prob)
        self.norm2 = LayerNorm(config.hidden_size)
        self.ffn = ffn.build(ffn_spec, config.ffn_shape)
        self.dropout2 = Dropout(config.hidden_dropout_prob)
        self.recompute_attention = (
            config.use_recompute and config.recompute_granularity == "full_attn"
        )

    def forward(
        self, x_BTD: Tensor, mask: Tensor | None, cache: KVCache | None = None, layer: int = 0
    ) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        normed = self.norm1(x_BTD)
        if self.recompute_attention and self.training:
            attended = recompute(self.self_attn, normed, mask, use_reentrant=False)
        else:
            attended = self.self_attn(normed, mask, cache, layer)
        x_BTD = x_BTD + self.dropout1(attended)
        return x_BTD + self.dropout2(self.ffn(self.norm2(x_BTD)))


# From a model's configuration and the number of a decoder layer to that layer.
LayerMaker: TypeAlias = Callable[[GPTConfig, int], nn.Layer]


def make_decoder_layer(config: GPTConfig, index: int) -> DecoderLayer:
    """Make a decoder layer with new weights."""
    return DecoderLayer(config, config.ffn_specs[index])


class GPT(nn.Layer):
    """A causal language model: token ids in, logits out."""

    def __init__(self, config: GPTConfig, make_layer: LayerMaker | None = None) -> None:
        """Build it with new weights; `make_layer` makes each decoder layer in its own way."""
        super().__init__()
        self.config = config
        make_layer = make_layer or make_decoder_layer
        self.word_embeddings = build_word_embeddings(config, config.embedding_rank)
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, config.initializer_range))
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, weight_attr=normal
        )
        embedding_dropout = config.embedding_dropout_prob
        self.dropout = Dropout(
            config.hidden_dropout_prob if embedding_dropout is None else embedding_dropout
        )
        self.layers = nn.LayerList([make_layer(config, i) for i in range(config.num_layers)])
        self.norm = LayerNorm(config.hidden_size)

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return logits [B, T, V]; the arguments are those of `hidden`."""
        return self.logits(self.hidden(ids_BT, positions_BT, mask, cache))

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the normalised last hidden states [B, T, D].

        `positions_BT` defaults to the places behind the cached tokens. `mask` is additive and
        broadcastable to [B, 1, T, S]; where both it and the causal mask hide a key, the lower value
        counts once. With a `cache`, its tokens come before `ids_BT` and are joined by them.
        """
        if cache is not None:
            cache.check_room(ids_BT.shape[1])
        past = cache.length if cache is not None else 0
        x_BTD = self.embed(ids_BT, positions_BT, past)
        scores_mask = self._scores_mask(ids_BT, mask, cache)
        recompute_layers = (
            self.config.use_recompute
            and self.config.recompute_granularity == "full"
            and self.training
        )
        for index, layer in enumerate(self.layers):
            if recompute_layers:
                x_BTD = recompute(layer, x_BTD, scores_mask, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, scores_mask, cache, index)
        if cache is not None:
            cache.length += ids_BT.shape[1]
        return self.norm(x_BTD)

    def embed(self, ids_BT: Tensor, positions_BT: Tensor | None = None, past: int = 0) -> Tensor:
        """Return what goes into the first layer [B, T, D]; positions count from `past`."""
        if positions_BT is None:
            positions_BT = paddle.arange(past, past + ids_BT.shape[1]).unsqueeze(0)
        # Looked up for each sequence: on a CPU the gradient of a sum that is broadcast costs more.
        positions_BTD = self.position_embeddings(positions_BT.expand(ids_BT.shape))
        embedded = self.word_embeddings(ids_BT) + positions_BTD
        return self.dropout(embedded)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Multiply hidden states [..., D] with the tied word embeddings: [..., V]."""
        return self.word_embeddings.logits(x_BTD)

    def loss(self, x_BTD: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> Tensor:
        """Return the sum of weight · −log softmax(logits)[label], 0-d, without making the logits.

        `x_BTD` are what `hidden` returns; `models.kernels.linear_cross_entropy` has the rest.
        """
        return linear_cross_entropy(*self.word_embeddings.read_out(x_BTD), labels_BT, weights_BT)

    def token_losses(self, x_BTD: Tensor, labels_BT: Tensor) -> Tensor:
        """Return −log softmax(logits)[label] of every token, [B * T], without gradients."""
        return token_losses(*self.word_embeddings.read_out(x_BTD), labels_BT)

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """Return an empty key-value cache for `capacity` tokens of `batch_size` sequences."""
        attention = self.layers[0].self_attn
        return KVCache(
            num_layers=self.config.num_layers,
            num_heads=attention.heads,
            head_size=attention.head_size,
            batch_size=batch_size,
            capacity=capacity,
            dtype=attention.qkv_proj.bias.dtype,
        )

    def auxiliary_loss(self) -> Tensor | None:
        """Return what the feed-forwards of the last forward pass add to the objective, or None."""
        losses = [loss for layer in self.layers if (loss := layer.ffn.auxiliary_loss()) is not None]
        return sum(losses[1:], losses[0]) if losses else None

    def set_progress(self, share: float, draws: Sequence[float]) -> None:
        """Tell the feed-forwards, before a training step, how much of the run is done (0 to 1).

        `draws` are random numbers from 0 to 1, one a layer.
        """
        for layer, draw in zip(self.layers, draws, strict=True):
            layer.ffn.set_progress(share, draw)

    def on_ffn_replaced(self, spec: dict[str, Any]) -> None:
        """Keep the configuration true after `models.ffn.approximate` or `merge`.

        The ranks are those of the layers that are there: `merge` makes other factors whole, too.
        """
        attention = [layer.self_attn.qkv_proj for layer in self.layers]
        self.config = replace(
            self.config,
            ffn=spec,
            attention_rank=getattr(attention[0], "rank", None) if attention else None,
            embedding_rank=getattr(self.word_embeddings, "rank", None),
        )

    def _scores_mask(
        self, ids_BT: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor | None:
        """Join the causal mask with that of the masked token and the caller's, if there are any.

        Return [T, S] or [B, T, S], or None for the causal one alone.
        """
        if self.config.masked_token_id is None and mask is None:
            return None
        joined = causal_mask(ids_BT.shape[1], cache.length if cache is not None else 0)
        if self.config.masked_token_id is not None:
            visible_BT = (ids_BT != self.config.masked_token_id).astype(joined.dtype)
            visible_BS = visible_BT if cache is None else cache.append_visible(visible_BT)
            pairs_BTS = visible_BT.unsqueeze(2) * visible_BS.unsqueeze(1)
            joined = paddle.minimum(joined, MASKED * (1.0 - pairs_BTS))
        if mask is not None:
            joined = paddle.minimum(joined, mask.squeeze(1).astype(joined.dtype))
        return joined


def count_parameters(config: GPTConfig) -> int:
    """Number of trainable values, in closed form (the tied head counts once)."""
    d, layers = config.hidden_size, config.num_layers
    attention = _attention_weights(config) + 4 * d
    norms = 4 * d
    feed_forwards = sum(cost.parameters for cost in config.ffn_costs)
    embeddings = _embedding_weights(config) + config.max_position_embeddings * d
    return embeddings + layers * (attention + norms) + feed_forwards + 2 * d


def flops_per_token(config: GPTConfig, seq_len: int) -> int:
    """Forward FLOPs per token at sequences of `seq_len`, matrix products only, in closed form.

    A multiply-add counts as two; attention counts the whole [T, T] square, masked or not. The
    lookup in a table of two factors is a product with the second one.
    """
    d = config.hidden_size
    attention = 2 * _attention_weights(config) + 4 * seq_len * d
    feed_forwards = sum(cost.flops_per_token for cost in config.ffn_costs)
    lookup = 2 * (config.embedding_rank or 0) * d
    return config.num_layers * attention + feed_forwards + lookup + 2 * _embedding_weights(config)


def project(layer: nn.Layer, x: Tensor) -> Tensor:
    """Return layer(x), in one operator if it is a whole matrix that nobody else has a part in."""
    if type(layer) is nn.Linear and is_bare(layer):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def build_projections(config: GPTConfig, rank: int | None) -> dict[str, nn.Layer]:
    """Make the projections of an attention by their names there, in factors if there is a rank."""
    d, std = config.hidden_size, config.initializer_range
    widths = {"qkv_proj": 3 * d, "out_proj": d}
    if rank is None:
        normal = paddle.ParamAttr(initializer=nn.initializer.Normal(0.0, std))
        return {name: nn.Linear(d, out, weight_attr=normal) for name, out in widths.items()}
    options = config.factor_options(rank)
    return {name: LowRankLinear(d, out, options, init_std=std) for name, out in widths.items()}


def build_word_embeddings(config: GPTConfig, rank: int | None) -> TiedEmbedding | FactoredEmbedding:
    """Make the table of the tokens, in factors if there is a rank."""
    sizes, std = (config.vocab_size, config.hidden_size), config.initializer_range
    if rank is None:
        return TiedEmbedding(*sizes, init_std=std)
    return FactoredEmbedding(*sizes, config.factor_options(rank), init_std=std)


def _attention_weights(config: GPTConfig) -> int:
    d, rank = config.hidden_size, config.attention_rank
    return count_weights(d, 3 * d, rank) + count_weights(d, d, rank)


def _embedding_weights(config: GPTConfig) -> int:
    return count_weights(config.vocab_size, config.hidden_size, config.embedding_rank)


def count_weights(rows: int, columns: int, rank: int | None) -> int:
    """Entries of a matrix [rows, columns], or of its two factors if there is a rank."""
    return rows * columns if rank is None else rank * (rows + columns)
