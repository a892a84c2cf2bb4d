import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastffn_cli.config.schema import Config
from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.data.prepare import Request, prepare
from fastffn_cli.data.token_files import open_tokens
from fastffn_cli.data.tokenizer import build_tokenizer
from fastffn_cli.engine.checkpoint import LoadedModel
from fastffn_cli.errors import DataError, Diverged, UserError
from fastffn_cli.tasks.causal_lm import CausalLM
from fastffn_cli.tasks.eval_data import TextData
from fastffn_cli.tasks.evaluation import EvalRequest, run_evaluation
from fastffn_cli.tasks.lm_eval import summarize
from fastffn_cli.tasks.scoring import Score
from tests.fleetx_models import expected_eval

CONFIG = Config.model_validate(
    {"Data": {"dataset": {"max_seq_len": 32, "split": "60,20,20"}}, "Model": {"vocab_size": 257}}
)
TEXT = "The river runs under an old bridge, and é stays é. " * 12


@pytest.fixture(scope="module")
def loaded():
    import paddle

    from models.gpt import GPT, GPTConfig

    paddle.seed(5)
    sizes = {
        "vocab_size": 257, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4,
        "ffn_hidden_size": 64, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    model = GPT(GPTConfig(**sizes))
    model.eval()
    return LoadedModel(model, CONFIG, build_tokenizer("bytes"), 7, Path("run/step-7"))


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def values_of(loaded, **request):
    return run_evaluation("lm", loaded, EvalRequest(**request)).values


@pytest.fixture(scope="module")
def tokens_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    lines = "".join(f'{{"text": "document {number} of the corpus, é"}}\n' for number in range(40))
    (folder / "docs.jsonl").write_text(lines, encoding="utf-8")
    prepare(Request((folder / "docs.jsonl",), folder / "tokens", "bytes"))
    return folder / "tokens"


def test_numbers_of_a_text_are_made_from_the_sum_as_fleetx_makes_them():
    fleetx = expected_eval()["results_run_eval_E"]["wiki"]

    class ReadText(TextData):
        original_tokens = fleetx["eval_dict"]["num_original_tokens"]

        def __init__(self):
            self.num_tokens = fleetx["eval_dict"]["num_tokenized_tokens"]
            self.num_bytes, self.is_text = 2290, True

    values = summarize(Score(6098.302602, 553), ReadText(), "wiki.txt")
    assert values["loss"] == pytest.approx(fleetx["total_loss"], rel=1e-6)
    assert values["ppl"] == pytest.approx(fleetx["ppl"], rel=1e-5)
    assert values["adjusted_ppl"] == pytest.approx(fleetx["adjusted_ppl"], rel=1e-5)
    assert values["tokens"] == 552
    assert values["original_tokens"] == 485
    assert values["bits_per_byte"] == pytest.approx(6098.302602 / math.log(2) / 2290)


def test_keys_of_the_contract_come_first(loaded, text_file):
    values = values_of(loaded, data=str(text_file))
    assert list(values)[:5] == ["task", "loss", "ppl", "bits_per_byte", "tokens"]
    assert values["task"] == "lm"
    assert values["tokens"] == len(TEXT.encode()) - 1
    assert values["ppl"] == pytest.approx(math.exp(values["loss"]))
    nll = values["loss"] * values["tokens"]
    assert values["bits_per_byte"] == pytest.approx(nll / math.log(2) / (len(TEXT.encode()) - 1))
    words = len(TEXT.strip().split(" "))
    assert values["original_tokens"] == words
    assert values["adjusted_ppl"] == pytest.approx(min(math.exp(20), math.exp(nll / (words - 1))))


def test_windows_of_a_text_overlap_and_those_of_a_folder_do_not(loaded, text_file, tokens_dir):
    config = loaded.config.model_copy(
        update={"Offline_Eval": loaded.config.Offline_Eval.model_copy(
            update={"overlapping_eval": 8}
        )}
    )  # fmt: skip
    narrow = replace(loaded, config=config)
    assert values_of(narrow, data=str(text_file))["overlap"] == 8
    assert values_of(narrow, data=str(tokens_dir))["overlap"] == 0
    assert values_of(narrow, data=str(tokens_dir), overlap=8)["overlap"] == 8


def test_more_context_changes_the_loss_and_not_the_tokens(loaded, text_file):
    wide = values_of(loaded, data=str(text_file), overlap=4)
    whole = values_of(loaded, data=str(text_file), overlap=0)
    assert wide["tokens"] == whole["tokens"]
    assert wide["loss"] != whole["loss"]
    assert values_of(loaded, data=str(text_file), overlap=32) == whole


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_all_numbers_are_the_same_for_any_batch_size(loaded, text_file, batch_size):
    expected = values_of(loaded, data=str(text_file), overlap=8)
    assert values_of(loaded, data=str(text_file), overlap=8, batch_size=batch_size) == expected


def test_a_folder_gives_the_loss_that_training_reports(loaded, tokens_dir):
    dataset = TokenDataset(
        open_tokens(tokens_dir), split="60,20,20", part="valid", seq_len=32, seed=0, shuffle=False
    )
    task = CausalLM(loaded.model)
    batch = dataset.batch(0, dataset.num_samples)
    values = values_of(loaded, data=str(tokens_dir), part="valid")
    assert values["tokens"] == task.weight(batch)
    assert values["loss"] == pytest.approx(float(task.loss(batch)) / task.weight(batch), rel=1e-5)


def test_a_jsonl_and_its_prepared_folder_give_the_same(loaded, tokens_dir):
    prepared = values_of(loaded, data=str(tokens_dir), overlap=8)
    lines = values_of(loaded, data=str(tokens_dir.parent / "docs.jsonl"), overlap=8)
    for key in ("loss", "ppl", "tokens", "bits_per_byte"):
        assert lines[key] == prepared[key]


def test_without_data_the_test_part_of_the_run_is_taken(loaded, tokens_dir):
    trainer = {"data": {"input_dir": str(tokens_dir)}}
    values = values_of(loaded, trainer=trainer)
    assert values["part"] == "test"
    assert values == values_of(loaded, data=str(tokens_dir), part="test")


def test_an_empty_test_part_gives_way_to_the_validation_part(loaded, tokens_dir, capsys):
    dataset = loaded.config.Data.dataset.model_copy(update={"split": "80,20,0"})
    data = loaded.config.Data.model_copy(update={"dataset": dataset})
    other = replace(loaded, config=loaded.config.model_copy(update={"Data": data}))
    trainer = {"data": {"input_dir": str(tokens_dir)}}
    assert values_of(other, trainer=trainer)["part"] == "valid"
    assert "no test part" in capsys.readouterr().err
    with pytest.raises(DataError, match="the test part has 0 tokens"):
        values_of(other, trainer=trainer, part="test")


def test_foreign_folders_are_taken_whole_and_need_no_tokenizer(loaded, tokens_dir):
    bare = replace(loaded, tokenizer=None)
    (tokens_dir / "tokenizer.json").rename(tokens_dir / "away.json")
    try:
        values = values_of(bare, data=str(tokens_dir))
    finally:
        (tokens_dir / "away.json").rename(tokens_dir / "tokenizer.json")
    assert values["part"] == "all" and values["bits_per_byte"] is None
    assert values["loss"] == values_of(loaded, data=str(tokens_dir))["loss"]


def test_windows_are_as_long_as_in_training_by_default(loaded, text_file):
    assert values_of(loaded, data=str(text_file))["seq_len"] == 32
    assert values_of(loaded, data=str(text_file), seq_len=64)["seq_len"] == 64


def test_wikitext_is_announced(loaded, tmp_path, capsys):
    file = tmp_path / "wiki.txt"
    file.write_text(" = Title = \n one @-@ two , three . \n" * 5, encoding="utf-8")
    found = values_of(loaded, data=str(file))
    assert "looks like WikiText" in capsys.readouterr().err
    assert values_of(loaded, data=str(file), detokenize=True) == found
    assert values_of(loaded, data=str(file), detokenize=False)["tokens"] > found["tokens"]


@pytest.mark.parametrize(
    ("request_values", "error", "words"),
    [
        ({"seq_len": 65}, UserError, "--seq-len 65 must be 2 to 64"),
        ({"overlap": 33}, UserError, r"--overlap 33 must be 0 \(none\) to 32"),
        ({"overlap": -1}, UserError, "--overlap -1"),
        ({"part": "test"}, UserError, "is a text"),
        ({"data": "nothing/here.txt"}, DataError, "nothing/here.txt: does not exist"),
        ({"data": None}, UserError, "does not tell what it was trained on"),
    ],
)
def test_wrong_requests_say_what_to_change(loaded, text_file, request_values, error, words):
    with pytest.raises(error, match=words):
        values_of(loaded, **{"data": str(text_file), **request_values})


def test_wrong_requests_about_folders(loaded, tokens_dir):
    with pytest.raises(UserError, match="--part tset: the parts are"):
        values_of(loaded, data=str(tokens_dir), part="tset")
    with pytest.raises(UserError, match="--detokenize is for texts"):
        values_of(loaded, data=str(tokens_dir), detokenize=True)
    with pytest.raises(DataError, match="is not there any more"):
        values_of(loaded, trainer={"data": {"input_dir": str(tokens_dir / "gone")}})


def test_an_unknown_task_names_the_known_ones(loaded):
    with pytest.raises(UserError, match="--task cloze2: the tasks are lm"):
        run_evaluation("cloze2", loaded, EvalRequest())


@pytest.mark.parametrize("content", ["", "   \n", "x"])
def test_a_text_of_fewer_than_two_tokens_is_an_error(loaded, tmp_path, content):
    file = tmp_path / "short.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"short\.txt: [01] token"):
        values_of(loaded, data=str(file))


def test_a_text_without_a_tokenizer_says_how_to_get_ids(loaded, text_file):
    with pytest.raises(UserError, match="no tokenizer") as caught:
        values_of(replace(loaded, tokenizer=None), data=str(text_file))
    assert "fastffn convert" in caught.value.hint


def test_ids_outside_the_vocabulary_are_named(loaded, tmp_path):
    np.save(tmp_path / "bad_ids.npy", np.array([1, 2, 400, 3], np.uint16))
    np.savez(tmp_path / "bad_idx.npz", lens=np.array([4], np.int32), docs=np.array([0, 1]))
    with pytest.raises(DataError, match="id 400, outside a vocabulary of 257"):
        values_of(loaded, data=str(tmp_path))


def test_a_loss_that_is_no_number_stops_with_an_error(loaded, text_file):
    import paddle

    parameter = loaded.model.norm.bias
    kept = parameter.numpy()
    parameter.set_value(paddle.full_like(parameter, float("nan")))
    try:
        with pytest.raises(Diverged, match="is nan"):
            values_of(loaded, data=str(text_file))
    finally:
        parameter.set_value(paddle.to_tensor(kept))


def test_rows_show_the_numbers(loaded, text_file):
    evaluation = run_evaluation("lm", loaded, EvalRequest(data=str(text_file)))
    rows = dict(evaluation.rows)
    assert rows["loss"].startswith(f"{evaluation.values['loss']:.6f}")
    assert {"perplexity", "adjusted ppl", "bits per byte", "tokens", "windows"} <= rows.keys()
