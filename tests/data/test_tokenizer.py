from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from fastffn_cli.data.tokenizer import Tokenizer, build_bytes_tokenizer, build_tokenizer
from fastffn_cli.errors import DataError
from tests.data.texts import AWKWARD, CHINESE, ENGLISH


@pytest.fixture(scope="module")
def english_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "english.txt"
    file.write_text(ENGLISH[:200_000], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(english_file: Path) -> Tokenizer:
    return build_tokenizer("train:600", [english_file])


def write_gpt2_pair(folder: Path, trained: Tokenizer, names: tuple[str, str]) -> None:
    """Write a trained vocabulary the way GPT-2's is distributed, end-of-text included."""
    trained.save(folder / "full")
    saved = json.loads((folder / "full" / "tokenizer.json").read_text("utf-8"))
    vocabulary = {**saved["model"]["vocab"], trained.eos_token: trained.eos_id}
    (folder / names[0]).write_text(json.dumps(vocabulary), "utf-8")
    merges = ["#version: 0.2", *(" ".join(merge) for merge in saved["model"]["merges"])]
    (folder / names[1]).write_text("\n".join(merges) + "\n", "utf-8")


def test_bytes_gives_every_byte_its_own_id_and_end_of_text_256() -> None:
    tokenizer = build_bytes_tokenizer()
    text = "".join(map(chr, range(0xD800))) + "😀"
    assert tokenizer.encode(text) == list(text.encode("utf-8"))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)
    assert [tokenizer.token_text(byte) is not None for byte in range(258)] == [True] * 257 + [False]


def test_bytes_saved_is_the_same_tokenizer_for_the_library(tmp_path: Path) -> None:
    build_bytes_tokenizer().save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.encode_special_tokens = True
    assert library.encode(AWKWARD).ids == list(AWKWARD.encode("utf-8"))
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.name, loaded.is_bytes, loaded.eos_id) == ("bytes", True, 256)


@pytest.mark.parametrize("text", [AWKWARD, CHINESE, ENGLISH[:5000], "", " ", "\n"])
@pytest.mark.parametrize("kind", ["bytes", "trained"])
def test_decode_is_the_inverse_of_encode(kind: str, text: str, trained: Tokenizer) -> None:
    tokenizer = build_bytes_tokenizer() if kind == "bytes" else trained
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_shows_an_unfinished_character_and_then_the_whole_one() -> None:
    tokenizer = build_bytes_tokenizer()
    ids = tokenizer.encode("a😀")
    assert tokenizer.decode(ids[:3]) == "a\ufffd"
    assert tokenizer.decode(ids) == "a😀"


def test_decode_leaves_end_of_text_out_unless_asked(trained: Tokenizer) -> None:
    ids = [*trained.encode("end"), trained.eos_id]
    assert trained.decode(ids) == "end"
    assert trained.decode(ids, skip_special=False) == "end<|endoftext|>"


def test_trained_has_the_wanted_size_with_end_of_text_last(trained: Tokenizer) -> None:
    assert (trained.vocab_size, trained.eos_id) == (600, 599)
    assert len(trained.encode(ENGLISH[:5000])) < 0.7 * 5000


def test_training_is_the_same_in_another_process(english_file: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from fastffn_cli.data.tokenizer import build_tokenizer\n"
        "build_tokenizer('train:600', [Path(sys.argv[1])]).save(Path(sys.argv[2]))\n"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, english_file, tmp_path / seed],
            check=True,
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[2],
        )
    first, second = ((tmp_path / seed / "tokenizer.json").read_bytes() for seed in ("1", "2"))
    assert first == second


@pytest.mark.parametrize("spec", ["train:256", "train:0", "train:", "train:8k", "train:-5"])
def test_training_refuses_a_wrong_size(spec: str, english_file: Path) -> None:
    with pytest.raises(DataError, match=r"257|not a number"):
        build_tokenizer(spec, [english_file])


def test_training_on_little_text_says_how_many_ids_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("aaaa bbbb", "utf-8")
    tokenizer = build_tokenizer("train:8000", [tmp_path / "a.txt"])
    assert 257 <= tokenizer.vocab_size < 300
    assert "nothing more to merge" in capsys.readouterr().err


