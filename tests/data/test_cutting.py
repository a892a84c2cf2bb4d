"""Cutting a long text must not change its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from fastffn_cli.data import cutting
from fastffn_cli.data.cutting import Cutter
from fastffn_cli.data.tokenizer import Tokenizer, build_bytes_tokenizer, build_tokenizer
from tests.data.texts import AWKWARD, CHINESE, ENGLISH

PIECE = 3000
CHUNKY_PATTERN = tokenizers.Regex(
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def gpt2_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    file = tmp_path_factory.mktemp("text") / "english.txt"
    file.write_text(ENGLISH[:200_000], "utf-8")
    return build_tokenizer("train:700", [file])


@pytest.fixture(scope="module")
def newline_joining() -> Tokenizer:
    """Words as of later GPTs: a full stop takes the line ends behind it into its word."""
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(CHUNKY_PATTERN, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator([ENGLISH[:200_000]], trainer)
    return Tokenizer(engine, name="chunky", eos_token="<eos>")


def cut_up(text: str, cutter: Cutter) -> list[str]:
    """Cut a text the way the reader does: read some, cut, keep the rest."""
    pieces, buffer = [], ""
    for start in range(0, len(text), PIECE):
        buffer += text[start : start + PIECE]
        position = cutter(buffer) if len(buffer) > PIECE else None
        if position is not None:
            pieces.append(buffer[:position])
            buffer = buffer[position:]
    return [*pieces, buffer]


@pytest.mark.parametrize("kind", ["gpt2_like", "newline_joining", "bytes"])
@pytest.mark.parametrize("text", [ENGLISH[:120_000], CHINESE * 30, (AWKWARD + "x") * 900])
def test_tokens_of_the_pieces_are_the_tokens_of_the_whole(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = build_bytes_tokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    cutter = Cutter(tokenizer)
    pieces = cut_up(text, cutter)
    assert len(pieces) > 5
    assert "".join(pieces) == text
    joined = [token for piece in pieces for token in tokenizer.encode(piece)]
    assert joined == tokenizer.encode(text)
    assert cutter.forced == 0


@pytest.mark.parametrize("kind", ["gpt2_like", "newline_joining", "bytes"])
@pytest.mark.parametrize("text", [ENGLISH[:120_000], CHINESE * 30, (AWKWARD + "x") * 900, "", "a"])
def test_slices_are_short_and_have_the_tokens_of_the_whole(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = build_bytes_tokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    slices = list(Cutter(tokenizer).split(text, PIECE))
    assert "".join(slices) == text
    assert all(0 < len(each) <= PIECE for each in slices) or slices == [""]
    assert [token for each in slices for token in tokenizer.encode(each)] == tokenizer.encode(text)


def test_from_where_no_cut_is_safe_the_text_stays_whole(gpt2_like: Tokenizer) -> None:
    words, stretch = ENGLISH[:5000], "x" * 9000
    cutter = Cutter(gpt2_like)
    *_, rest = slices = list(cutter.split(words + stretch + words, PIECE))
    assert "".join(slices) == words + stretch + words
    assert rest.endswith(stretch + words)
    assert cutter.forced == 0


def test_a_tokenizer_that_marks_the_front_of_a_text_is_not_cut(tmp_path: Path) -> None:
    """One that puts a sign before each text would put one at each cut as well."""
    engine = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    engine.train_from_iterator(ENGLISH[:20_000].split("\n"), trainer)
    cutter = Cutter(Tokenizer(engine, name="marks", eos_token="</s>"))
    assert cutter(ENGLISH[:20_000]) is None


def test_a_text_without_blanks_is_cut_when_it_gets_too_long(
    gpt2_like: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "LONGEST_PIECE", 20_000)
    cutter = Cutter(gpt2_like)
    assert cutter("q" * 19_999) is None
    assert cutter("q" * 20_000) == 20_000
    assert cutter.forced == 1
