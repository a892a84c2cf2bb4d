import io
import sys

import pytest

from fastffn_cli.data.tokenizer import build_tokenizer
from fastffn_cli.errors import DataError, UserError
from fastffn_cli.generation.prompts import encode_prompts, gather_texts, parse_prompt_ids


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


@pytest.fixture
def stdin(monkeypatch):
    def put(content, kind=io.TextIOWrapper):
        monkeypatch.setattr(sys, "stdin", kind(io.BytesIO(content)))

    put(b"")
    return put


def test_prompts_of_the_command_line_leave_stdin_alone(stdin):
    stdin(b"from stdin\n")
    assert gather_texts(["a", "b c"], None) == ["a", "b c"]
    assert sys.stdin.read() == "from stdin\n"


def test_stdin_has_one_prompt_a_line(stdin):
    stdin("one\r\n\n  two é\n \u2028three\n".encode())
    assert gather_texts([], None) == ["one", "  two é", " \u2028three"]
    stdin(b"x\n")
    assert gather_texts(["a"], "-") == ["a", "x"]


def test_a_file_has_one_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbffirst\nsecond")
    assert gather_texts([], str(tmp_path / "p.txt")) == ["first", "second"]


@pytest.mark.parametrize("kind", [Terminal, io.TextIOWrapper])
def test_no_prompt_at_all_is_an_error(stdin, kind):
    stdin(b"", kind)
    with pytest.raises(UserError, match="no prompt"):
        gather_texts([], None)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.txt: No such file"):
        gather_texts([], str(tmp_path / "gone.txt"))


def test_bytes_that_are_no_text_are_placed(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(DataError, match=r"bad\.txt:2: byte 9 is not UTF-8"):
        gather_texts([], str(tmp_path / "bad.txt"))


def test_an_empty_prompt_says_how_to_start_a_document():
    with pytest.raises(UserError, match="prompt 2 is empty") as caught:
        encode_prompts(["a", ""], build_tokenizer("bytes"))
    assert "--prompt-ids 256" in caught.value.hint


def test_texts_become_ids():
    (prompt,) = encode_prompts(["é"], build_tokenizer("bytes"))
    assert (prompt.text, prompt.ids) == ("é", [0xC3, 0xA9])


@pytest.mark.parametrize("row", ["104 105", "104,105", " 104, 105 "])
def test_ids_are_parted_by_blanks_or_commas(row):
    (prompt,) = parse_prompt_ids([row], build_tokenizer("bytes"))
    assert (prompt.text, prompt.ids) == ("hi", [104, 105])
    assert parse_prompt_ids([row], None)[0].text == "104 105"


@pytest.mark.parametrize("row", ["1 x", "1.5", "-1", "", "²"])
def test_what_is_no_id_is_named(row):
    with pytest.raises(UserError, match="--prompt-ids"):
        parse_prompt_ids([row], None)
