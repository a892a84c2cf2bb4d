"""The models and layouts that tests of plans share."""

from fastffn_cli.distributed.layout import Layout
from models.gpt import GPTConfig

TINY = GPTConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=4,
    num_attention_heads=4,
    ffn_hidden_size=128,
    max_position_embeddings=16,
)
# MindFormers' GPT2-13B and its layout on four nodes of eight cards.
GPT_13B = GPTConfig(
    vocab_size=50257,
    hidden_size=5120,
    num_layers=40,
    num_attention_heads=40,
    ffn_hidden_size=20480,
    max_position_embeddings=1024,
)
LAYOUT_13B = Layout(
    mp=2,
    pp=4,
    sharding_degree=4,
    micro_batch_size=2,
    micro_batches=24,
    recompute=True,
    half=True,
)
