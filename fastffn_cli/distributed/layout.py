"""How a training run is laid out over cards, and whether a model allows it.

Degrees are FleetX's: data parallel times sharding times tensor times pipeline degree is the number
of cards. Of sharding, too, each card reads its own sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastffn_cli.config.review import nearest_divisor
from fastffn_cli.config.schema import Config
from fastffn_cli.engine.share import SPLIT_ALONG_F, SPLIT_ALONG_WIDTH, Share, hidden_units
from fastffn_cli.errors import ConfigError
from models.gpt import GPTConfig


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Degrees of parallelism and the pieces of a step.

    A step is `micro_batches` forward and backward passes of `micro_batch_size` sequences on each of
    the data parallel cards. `half` is O2: weights of 16 bits, masters of 32. `recompute` is the
    granularity of the model (`GPTConfig.recompute_granularity`).
    """

    dp: int = 1
    mp: int = 1
    pp: int = 1
    sharding_degree: int = 1
    sharding_stage: int = 1
    micro_batch_size: int = 1
    micro_batches: int = 1
    sequence_parallel: bool = False
    recompute: bool = False
    half: bool = False

    @property
    def data(self) -> int:
        """Cards that read sequences of their own, per tensor and pipeline rank."""
        return self.dp * self.sharding_degree

    @property
    def cards(self) -> int:
        """All of them."""
        return self.data * self.mp * self.pp

    @property
    def global_batch(self) -> int:
        """Sequences of a step over all cards."""
        return self.data * self.micro_batches * self.micro_batch_size

    def model(self, model: GPTConfig) -> GPTConfig:
        """The model that recomputes as the layout says."""
        return replace(model, use_recompute=self.recompute)

    def share(self, model: GPTConfig, stage: int) -> Share:
        """What a card of pipeline stage `stage`, from 0, holds.

        1F1B (Narayanan et al. 2021, arXiv:2104.04473): stage s has pp - s micro batches under way.
        """
        layers = model.num_layers // self.pp
        kept = self.sharding_stage if self.sharding_degree > 1 else 0
        return Share(
            first_layer=stage * layers,
            end_layer=(stage + 1) * layers,
            tensor=self.mp,
            sequence=self.sequence_parallel,
            in_flight=min(self.pp - stage, self.micro_batches),
            state_cards=self.sharding_degree if kept >= 1 else 1,
            gradient_cards=self.sharding_degree if kept >= 2 else 1,
            weight_cards=self.sharding_degree if kept >= 3 else 1,
        )

    def describe(self) -> str:
        """Return e.g. `dp 4 x mp 2 x pp 4, 24 x 2 sequences, recompute`."""
        degrees = {
            "dp": self.dp, "sharding": self.sharding_degree, "mp": self.mp, "pp": self.pp,
        }  # fmt: skip
        above = [f"{name} {degree}" for name, degree in degrees.items() if degree > 1]
        parts = [" x ".join(above) or "one card"]
        if self.sharding_degree > 1:
            parts[0] += f" (stage {self.sharding_stage})"
        parts.append(f"{self.micro_batches} x {self.micro_batch_size} sequences")
        parts += ["sequence parallel"] * self.sequence_parallel + ["recompute"] * self.recompute
        return ", ".join(parts)


def read_layout(config: Config) -> Layout:
    """The layout that a resolved configuration asks for, whatever this machine has."""
    degrees, mix = config.Distributed, config.Engine.mix_precision
    rounds = config.Engine.accumulate_steps
    assert rounds is not None, "load_config derives it"
    return Layout(
        dp=degrees.dp_degree,
        mp=degrees.mp_degree,
        pp=degrees.pp_degree,
        sharding_degree=degrees.sharding.sharding_degree,
        sharding_stage=degrees.sharding.sharding_stage,
        micro_batch_size=config.Data.batch_size.micro_batch_size,
        micro_batches=rounds,
        sequence_parallel=degrees.sequence_parallel and degrees.mp_degree > 1,
        recompute=config.Model.use_recompute,
        half=bool(mix.enable) and mix.level == "O2",
    )


