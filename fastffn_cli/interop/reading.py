"""From another system's checkpoint to one of ours, header by header: no value is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastffn_cli.config.facts import Facts
from fastffn_cli.config.ffn import DENSE
from fastffn_cli.config.load import Resolved, default_config, load_config
from fastffn_cli.config.schema import Config
from fastffn_cli.data.tokenizer import Tokenizer
from fastffn_cli.engine.checkpoint import Checkpoint, hollow_model
from fastffn_cli.engine.tensor_file import StoredTensor
from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.layout import join_tensors
from fastffn_cli.interop.registry import open_foreign
from fastffn_cli.interop.system import Opened

HEADS = "num_attention_heads"
# What tensors tell: a configuration that says otherwise is of another model.
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    HEADS,
    "ffn_hidden_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class ForeignCheckpoint(Checkpoint):
    """A checkpoint of another system, as if it were ours; its values are still in its files."""

    system: str
    opened: Opened
    warnings: list[str]
    notices: list[str]
    joined: Mapping[str, StoredTensor] = field(repr=False)
    load_tokenizer: Callable[[], Tokenizer | None] = field(repr=False)

    def weights(self) -> Mapping[str, StoredTensor]:
        """Weights by our names, float32, still in their file."""
        return self.joined

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that came with the weights, if one did."""
        return self.load_tokenizer()


def read_foreign(
    path: Path, system_name: str, config: str | None = None, overrides: Sequence[str] = ()
) -> ForeignCheckpoint:
    """Open a checkpoint of `system_name` (or `auto`).

    `config` and `overrides` are what the user says about the model: needed where the files do not
    tell the number of attention heads, checked against them in all other sizes, and the source of
    all that is no size, such as dropout. Raises `ConfigError` where they contradict the files,
    `CheckpointError` for a file that is something else, damaged or of another shape, with all
    problems together.
    """
    system, opened = open_foreign(path, system_name)
    facts = _facts_of(opened)
    given = (
        load_config(config, overrides, facts=facts)
        if config is not None
        else default_config(overrides, facts=facts)
    )
    if HEADS not in opened.model and not given.origins[f"Model.{HEADS}"].given:
        raise CheckpointError(
            f"{path} does not tell the number of attention heads",
            hint=f"Give it with -c FILE (the YAML it was trained with) or -o Model.{HEADS}=N",
        )
    completed, notices = _with_told_parts(given, opened)
    shapes = {
        name: tuple(parameter.shape)
        for name, parameter in hollow_model(completed).named_parameters()
    }
    rules = system.rules(completed.Model, opened.tensors.keys())
    joined = join_tensors(rules, opened.tensors, shapes, path, ignored=opened.ignored)
    trainer = {
        "step": opened.step,
        "stage": "convert",
        **completed.Model.approximations,
        "seed": completed.Global.seed,
        "source": str(path),
        "format_of_source": opened.title,
    }
    return ForeignCheckpoint(
        path=path,
        config=completed,
        trainer=trainer,
        system=system.name,
        opened=opened,
        warnings=list(given.warnings),
        notices=[*given.notices, *opened.notices, *notices],
        joined=joined,
        load_tokenizer=opened.tokenizer,
    )


def _facts_of(opened: Opened) -> Facts:
    """What the files tell, to lie below what the user says."""
    model = {name: value for name, value in opened.model.items() if name != "ffn"}
    # One head fits every size; where no one tells the number, the reader refuses.
    return Facts(
        values={
            "Model": {HEADS: 1, **model},
            "Data": {"dataset": {"max_seq_len": model["max_position_embeddings"]}},
        },
        fixed=[f"Model.{name}" for name in SIZES if name in model],
        source=str(opened.path),
    )


def _with_told_parts(given: Resolved, opened: Opened) -> tuple[Config, list[str]]:
    """Take the feed-forwards as they are in the files, whatever the configuration asks for.

    Attention and embeddings are whole everywhere else.
    """
    told = dict(opened.model.get("ffn", DENSE["ffn"]))
    asked, origin = given.config.Model.ffn.kind, given.origins.get("Model.ffn.kind")
    notices = []
    if asked != told["kind"] and origin is not None and origin.given:
        notices.append(
            f"Model.ffn.kind is {asked} ({origin}), the feed-forwards of {opened.path} are "
            f"{told['kind']}: they stay so (--to changes them)"
        )
    for name in ("attention_rank", "embedding_rank"):
        if (rank := getattr(given.config.Model, name)) is not None:
            notices.append(
                f"Model.{name} is {rank} ({given.origins[f'Model.{name}']}), the matrices of "
                f"{opened.path} are whole: they stay so"
            )
    values = given.config.model_dump()
    values["Model"].update({**DENSE, "ffn": told})
    return Config.model_validate(values), notices
