"""Rules of what stage 1 has in cheaper forms: ranks and options against the model's sizes."""

from __future__ import annotations

import math

from fastffn_cli.config.ffn import (
    FFN_KINDS,
    INNER_OPTIONS,
    BlockDenseFFN,
    Blocks,
    Factors,
    GuidedFFN,
    LowRankActivationFFN,
    LowRankFFN,
    MoEFFN,
    MonarchFFN,
    ThinFFN,
)
from fastffn_cli.config.fields import Block
from fastffn_cli.config.review import Review, divisors, reads

_DEFAULT_CAP = LowRankFFN(kind="low_rank").lr_cap


@reads("Model.hidden_size", "Model.ffn_hidden_size", "Model.ffn")
def _rank_fits(review: Review) -> None:
    model = review.config.Model
    ffn = _trained_options(review)
    if not isinstance(ffn, LowRankFFN):
        return
    inner = model.ffn_hidden_size or 4 * model.hidden_size
    rank = max(ffn.layer_ranks, default=ffn.rank)
    smaller = min(model.hidden_size, inner)
    name = "hidden_size" if smaller == model.hidden_size else "ffn_hidden_size"
    keys = ("Model.ffn.rank", f"Model.{name}", "Model.ffn.kind")
    if rank > smaller:
        review.error(
            f"rank {rank} is above {name} {smaller}: set Model.ffn.rank to at most {smaller}; "
            "the original uses 8",
            *keys,
        )
    elif rank * (model.hidden_size + inner) >= model.hidden_size * inner:
        most = (model.hidden_size * inner - 1) // (model.hidden_size + inner)
        review.warn(
            f"factors of rank {rank} cost as much as the dense weights they replace: set "
            f"Model.ffn.rank to at most {most}",
            *keys,
        )


