import random

import pytest

from fastffn_cli.data.tokenizer import build_tokenizer
from fastffn_cli.generation.streaming import TextStream, continuation_text

TEXTS = [
    "plain words, and a line\nbreak",
    "naïve café – „Größe“ …",
    "日本語のテキスト。漢字とかな",
    "😀👨‍👩‍👧 flags 🇩🇪🇫🇷 and 𝒎𝒂𝒕𝒉",
    "half 😀 plain é half 日 " * 12,
]


@pytest.fixture(scope="module")
def byte_tokenizer():
    return build_tokenizer("bytes")


def pieces_of(tokenizer, ids, context=()):
    stream = TextStream(tokenizer, context)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(byte_tokenizer, text):
    pieces = pieces_of(byte_tokenizer, byte_tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_ascii_is_shown_at_once(byte_tokenizer):
    assert pieces_of(byte_tokenizer, byte_tokenizer.encode("abc")) == ["a", "b", "c", ""]


def test_a_character_appears_with_its_last_byte(byte_tokenizer):
    assert pieces_of(byte_tokenizer, byte_tokenizer.encode("é€😀")) == [
        "", "é", "", "", "€", "", "", "", "😀", "",
    ]  # fmt: skip


def test_an_unfinished_character_is_flushed_at_the_end(byte_tokenizer):
    pieces = pieces_of(byte_tokenizer, [*b"ok \xe2\x82"])
    assert "".join(pieces[:-1]) == "ok "
    assert pieces[-1].strip("\ufffd") == "" and pieces[-1]


def test_invalid_bytes_do_not_hold_the_stream_back(byte_tokenizer):
    pieces = pieces_of(byte_tokenizer, [0x80] * 50)
    assert "".join(pieces) == "\ufffd" * 50
    assert sum(len(piece) for piece in pieces[:-1]) >= 47


def test_random_bytes_join_to_what_decoding_all_of_them_gives(byte_tokenizer):
    source = random.Random(5)
    for _ in range(40):
        ids = [source.choice([*b"ab \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xff"]) for _ in range(90)]
        assert "".join(pieces_of(byte_tokenizer, ids)) == byte_tokenizer.decode(ids)


def test_a_real_replacement_sign_in_the_text_is_kept(byte_tokenizer):
    text = "a \ufffd b \ufffd"
    assert "".join(pieces_of(byte_tokenizer, byte_tokenizer.encode(text))) == text


def test_a_prompt_that_ends_inside_a_character_is_completed(byte_tokenizer):
    assert continuation_text(byte_tokenizer, [*b"x \xe2\x82"], [0xAC, *b" y"]) == "€ y"


def test_blanks_of_tokenizers_that_write_them_between_words():
    from tokenizers import Tokenizer, decoders, models

    class Words:
        def __init__(self):
            words = {"[UNK]": 0, "one": 1, "two": 2, "##s": 3}
            self.engine = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
            self.engine.decoder = decoders.WordPiece()

        def decode(self, ids, skip_special=True):
            return self.engine.decode(list(ids), skip_special_tokens=skip_special)

    assert continuation_text(Words(), [1], [2, 3, 1]) == " twos one"
    ids = [2, 3, 1] * 40
    assert continuation_text(Words(), [1], ids) == " twos one" * 40
