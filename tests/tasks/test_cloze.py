import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.config.schema import Config
from fastffn_cli.data.inputs import find_inputs
from fastffn_cli.data.tokenizer import Tokenizer, build_tokenizer
from fastffn_cli.engine.checkpoint import LoadedModel
from fastffn_cli.errors import DataError, Diverged, UserError
from fastffn_cli.tasks import cloze, scoring
from fastffn_cli.tasks.cloze import score_passages
from fastffn_cli.tasks.evaluation import EvalRequest, choose_task, run_evaluation
from fastffn_cli.tasks.passages import Passage, Passages, blocks_of, padded_length
from tests.fleetx_models import FIXTURES_DIR, expected_eval, load_arrays, load_eval, load_small

CONFIG = Config.model_validate(
    {"Data": {"dataset": {"max_seq_len": 64}}, "Model": {"vocab_size": 50304}}
)
LAMBADA = FIXTURES_DIR / "lambada.jsonl"


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.load(FIXTURES_DIR / "gpt2_subset")


@pytest.fixture(scope="module")
def loaded(gpt2):
    return LoadedModel(load_eval(), CONFIG, gpt2, 100, Path("run/step-100"))


@pytest.fixture(scope="module")
def small():
    """A model of 64 positions that reads bytes."""
    import paddle

    from models.gpt import GPT, GPTConfig

    paddle.seed(3)
    sizes = {
        "vocab_size": 257, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4,
        "ffn_hidden_size": 64, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    model = GPT(GPTConfig(**sizes))
    model.eval()
    return LoadedModel(model, CONFIG, build_tokenizer("bytes"), 7, Path("run/step-7"))


def values_of(loaded, **request):
    return run_evaluation("cloze", loaded, EvalRequest(**request)).values


def passages_of(file, tokenizer, seq_len):
    source = find_inputs([file]).files[0]
    return Passages(source, tokenizer, json_key="text", seq_len=seq_len)


def write(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def expected_score(model, passages):
    """Each passage alone, unpadded, in float64: (sum of -log p, labels, correct)."""
    import paddle

    nll, labels, correct = 0.0, 0, 0
    for passage in passages:
        with paddle.no_grad():
            logits = model(paddle.to_tensor(passage.tokens[None])).numpy()[0].astype(np.float64)
        logits = logits[-passage.labels.size :]
        top = logits.max(axis=1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        nll -= log_p[np.arange(passage.labels.size), passage.labels].sum()
        labels += passage.labels.size
        correct += bool((logits.argmax(axis=1) == passage.labels).all())
    return nll, labels, correct


def random_passages(count=90, seed=4):
    """Ragged ids below 128: contexts of 1 to 59 tokens, last words of 1 to 4."""
    source = np.random.default_rng(seed)
    for _ in range(count):
        label = source.integers(0, 128, source.integers(1, 5))
        context = source.integers(0, 128, source.integers(1, 60))
        yield Passage(np.concatenate([context, label[:-1]]), label)


def test_passages_are_the_samples_of_fleetx(gpt2):
    arrays = load_arrays("eval_arrays.npz")
    passages = list(passages_of(LAMBADA, gpt2, 64))
    assert len(passages) == 12
    for row, passage in enumerate(passages):
        size = passage.tokens.size
        places = np.flatnonzero(arrays["lambada.loss_mask"][row])
        assert places.tolist() == list(range(size - passage.labels.size, size))
        assert passage.tokens.tolist() == arrays["lambada.tokens"][row, :size].tolist()
        assert passage.labels.tolist() == arrays["lambada.labels"][row, places].tolist()


def test_accuracy_is_that_of_fleetx(loaded):
    fleetx = expected_eval()["results_run_eval_E"]["lambada"]
    values = values_of(loaded, data=str(LAMBADA))
    assert values["correct"] == fleetx["num_correct"] == 5
    assert values["examples"] == fleetx["eval_dict"]["num_examples"] == 12
    assert values["accuracy"] == fleetx["acc"]


def test_every_passage_is_judged_as_fleetx_judges_it(loaded, gpt2):
    correct = load_arrays("eval_arrays.npz")["lambada.correct"]
    for passage, expected in zip(passages_of(LAMBADA, gpt2, 64), correct, strict=True):
        score = score_passages(loaded.model, [passage], seq_len=64, batch_size=1)
        assert (score.examples, score.correct) == (1, int(expected))


def best(model, passage):
    """The passage with the model's own next token for its last word."""
    import paddle

    with paddle.no_grad():
        logits = model(paddle.to_tensor(passage.tokens[None])).numpy()[0, -1]
    return Passage(passage.tokens, np.array([logits.argmax()], np.int64))


def test_sums_are_those_of_each_passage_alone():
    model = load_small()
    passages = list(random_passages())
    passages[::3] = [best(model, passage) for passage in passages[::3]]  # some to be right
    nll, targets, correct = expected_score(model, passages)
    score = score_passages(model, passages, seq_len=64, batch_size=8)
    assert score.nll == pytest.approx(nll, rel=1e-6)
    assert (score.examples, score.targets, score.correct) == (len(passages), targets, correct)
    assert len(passages[::3]) <= correct < len(passages)


def test_numbers_follow_from_the_sums(small, tmp_path):
    file = write(tmp_path, "two.txt", "one two three\nand four five\n")
    values = values_of(small, data=file)
    nll, targets, correct = expected_score(
        small.model, passages_of(tmp_path / "two.txt", small.tokenizer, 64)
    )
    assert targets == len(" three") + len(" five")
    assert list(values)[:8] == [
        "task", "accuracy", "correct", "examples", "loss", "ppl", "word_ppl", "tokens"
    ]  # fmt: skip
    assert (values["task"], values["examples"], values["correct"]) == ("cloze", 2, correct)
    assert values["tokens"] == targets
    assert values["loss"] == pytest.approx(nll / targets, rel=1e-6)
    assert values["ppl"] == pytest.approx(math.exp(nll / targets), rel=1e-5)
    assert values["word_ppl"] == pytest.approx(math.exp(min(20.0, nll / 2)), rel=1e-5)
    assert (values["data"], values["seq_len"], values["cut"]) == (file, 64, 0)
    assert (values["checkpoint"], values["step"]) == ("run/step-7", 7)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 1000])
def test_the_batch_size_changes_no_bit(batch_size, loaded):
    assert values_of(loaded, data=str(LAMBADA), batch_size=batch_size) == values_of(
        loaded, data=str(LAMBADA)
    )


def test_ragged_passages_give_bit_equal_sums_whatever_the_batch_size():
    model = load_small()
    passages = list(random_passages(200))
    scores = [
        score_passages(model, passages, seq_len=64, batch_size=size) for size in (1, 5, 40, 10**6)
    ]
    assert len(set(scores)) == 1


def test_logits_in_small_parts_give_the_same(monkeypatch):
    model, passages = load_small(), list(random_passages(60))
    whole = score_passages(model, passages, seq_len=64, batch_size=8)
    monkeypatch.setattr(cloze, "LOGITS", 128 * 7)
    parts = score_passages(model, passages, seq_len=64, batch_size=8)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)
    assert replace(parts, nll=0.0) == replace(whole, nll=0.0)