@reads("Model.attention_rank", "Model.hidden_size")
def _attention_rank_fits(review: Review) -> None:
    rank, d = review.config.Model.attention_rank, review.config.Model.hidden_size
    # [D, 3D] and [D, D] in factors are 6·R·D weights in the place of 4·D².
    _check_rank(review, "attention_rank", rank, [("hidden_size", d)], most=(2 * d - 1) // 3)


@reads("Model.embedding_rank", "Model.hidden_size", "Model.vocab_size")
def _embedding_rank_fits(review: Review) -> None:
    model = review.config.Model
    sides, most = [("hidden_size", model.hidden_size)], model.hidden_size - 1
    if (rows := model.vocab_size) is not None:
        sides.append(("vocab_size", rows))
        most = (rows * model.hidden_size - 1) // (rows + model.hidden_size)
    _check_rank(review, "embedding_rank", model.embedding_rank, sides, most=most)


def _check_rank(
    review: Review, name: str, rank: int | None, sides: list[tuple[str, int]], *, most: int
) -> None:
    """Report a rank above a side of its matrix, or above `most`, at which factors are cheaper."""
    if rank is None:
        return
    side, size = min(sides, key=lambda each: each[1])
    keys = (f"Model.{name}", f"Model.{side}")
    if rank > size:
        review.error(
            f"{name} {rank} is above {side} {size}: set Model.{name} to at most {most}", *keys
        )
    elif rank > most:
        review.warn(
            f"factors of rank {rank} cost as much as the whole matrices they replace: set "
            f"Model.{name} to at most {most}, or leave it blank",
            *keys,
        )


@reads("Model.ffn", "Model.hidden_size", "Model.ffn_hidden_size")
def _width_fits(review: Review) -> None:
    model = review.config.Model
    full, width = model.ffn_hidden_size or 4 * model.hidden_size, getattr(model.ffn, "width", None)
    if width is not None and width > full:
        review.error(
            f"width {width} is above ffn_hidden_size {full}, to which hidden units are grown: set "
            f"Model.ffn.width to at most {full}; a quarter of hidden_size is usual",
            "Model.ffn.width", "Model.ffn_hidden_size",
        )  # fmt: skip


@reads("Model.ffn", "Model.hidden_size", "Model.ffn_hidden_size")
def _thin_rank_fits(review: Review) -> None:
    model = review.config.Model
    ffn = _trained_options(review)
    if not isinstance(ffn, ThinFFN):
        return
    d, full = model.hidden_size, model.ffn_hidden_size or 4 * model.hidden_size
    width = ffn.width or min(max(1, d // 4), full)
    rank, smaller = max(ffn.layer_ranks, default=ffn.rank), min(d, width)
    keys = ("Model.ffn.rank", "Model.ffn.layer_ranks", "Model.ffn.width", "Model.ffn.kind")
    if rank > smaller:
        name = f"width {width}" if width < d else f"hidden_size {d}"
        review.error(
            f"rank {rank} is above {name}: set Model.ffn.rank to at most {smaller}"
            + (", or raise Model.ffn.width" if rank <= min(d, full) else ""),
            *keys,
        )
    elif rank * (d + width) >= d * width:
        review.warn(
            f"factors of rank {rank} cost as much as the {d} x {width} weights they replace: lower "
            "Model.ffn.rank, or set Model.ffn.kind to narrow",
            *keys,
        )


@reads("Model.ffn", "Model.hidden_size", "Model.ffn_hidden_size")
def _blocks_fit(review: Review) -> None:
    ffn, d = review.config.Model.ffn, review.config.Model.hidden_size
    full = review.config.Model.ffn_hidden_size or 4 * d
    name = getattr(ffn, "inner", ffn.kind)
    kind = FFN_KINDS[name]
    if not issubclass(kind, Blocks):
        return
    blocks = getattr(ffn, "blocks", None) or kind.model_fields["blocks"].default
    keys = ("Model.ffn.blocks", "Model.hidden_size", "Model.ffn_hidden_size", "Model.ffn.kind")
    if d % blocks or full % blocks:
        fits = ", ".join(map(str, sorted(divisors(math.gcd(d, full)))))
        review.error(
            f"{blocks} blocks do not divide both hidden_size {d} and ffn_hidden_size {full}: set "
            f"Model.ffn.blocks to one of {fits}",
            *keys,
        )
        return
    weights = d * full // blocks
    if issubclass(kind, MonarchFFN):
        weights = min(d, full) * (d + full) // blocks
    elif issubclass(kind, BlockDenseFFN):
        rank = getattr(ffn, "rank", None) or kind.model_fields["rank"].default
        ranks = getattr(ffn, "layer_ranks", ()) or (rank,)
        if not _block_ranks_fit(review, ranks, blocks, min(d, full)):
            return
        weights = max(ranks) * (d + full) * (blocks + 1) // (2 * blocks)
    if weights >= d * full:
        instead = ", or lower Model.ffn.rank" if issubclass(kind, BlockDenseFFN) else ""
        review.warn(
            f"{name} with blocks: {blocks} costs as much as the dense weights it replaces: raise "
            f"Model.ffn.blocks{instead}",
            *keys,
        )


def _block_ranks_fit(review: Review, ranks: tuple[int, ...], blocks: int, most: int) -> bool:
    """Report a rank that cannot be cut into the blocks; return whether all can."""
    for rank in ranks:
        if rank > most or rank % blocks:
            below = min(rank, most) // blocks * blocks
            fits = [str(size) for size in (below, below + blocks) if 0 < size <= most]
            review.error(
                f"rank {rank} is "
                + (f"above {most}" if rank > most else f"not a multiple of {blocks} blocks")
                + f": set Model.ffn.rank to {' or '.join(fits)}",
                "Model.ffn.layer_ranks", "Model.ffn.rank", "Model.ffn.blocks", "Model.ffn.kind",
            )  # fmt: skip
            return False
    return True


def _trained_options(review: Review) -> Block:
    """Return the options of the cheap feed-forward: those of the kind that is guided, if one is."""
    ffn = review.config.Model.ffn
    return ffn.inner_options() if isinstance(ffn, GuidedFFN) else ffn


@reads("Model.ffn", "Model.hidden_size", "Model.ffn_hidden_size")
def _activation_rank_pays(review: Review) -> None:
    model, ffn = review.config.Model, review.config.Model.ffn
    if not isinstance(ffn, LowRankActivationFFN):
        return
    d, full = model.hidden_size, model.ffn_hidden_size or 4 * model.hidden_size
    rank = max(ffn.layer_ranks, default=ffn.rank)
    if rank * (d + full) >= d * full:
        review.warn(
            f"factors of rank {rank} cost as much as the dense weights they replace: set "
            f"Model.ffn.rank to {max(1, d // 4)}, a quarter of hidden_size",
            "Model.ffn.layer_ranks", "Model.ffn.rank", "Model.ffn.kind",
        )  # fmt: skip


@reads("Model.ffn")
def _choices_fit(review: Review) -> None:
    ffn = review.config.Model.ffn
    if isinstance(ffn, MoEFFN) and ffn.top_k > ffn.experts:
        review.error(
            f"top_k {ffn.top_k} is above experts {ffn.experts}: set Model.ffn.top_k to at most "
            f"{ffn.experts}; 1 and 2 are usual",
            "Model.ffn.top_k", "Model.ffn.experts", "Model.ffn.kind",
        )  # fmt: skip


@reads("Model.ffn")
def _dense_form_exists(review: Review) -> None:
    ffn = review.config.Model.ffn
    if isinstance(ffn, (LowRankActivationFFN, MoEFFN)):
        review.note(
            f"feed-forward kind {ffn.kind} has no dense form: `fastffn convert` cannot merge it, "
            "and the model stays as it is",
            "Model.ffn.kind",
        )


@reads("Model.ffn")
def _inner_options_belong(review: Review) -> None:
    ffn = review.config.Model.ffn
    if not isinstance(ffn, GuidedFFN):
        return
    known = FFN_KINDS[ffn.inner].model_fields
    own = ", ".join(name for name in INNER_OPTIONS if name in known)
    for name in INNER_OPTIONS:
        if getattr(ffn, name) is not None and name not in known:
            review.error(
                f"{name} is not an option of the inner kind {ffn.inner}, which has {own}: remove "
                f"Model.ffn.{name}, or set Model.ffn.inner",
                f"Model.ffn.{name}", "Model.ffn.inner",
            )  # fmt: skip


@reads("Model.ffn", "Model.num_layers")
def _layers_are_there(review: Review) -> None:
    ffn, layers = review.config.Model.ffn, review.config.Model.num_layers
    for index in getattr(ffn, "dense_layers", ()):
        if not -layers <= index < layers:
            review.error(
                f"dense_layers names layer {index}, and there are {layers}: write 0 to "
                f"{layers - 1}, or -1 for the last",
                "Model.ffn.dense_layers", "Model.num_layers",
            )  # fmt: skip
    ranks = getattr(ffn, "layer_ranks", ())
    if ranks and len(ranks) != layers:
        review.error(
            f"layer_ranks has {len(ranks)} ranks for {layers} layers: write {layers} of them, or "
            "leave it blank for the same rank everywhere",
            "Model.ffn.layer_ranks", "Model.num_layers",
        )  # fmt: skip
    elif any(rank < 1 for rank in ranks):
        review.error("layer_ranks are at least 1 each", "Model.ffn.layer_ranks")


@reads("Model.ffn")
def _cap_needs_rule(review: Review) -> None:
    ffn = review.config.Model.ffn
    if isinstance(ffn, Factors | Blocks) and ffn.lr_rule == "none" and ffn.lr_cap != _DEFAULT_CAP:
        review.note("lr_cap has no effect while lr_rule is none", "Model.ffn.lr_cap")