def check_layout(model: GPTConfig, seq_len: int, layout: Layout, cards: int | None = None) -> None:
    """Raise `ConfigError` with every reason why the model cannot be laid out so on the cards."""
    if problems := find_problems(model, seq_len, layout, cards):
        raise ConfigError("the layout", problems)


def find_problems(
    model: GPTConfig, seq_len: int, layout: Layout, cards: int | None = None
) -> list[str]:
    """Return every reason why not, each with what to type instead; `cards` None is any number."""
    if wrong := _below_one(layout):
        return wrong
    problems = [*_tensor_problems(model, seq_len, layout), *_stage_problems(model, layout)]
    if cards is not None and layout.cards != cards:
        rest = layout.mp * layout.pp * layout.sharding_degree
        remedy = (
            f"set dp_degree to {cards // rest}"
            if cards % rest == 0
            else f"no dp_degree makes up for it, set another degree: they multiply to {rest}"
        )
        problems.append(
            f"dp_degree {layout.dp} x sharding_degree {layout.sharding_degree} x mp_degree "
            f"{layout.mp} x pp_degree {layout.pp} = {layout.cards} cards, and there are {cards}: "
            f"{remedy}"
        )
    return problems


def _below_one(layout: Layout) -> list[str]:
    sizes = {
        "dp_degree": layout.dp, "mp_degree": layout.mp, "pp_degree": layout.pp,
        "sharding_degree": layout.sharding_degree, "micro_batch_size": layout.micro_batch_size,
        "accumulate_steps": layout.micro_batches,
    }  # fmt: skip
    problems = [
        f"{name} {size} is below 1: set it to 1" for name, size in sizes.items() if size < 1
    ]
    if layout.sharding_stage not in (1, 2, 3):
        problems.append(f"sharding_stage {layout.sharding_stage} is none of 1, 2, 3: set it to 1")
    return problems


def _tensor_problems(model: GPTConfig, seq_len: int, layout: Layout) -> list[str]:
    mp, heads = layout.mp, model.num_attention_heads
    if mp == 1:
        if layout.sequence_parallel:
            return [
                "sequence_parallel divides time among tensor parallel cards, and mp_degree is 1: "
                "set sequence_parallel to false, or mp_degree above 1"
            ]
        return []
    problems = []
    if layout.sequence_parallel and seq_len % mp:
        problems.append(
            f"mp_degree {mp} does not divide max_seq_len {seq_len}: set sequence_parallel to "
            f"false, or max_seq_len to {max(seq_len // mp, 1) * mp}"
        )
    if heads % mp:
        problems.append(
            f"mp_degree {mp} does not divide num_attention_heads {heads}: set mp_degree to "
            f"{nearest_divisor(heads, mp)}"
        )
    for spec in {repr(spec): spec for spec in model.ffn_specs}.values():
        kind, units = spec.get("kind", "dense"), hidden_units(spec, model.ffn_shape)
        if units is None:
            *kinds, last = (*SPLIT_ALONG_F, *SPLIT_ALONG_WIDTH)
            problems.append(
                f"feed-forwards of kind {kind} are not split among cards: set mp_degree to 1, or "
                f"Model.ffn.kind to {', '.join(kinds)} or {last}"
            )
        elif units % mp:
            width = "Model.ffn.width" if kind in SPLIT_ALONG_WIDTH else "ffn_hidden_size"
            problems.append(
                f"mp_degree {mp} does not divide the {units} hidden units of the feed-forwards: "
                f"set mp_degree to {nearest_divisor(units, mp)}, or {width} to "
                f"{-(-units // mp) * mp}"
            )
    return problems


def _stage_problems(model: GPTConfig, layout: Layout) -> list[str]:
    pp, layers = layout.pp, model.num_layers
    problems = []
    if layers % pp:
        problems.append(
            f"pp_degree {pp} does not divide num_layers {layers}: set pp_degree to "
            f"{nearest_divisor(layers, pp)}, or num_layers to {-(-layers // pp) * pp}"
        )
    if pp > 1 and layout.sharding_degree > 1 and layout.sharding_stage > 1:
        problems.append(
            f"sharding_stage {layout.sharding_stage} does not go with pp_degree {pp}, where "
            "gradients of several micro batches are under way: set sharding_stage to 1"
        )
    return problems
