"""From the `Model` section to a GPT."""

from __future__ import annotations

from dataclasses import replace

from fastffn_cli.config.ffn import DENSE
from fastffn_cli.config.schema import Config
from fastffn_cli.errors import ConfigError
from models.gpt import GPT, GPTConfig


def gpt_config(config: Config, *, vocab_size: int | None = None) -> GPTConfig:
    """Return the model's sizes; `vocab_size` stands in where the file leaves it to the data.

    Raises `ConfigError` for a masked token that such a vocabulary does not have, or a rank of the
    embeddings above it.
    """
    section = config.Model
    vocabulary = section.vocab_size if section.vocab_size is not None else vocab_size
    assert vocabulary is not None, "the caller resolves Model.vocab_size"
    if section.masked_token_id is not None and section.masked_token_id >= vocabulary:
        raise ConfigError(
            "the configuration",
            [
                f"Model.masked_token_id {section.masked_token_id} is not below the {vocabulary} "
                "tokens of the data"
            ],
            hint="Type the id of end-of-text: -o Model.masked_token_id=N",
        )
    if section.embedding_rank is not None and section.embedding_rank > vocabulary:
        raise ConfigError(
            "the configuration",
            [
                f"Model.embedding_rank {section.embedding_rank} is above the {vocabulary} tokens "
                "of the data"
            ],
            hint="Leave it out, or type one below: -o Model.embedding_rank=N",
        )
    return GPTConfig(
        vocab_size=vocabulary,
        hidden_size=section.hidden_size,
        num_layers=section.num_layers,
        num_attention_heads=section.num_attention_heads,
        ffn_hidden_size=section.ffn_hidden_size or 4 * section.hidden_size,
        max_position_embeddings=section.max_position_embeddings,
        hidden_dropout_prob=section.hidden_dropout_prob,
        attention_probs_dropout_prob=section.attention_probs_dropout_prob,
        embedding_dropout_prob=section.embedding_dropout_prob,
        initializer_range=section.initializer_range,
        use_recompute=section.use_recompute,
        recompute_granularity=section.recompute_granularity,
        masked_token_id=section.masked_token_id,
        hidden_act=section.hidden_act,
        **section.approximations,
    )


def build_model(config: GPTConfig, seed: int) -> GPT:
    """Build a GPT whose initial weights depend on `seed` alone."""
    import paddle

    paddle.seed(seed)
    return GPT(config)


def dense_counterpart(config: GPTConfig) -> GPTConfig:
    """The same model with nothing in a cheaper form."""
    return replace(config, **DENSE)
