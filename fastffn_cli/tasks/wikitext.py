"""WikiText's spaced-out tokens back to ordinary writing.

WikiText separates every token by blanks (`guest @-@ starring role`, `= = Career = =`). Language
models are measured on the text as people write it, and the loss is then given per token of the
original (the adjusted perplexity). The rules are those that the published figures of Megatron-LM
and FleetX rest on, oddities included (quotes are paired blindly from the start of the text, the
stand-alone letter N becomes a 1): with other rules, numbers would not compare.
"""

from __future__ import annotations

import re

# Signs that only WikiText has: separators inside words and numbers, headings.
_MARKS = re.compile(r" @[-,.]@ |^ = .+ = $", re.MULTILINE)

_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_FIRST_WORD_RULES = (("s '", "s'"),)
_NUMBER_SEPARATORS = tuple((f" @{sign}@ ", sign) for sign in "-,.")
_PUNCTUATION = tuple((f" {sign} ", f"{sign} ") for sign in ":;.!?,")
_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def looks_like_wikitext(text: str) -> bool:
    """Tell whether a text carries WikiText's own marks (` @-@ `, ` = Heading = `)."""
    return _MARKS.search(text) is not None


def detokenize(text: str) -> str:
    """Return the text as people write it; it needs the whole text at once, as quotes pair up."""
    for old, new in (*_FIRST_WORD_RULES, *_NUMBER_SEPARATORS, *_PUNCTUATION):
        text = text.replace(old, new)
    for opening, closing in _PAIRS:
        text = _close_up(text, opening, closing)
    for old, new in _REST:
        text = text.replace(old, new)
    return text


def _close_up(text: str, opening: str, closing: str) -> str:
    """Drop the blanks just inside each pair of brackets or quotes."""
    inside = rf"{re.escape(opening)}\s*([^{re.escape(closing)}]*?)\s*{re.escape(closing)}"
    return re.sub(inside, lambda match: f"{opening}{match.group(1)}{closing}", text)