def test_training_reports_a_broken_input_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n', "utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:2: 'text' is int"):
        build_tokenizer("train:300", [tmp_path])


def test_saved_and_loaded_tokenizers_agree(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.name == "bpe-600"
        assert loaded.encode(AWKWARD) == trained.encode(AWKWARD)
        assert (loaded.eos_id, loaded.vocab_size) == (trained.eos_id, trained.vocab_size)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_files_load_from_the_folder_or_either_file(
    names: tuple[str, str], trained: Tokenizer, tmp_path: Path
) -> None:
    write_gpt2_pair(tmp_path, trained, names)
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        loaded = build_tokenizer(str(path))
        assert loaded.encode(AWKWARD + ENGLISH[:999]) == trained.encode(AWKWARD + ENGLISH[:999])
        assert loaded.eos_id == 599


def test_a_missing_half_of_gpt2_files_is_named(trained: Tokenizer, tmp_path: Path) -> None:
    write_gpt2_pair(tmp_path, trained, ("vocab.json", "merges.txt"))
    (tmp_path / "merges.txt").unlink()
    for path in (tmp_path, tmp_path / "vocab.json"):
        with pytest.raises(DataError, match=r"vocab\.json is there.*merges\.txt is not"):
            build_tokenizer(str(path))


def test_literal_end_of_text_in_a_text_is_ordinary_characters(trained: Tokenizer) -> None:
    ids = trained.encode("a <|endoftext|> b")
    assert trained.eos_id not in ids
    assert trained.decode(ids) == "a <|endoftext|> b"


def test_literal_end_of_text_is_split_even_when_the_model_knows_it_as_a_word() -> None:
    words = {word: number for number, word in enumerate(["a", "<", "</", "s>", "/s>", "</s>", "?"])}
    engine = tokenizers.Tokenizer(models.WordLevel(words, unk_token="?"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert engine.encode("a </s> a").ids == [0, 5, 0]
    tokenizer = Tokenizer(engine, name="words", eos_token="</s>")
    assert tokenizer.encode("a </s> a </s>") == [0, 2, 3, 0, 2, 3]


def test_limits_saved_in_a_tokenizer_do_not_cut_or_pad_texts(
    trained: Tokenizer, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    engine = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    engine.enable_truncation(max_length=4)
    engine.enable_padding(length=64)
    engine.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode(ENGLISH[:500]) == trained.encode(ENGLISH[:500])


def unnamed_tokenizer(file: Path, token: str) -> None:
    engine = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(token, special=True)])
    engine.save(str(file))


def test_a_usual_end_of_text_token_is_found(tmp_path: Path) -> None:
    unnamed_tokenizer(tmp_path / "other.json", "</s>")
    assert Tokenizer.load(tmp_path / "other.json").eos_id == 2


def test_hugging_face_side_file_names_the_end_of_text_token(tmp_path: Path) -> None:
    unnamed_tokenizer(tmp_path / "tokenizer.json", "[OVER]")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "[OVER]"}}')
    assert Tokenizer.load(tmp_path).eos_token == "[OVER]"


def test_an_unknown_end_of_text_token_can_be_named(tmp_path: Path) -> None:
    unnamed_tokenizer(tmp_path / "tokenizer.json", "[OVER]")
    with pytest.raises(DataError, match="no end-of-text token") as caught:
        Tokenizer.load(tmp_path)
    assert "--eos-token" in str(caught.value.hint)
    assert Tokenizer.load(tmp_path, eos_token="[OVER]").eos_id == 2
    with pytest.raises(DataError, match=r"no token '\[NONE\]'"):
        Tokenizer.load(tmp_path, eos_token="[NONE]")


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0"}'])
def test_a_broken_tokenizer_file_is_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        build_tokenizer(str(tmp_path))


def test_a_path_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        build_tokenizer("gpt2x")
    with pytest.raises(DataError, match="no tokenizer in this folder"):
        build_tokenizer(str(tmp_path))


def test_an_unpaired_surrogate_is_refused(trained: Tokenizer) -> None:
    for tokenizer in (trained, build_bytes_tokenizer()):
        with pytest.raises(DataError, match="surrogate"):
            tokenizer.encode("a\ud83d")
