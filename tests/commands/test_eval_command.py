import json
import math

import numpy as np
import pytest

from fastffn_cli.config.schema import Config
from tests.commands.in_process import run_in_process
from tests.conftest import call_program
from tests.fleetx_models import FIXTURES_DIR, expected_eval, load_arrays, load_eval

TEXT = "The river runs under an old bridge, and nobody counts the boats. " * 10


@pytest.fixture
def evaluate(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def call(*arguments):
        return run_in_process(capsys, "eval", trained_run.dir, *arguments)

    return call


def write_fleetx_checkpoint(folder, **offline_eval):
    """The weights that FleetX's numbers were measured with, as a checkpoint of ours."""
    from fastffn_cli.engine.checkpoint import write_checkpoint

    model = {
        "vocab_size": 50304, "hidden_size": 4, "num_layers": 2, "num_attention_heads": 2,
        "ffn_hidden_size": 32, "max_position_embeddings": 64, "ffn": {"kind": "dense"},
    }  # fmt: skip
    sections = {
        "Model": model,
        "Data": {"dataset": {"max_seq_len": 64}},
        "Offline_Eval": offline_eval,
    }
    write_checkpoint(
        folder,
        config=Config.model_validate(sections),
        trainer={"step": 100},
        tensors={name: value.numpy() for name, value in load_eval().named_parameters()},
        tokenizer_dir=FIXTURES_DIR / "gpt2_subset",
    )
    return folder


@pytest.fixture(scope="module")
def fleetx_checkpoint(tmp_path_factory):
    return write_fleetx_checkpoint(tmp_path_factory.mktemp("fleetx") / "step-100")


def fleetx_sum(stride):
    """FleetX's `LM_Eval_Dataset` and `run_eval.py` written out: (sum of -log p, predictions)."""
    import paddle

    model, seq_len, pad = load_eval(), 64, 50256
    stream = load_arrays("eval_arrays.npz")["wiki.ids"].tolist()
    targets = max(len(stream) - 1 - stride, 0)
    nll = scored = 0.0
    for index in range(max(math.ceil(targets / stride) + 1, 1)):
        sample = stream[index * stride : index * stride + seq_len + 1]
        sample = np.array(sample + [pad] * (seq_len + 1 - len(sample)))
        mask = (sample[:-1] != pad).astype(np.float64)
        if stride != seq_len and index:
            mask[:-stride] = 0
        with paddle.no_grad():
            logits = model(paddle.to_tensor(sample[None, :-1])).numpy()[0].astype(np.float64)
        top = logits.max(axis=1)
        log_sums = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
        nll += ((log_sums - logits[np.arange(seq_len), sample[1:]]) * mask).sum()
        scored += mask.sum()
    return nll, scored


@pytest.mark.parametrize("arguments", [(), ("--overlap", "32")])
def test_wikitext_numbers_are_those_of_fleetx(fleetx_checkpoint, capsys, arguments):
    fleetx = expected_eval()["results_run_eval_E"]["wiki"]
    data = FIXTURES_DIR / "wiki.txt"
    done = run_in_process(capsys, "eval", fleetx_checkpoint, "--data", data, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["loss"] == pytest.approx(fleetx["total_loss"], rel=1e-6)
    assert values["ppl"] == pytest.approx(fleetx["ppl"], rel=1e-5)
    assert values["adjusted_ppl"] == pytest.approx(fleetx["adjusted_ppl"], rel=1e-5)
    assert values["original_tokens"] == fleetx["eval_dict"]["num_original_tokens"]
    assert values["tokens"] == fleetx["eval_dict"]["num_tokenized_tokens"] - 1
    assert values["overlap"] == 32


def test_fleetx_written_out_gives_what_fleetx_measured():
    nll, scored = fleetx_sum(stride=32)
    assert scored == expected_eval()["detail"]["scored_targets"]
    assert nll == pytest.approx(expected_eval()["detail"]["sum_nll_float64"], rel=1e-6)


@pytest.mark.parametrize(("overlap", "stride"), [(0, 64), (64, 64), (20, 20)])
def test_wikitext_numbers_of_other_overlaps_are_those_of_fleetx(
    fleetx_checkpoint, capsys, overlap, stride
):
    nll, _ = fleetx_sum(stride)
    data = FIXTURES_DIR / "wiki.txt"
    arguments = ("--data", data, "--overlap", overlap, "--json")
    values = json.loads(run_in_process(capsys, "eval", fleetx_checkpoint, *arguments).stdout)
    assert values["loss"] == pytest.approx(nll / 552, rel=1e-6)
    assert values["adjusted_ppl"] == pytest.approx(math.exp(nll / 484), rel=1e-4)
    assert values["overlap"] == (0 if stride == 64 else stride)


def test_lambada_accuracy_is_that_of_fleetx_whatever_the_batch_size(fleetx_checkpoint, capsys):
    fleetx = expected_eval()["results_run_eval_E"]["lambada"]
    data = FIXTURES_DIR / "lambada.jsonl"
    arguments = ("eval", fleetx_checkpoint, "--task", "cloze", "--data", data, "--json")
    outputs = [run_in_process(capsys, *arguments, "--batch-size", size) for size in (1, 5, 64)]
    assert [done.returncode for done in outputs] == [0, 0, 0], outputs[0].stderr
    assert len({done.stdout for done in outputs}) == 1
    values = json.loads(outputs[0].stdout)
    assert values["accuracy"] == fleetx["acc"]
    assert (values["correct"], values["examples"]) == (5, 12)


def test_cloze_for_people(fleetx_checkpoint, capsys):
    data = FIXTURES_DIR / "lambada.jsonl"
    done = run_in_process(capsys, "eval", fleetx_checkpoint, "--task", "cloze", "--data", data)
    assert "41.67 %   5 of 12 last words" in done.stdout
    assert str(fleetx_checkpoint) in done.stderr


def test_the_configuration_of_fleetx_chooses_cloze_and_the_data(tmp_path, capsys):
    data = str(FIXTURES_DIR / "lambada.jsonl")
    folder = write_fleetx_checkpoint(tmp_path / "step-100", cloze_eval=True, eval_path=data)
    values = json.loads(run_in_process(capsys, "eval", folder, "--json").stdout)
    assert (values["task"], values["correct"]) == ("cloze", 5)
    other = ("--task", "lm", "--data", FIXTURES_DIR / "wiki.txt", "--json")
    assert json.loads(run_in_process(capsys, "eval", folder, *other).stdout)["task"] == "lm"


def test_a_text_gives_the_keys_of_the_contract_and_twice_the_same(evaluate, trained_run, tmp_path):
    arguments = ("--data", "text.txt", "--overlap", "8", "--json")
    done = call_program("eval", trained_run.dir, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert {"task", "loss", "ppl", "tokens", "adjusted_ppl", "original_tokens"} <= values.keys()
    assert values["tokens"] == len(TEXT) - 1
    assert str(trained_run.checkpoint_dir) in done.stderr
    for batch_size in ("1", "3", "64"):
        assert evaluate(*arguments, "--batch-size", batch_size).stdout == done.stdout


def test_without_data_the_test_part_of_the_newest_run_is_measured(
    trained_run, data_dir, monkeypatch, capsys
):
    monkeypatch.chdir(trained_run.dir.parents[1])
    own = run_in_process(capsys, "eval", "--json")
    assert own.returncode == 0, own.stderr
    named = run_in_process(capsys, "eval", "--json", "--data", data_dir, "--part", "test")
    assert json.loads(own.stdout) == json.loads(named.stdout)
    assert json.loads(own.stdout)["part"] == "test"


def test_the_card_goes_to_stdout(evaluate):
    done = evaluate("--data", "text.txt")
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout and "bits per byte" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "cloze2"), "the tasks are lm, cloze"),
        (("--data", "gone.txt"), "gone.txt: does not exist"),
        (("--data", "text.txt", "--seq-len", "33"), "--seq-len 33 must be 2 to 32"),
        (("--data", "text.txt", "--batch-size", "0"), "--batch-size"),
        (("--task", "cloze"), "--task cloze does not know what to read"),
        (("--task", "cloze", "--data", "one.txt"), "one.txt:1: a single word"),
        (("--task", "cloze", "--data", "text.txt", "--overlap", "4"), "--overlap: --task cloze"),
    ],
)
def test_mistakes_end_with_exit_2(evaluate, tmp_path, arguments, words):
    (tmp_path / "one.txt").write_text("word\n", encoding="utf-8")
    done = evaluate(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""