def test_passages_are_read_as_they_are_needed():
    taken = 0

    def stream():
        nonlocal taken
        for passage in random_passages(600):
            taken += 1
            yield passage

    seen = []
    score_passages(
        load_small(),
        stream(),
        seq_len=64,
        batch_size=1,
        on_progress=lambda _score: seen.append(taken),
    )
    assert seen[0] < 100 and seen[-1] == 600


def test_blocks_hold_passages_of_one_padded_length_and_lose_none():
    passages = list(random_passages(300))
    blocks = list(blocks_of(passages, 50))
    assert sorted(map(id, (p for block in blocks for p in block))) == sorted(map(id, passages))
    for block in blocks:
        lengths = {padded_length(passage, 50) for passage in block}
        assert len(lengths) == 1 and lengths <= {32, 50}
        assert len(block) * min(lengths) <= scoring.BLOCK_TOKENS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one two three\r\n  and four five  \r\n\r\n\n"),
        ("a.jsonl", '{"text": "one two three"}\n{"text": " and four five\\n"}\n\n'),
    ],
)
def test_passages_of_a_txt_are_its_lines_and_of_a_jsonl_its_records(small, tmp_path, name, content):
    expected = values_of(small, data=write(tmp_path, "plain.txt", "one two three\nand four five"))
    found = values_of(small, data=write(tmp_path, name, content))
    assert {**found, "data": ""} == {**expected, "data": ""}


