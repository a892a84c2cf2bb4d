"""Low-rank attention projections and token embeddings for a trained GPT, beside `ffn.approximate`.

The way back is `ffn.merge`, which folds these factors together with those of the feed-forwards.
"""

from __future__ import annotations

from paddle import nn

from models.ffn.base import relative_error
from models.ffn.low_rank import LowRankLinear, truncated_svd
from models.ffn.parameters import to_float64
from models.gpt import GPT, build_projections, build_word_embeddings


def factor(
    model: GPT, *, attention_rank: int | None = None, embedding_rank: int | None = None
) -> dict[str, float]:
    """Replace matrices of `model` in place by their best factors of a rank (truncated SVD).

    A blank rank leaves its matrices as they are. How the factors train follows, as in a model that
    is built with the ranks, from `model.config.ffn` (`GPTConfig.factor_options`): `ffn.approximate`
    comes first. Returns ‖W - W'‖/‖W‖ (Frobenius) by the path of each replaced matrix.

    Raises `ValueError`, before anything is changed, for a rank above the matrices' or for matrices
    that are in factors already.
    """
    targets: list[tuple[str, nn.Layer, str, nn.Layer]] = []
    if attention_rank is not None:
        for index, layer in enumerate(model.layers):
            path = f"layers.{index}.self_attn"
            for name, built in build_projections(model.config, attention_rank).items():
                targets.append((f"{path}.{name}", layer.self_attn, name, built))
    if embedding_rank is not None:
        built = build_word_embeddings(model.config, embedding_rank)
        targets.append(("word_embeddings", model, "word_embeddings", built))
    for path, parent, name, _ in targets:
        if isinstance(getattr(parent, name), LowRankLinear):
            raise ValueError(f"{path} is in factors already")
    errors = {}
    for path, parent, name, built in targets:
        whole = getattr(parent, name)
        _fit(built, whole)
        errors[path] = relative_error(whole, built.dense_weight())
        setattr(parent, name, built)
    model.on_ffn_replaced(dict(model.config.ffn))
    return errors


def _fit(factors: LowRankLinear, whole: nn.Layer) -> None:
    """Give the factors the values, dtype and mode of the layer that they stand in for."""
    factors.to(dtype=whole.weight.dtype)
    factors.set_factors(*truncated_svd(to_float64(whole.weight), factors.rank))
    if factors.bias is not None:
        factors.bias.set_value(whole.bias)
    factors.training = whole.training
