import pytest

from fastffn_cli import ui
from fastffn_cli.data.tokenizer import build_tokenizer
from fastffn_cli.generation.generate import Generation
from fastffn_cli.generation.prompts import Prompt
from fastffn_cli.generation.writing import StreamWriter, as_record, write, write_block

EOS = 256
PROMPT = Prompt("hé", [*"hé".encode()])


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("bytes")


def test_a_stream_shows_prompt_pieces_and_a_line_end(capsys, tokenizer):
    writer = StreamWriter(PROMPT, tokenizer)
    writer.begin()
    assert capsys.readouterr().out == "hé"
    shown = []
    for token in " 😀!".encode():
        writer.on_token(0, 0, token)
        shown.append(capsys.readouterr().out)
    assert shown == [" ", "", "", "", "😀", "!"]
    writer.finish()
    assert capsys.readouterr().out == "\n"


def test_ids_are_streamed_where_there_is_no_tokenizer(capsys):
    writer = StreamWriter(Prompt("1 2", [1, 2]), None)
    writer.begin()
    writer.on_token(0, 0, 7)
    writer.finish()
    assert capsys.readouterr().out == "1 2 7\n"


def test_blocks_are_parted_by_an_empty_line_and_have_no_end_token(capsys, tokenizer):
    for index in range(2):
        generation = Generation(index, 0, [*b" you", EOS], "eos")
        write_block(PROMPT, generation, tokenizer, EOS)
    assert capsys.readouterr().out == "hé you\n\nhé you\n"


def test_a_record_has_the_keys_of_the_contract(tokenizer):
    generation = Generation(0, 0, [*b" you", EOS], "eos")
    assert as_record(PROMPT, generation, tokenizer, EOS) == {
        "prompt": "hé",
        "text": " you",
        "tokens": [*b" you", EOS],
        "finish_reason": "eos",
    }
    assert as_record(Prompt("1", [1]), generation, None, None)["text"] is None


def test_control_characters_cannot_drive_a_terminal(capsys, monkeypatch):
    text = "a\x1b[31m\tb\x07\x7f\x9b\n"
    write(text)
    assert capsys.readouterr().out == text
    monkeypatch.setattr(ui.out, "_force_terminal", True)
    write(text)
    assert capsys.readouterr().out == "a␛[31m\tb␇␡\ufffd\n"