def test_another_key_and_gzip(small, tmp_path):
    import gzip

    with gzip.open(tmp_path / "p.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"passage": "one two three"}) + "\n")
    values = values_of(small, data=str(tmp_path / "p.jsonl.gz"), json_key="passage")
    assert (values["examples"], values["tokens"]) == (1, len(" three"))


def test_too_long_a_passage_loses_its_beginning_and_this_is_reported(small, tmp_path, capsys):
    text = "abcdefghij " * 10 + "end of it"
    file = write(tmp_path, "long.txt", f"{text}\na short one\n")
    (cut, whole) = passages_of(tmp_path / "long.txt", small.tokenizer, 20)
    assert bytes(cut.tokens.tolist()).decode() == text[-21:-1] and cut.tokens.size == 20
    assert bytes(whole.tokens.tolist()).decode() == "a short on"
    assert values_of(small, data=file, seq_len=20)["cut"] == 1
    assert "1 of 2 passages are longer than the window of 20" in capsys.readouterr().err
    assert values_of(small, data=write(tmp_path, "fits.txt", "a short one"))["cut"] == 0
    assert "longer than" not in capsys.readouterr().err


def test_a_passage_that_just_fits_is_not_cut(small, tmp_path):
    text = "a short one"  # 10 inputs predict its 11 bytes but the first
    file = write(tmp_path, "fits.txt", text)
    assert values_of(small, data=file, seq_len=len(text) - 1)["cut"] == 0
    assert values_of(small, data=file, seq_len=len(text) - 2)["cut"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "one two\n\nthree four\n", r"a\.txt:2: an empty line"),
        ("a.txt", "one two\n  word \n", r"a\.txt:2: a single word"),
        ("a.txt", "", r"a\.txt: no passage in it"),
        ("a.txt", "\n \n", r"a\.txt: no passage in it"),
        ("a.jsonl", '{"text": "one two"}\n\n{"text": "x y"}\n', r"a\.jsonl:2: an empty line"),
        ("a.jsonl", '{"text": "one two"}\n{"text": " "}\n', r"a\.jsonl:2: 'text' is empty"),
        ("a.jsonl", '{"text": "word"}\n', r"a\.jsonl:1: a single word"),
        ("a.jsonl", '{"txt": "one two"}\n', r"a\.jsonl:1: no key 'text' \(the keys are: 'txt'\)"),
        ("a.jsonl", '{"text": "one two"}\none two\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": 3}\n', r"a\.jsonl:1: 'text' is int"),
        ("a.txt", "a " + "x" * 100, r"a\.txt:1: the last word is 101 tokens and the window 64"),
        ("a.json", "{}", r"a\.json: \.json files are not read"),
    ],
)
def test_what_is_no_passage_is_named_with_its_line(small, tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        values_of(small, data=write(tmp_path, name, content))


def test_bytes_that_are_no_text_are_named_with_their_line(small, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one two\nthree \xff four\n")
    with pytest.raises(DataError, match=r"a\.txt:2: byte 14 \(ff"):
        values_of(small, data=str(tmp_path / "a.txt"))


def test_an_unknown_extension_is_read_line_by_line_and_announced(small, tmp_path, capsys):
    values = values_of(small, data=write(tmp_path, "passages", "one two\nthree four\n"))
    assert values["examples"] == 2
    assert "passages is read as plain text, one passage a line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_values", "error", "words"),
    [
        ({"part": "test", "overlap": 8}, UserError, "--part, --overlap: --task cloze has no use"),
        ({"detokenize": True}, UserError, "--detokenize: --task cloze"),
        ({"seq_len": 65}, UserError, "--seq-len 65 must be 2 to 64"),
        ({"data": None}, UserError, "does not know what to read"),
        ({"data": "gone.jsonl"}, DataError, "gone.jsonl: there is no such file"),
        ({"data": str(FIXTURES_DIR / "corpus")}, DataError, "is no text"),
        ({"data": str(FIXTURES_DIR / "corpus" / "corpus_ids.npy")}, DataError, "is no text"),
    ],
)
def test_wrong_requests_say_what_to_change(loaded, request_values, error, words):
    with pytest.raises(error, match=words) as caught:
        values_of(loaded, **{"data": str(LAMBADA), **request_values})
    assert caught.value.hint or "must be" in words


def test_a_model_without_a_tokenizer_is_told_so(loaded):
    with pytest.raises(UserError, match="has no tokenizer to read"):
        values_of(replace(loaded, tokenizer=None), data=str(LAMBADA))


def test_a_tokenizer_beyond_the_model_is_refused(small, gpt2):
    with pytest.raises(DataError, match="50,257 ids, the model 257"):
        values_of(replace(small, tokenizer=gpt2), data=str(LAMBADA))


def test_the_configuration_names_data_and_task(loaded):
    assert choose_task(None, CONFIG) == "lm"
    section = {"cloze_eval": True, "eval_path": str(LAMBADA)}
    config = Config.model_validate({**CONFIG.model_dump(), "Offline_Eval": section})
    assert choose_task(None, config) == "cloze"
    assert choose_task("lm", config) == "lm"
    assert values_of(replace(loaded, config=config)) == values_of(loaded, data=str(LAMBADA))


def test_a_loss_that_is_no_number_stops_with_an_error(small, tmp_path):
    import paddle

    parameter = small.model.norm.bias
    kept = parameter.numpy()
    parameter.set_value(paddle.full_like(parameter, float("nan")))
    try:
        with pytest.raises(Diverged, match="is nan"):
            values_of(small, data=write(tmp_path, "a.txt", "one two"))
    finally:
        parameter.set_value(paddle.to_tensor(kept))


def test_rows_show_the_numbers(loaded):
    rows = dict(run_evaluation("cloze", loaded, EvalRequest(data=str(LAMBADA))).rows)
    assert rows["accuracy"].startswith("41.67 %") and "5 of 12" in rows["accuracy"]
    assert {"loss", "perplexity", "word ppl", "tokens", "data", "checkpoint"} <= rows.keys()
