"""Texts for the data tests: real English that every Python carries, and awkward characters."""

from __future__ import annotations

from pydoc_data import topics

ENGLISH = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
AWKWARD = "naïve café — “quoted” 日本語 😀\ttab  two   spaces\r\n\x00 <|endoftext|> end\n\n  "
CHINESE = "自然语言处理是计算机科学的一个领域。它研究人与计算机之间的交流,包括理解和生成。" * 40
