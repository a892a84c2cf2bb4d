"""A GPT of which a process holds the layers of its pipeline stage, under their names in the whole.

The first stage has the embeddings, the last one the final norm and a copy of the table of the
tokens, which is the head. What a stage does not have is replaced by what hands its input on, so
that the model's own code runs on every stage.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paddle import Tensor, nn

from fastffn_cli.distributed.layout import Layout
from models.gpt import GPT

if TYPE_CHECKING:
    from fastffn_cli.distributed.mesh import Axis

TABLE = "word_embeddings"


class AbsentLayer(nn.Layer):
    """Stands in the place of a decoder layer that another stage has, and of its feed-forward."""

    @property
    def ffn(self) -> AbsentLayer:
        """The feed-forward: as absent as the layer."""
        return self

    def forward(self, x_BTD: Tensor, mask: Tensor, cache: object = None, layer: int = 0) -> Tensor:
        """Return [B, T, D] as it is."""
        return x_BTD

    def auxiliary_loss(self) -> None:
        """Add nothing to the objective."""

    def set_progress(self, share: float, draw: float) -> None:
        """Take no notice."""


class Stage(GPT):
    """The part of `whole` that stage `axis.index` of `axis.size` stages computes.

    It takes the layers over, as they are: `whole` is not to be used any more. Its `hidden` maps
    token ids [B, T] (first stage) or `received` [B, T, D] (the others, which need the ids for masks
    alone) to what the next stage is to receive, or the head (last stage), [B, T, D].

    `copied` are the names of parameters that the last stage shares with the first: both apply the
    same update to them; norms and checkpoints count those of the first.
    """

    def __init__(self, whole: GPT, axis: Axis) -> None:
        super(GPT, self).__init__()
        self.config = whole.config
        share = Layout(pp=axis.size).share(whole.config, axis.index)
        self.is_first, self.is_last = share.holds_embeddings(), share.holds_head(whole.config)
        self.received: Tensor | None = None
        own = share.layers(whole.config)
        if self.is_first or self.is_last:
            self.word_embeddings = whole.word_embeddings
        if self.is_first:
            self.position_embeddings = whole.position_embeddings
            self.dropout = whole.dropout
        self.layers = nn.LayerList(
            layer if index in own else AbsentLayer() for index, layer in enumerate(whole.layers)
        )
        self.norm = whole.norm if self.is_last else nn.Identity()
        self.training = whole.training

    @property
    def copied(self) -> frozenset[str]:
        """The names of the parameters here that belong to the first stage."""
        return frozenset() if self.is_first else frozenset(self.table)

    @property
    def table(self) -> dict[str, Tensor]:
        """The parameters of the table of the tokens; none on a stage in the middle."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith(f"{TABLE}.")
        }

    def embed(self, ids_BT: Tensor, positions_BT: Tensor | None = None, past: int = 0) -> Tensor:
        """Return what goes into the stage's first layer [B, T, D]."""
        if self.is_first:
            return super().embed(ids_BT, positions_BT, past)
        assert self.received is not None, "a later stage runs on what it received"
        return self.received

    def on_ffn_replaced(self, spec: dict[str, Any]) -> None:
        """Keep the configuration true after `models.ffn.merge`, which leaves no factors."""
        self.config = replace(self.config, ffn=spec, attention_rank=None, embedding_rank=None)
