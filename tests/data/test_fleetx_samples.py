"""FleetX's own token files, cut and shuffled here as FleetX cut and shuffled them.

`A` stands for `fleetx/` of August 2022, `N` for `ppfleetx/` of August 2023.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.data.token_files import TokenFile, open_tokens
from tests.commands.in_process import run_in_process
from tests.fleetx_models import FIXTURES_DIR, load_arrays

# name: (arrays, folder, split, S, seed, eos)
CORPORA = {
    "tiny": ("A_tiny_dataset.npz", "tiny_data", "900,80,20", 32, 1024, 127),
    "corpus": ("A_corpus_dataset.npz", "corpus", "949,50,1", 48, 1234, 50256),
}
PARTS = ("train", "valid", "test")
ALL = [(name, part) for name in CORPORA for part in PARTS]


def make_dataset(name: str, part: str, *, shuffle: bool) -> TokenDataset:
    _, folder, split, seq_len, seed, eos_id = CORPORA[name]
    return TokenDataset(
        open_tokens(FIXTURES_DIR / folder),
        split=split,
        part=part,
        seq_len=seq_len,
        seed=seed,
        shuffle=shuffle,
        eos_id=eos_id,
    )


def their(name: str, part: str, array: str) -> NDArray[np.int64]:
    return np.asarray(load_arrays(CORPORA[name][0])[f"gpt_{part}.{array}"]).astype(np.int64)


def token_file(name: str) -> TokenFile:
    return open_tokens(FIXTURES_DIR / CORPORA[name][1]).files[0]


def whole_samples(dataset: TokenDataset) -> int:
    """Samples of one epoch that are not padded."""
    return (dataset.num_tokens - 1) // dataset.seq_len


def numbers_of(dataset: TokenDataset, name: str, part: str, count: int) -> list[int]:
    """Which samples the first `count` of the shuffled stream are, told by their tokens."""
    plain = make_dataset(name, part, shuffle=False).batch(0, dataset.num_samples)
    place = {row.tobytes(): number for number, row in enumerate(plain.tokens_BS)}
    assert len(place) == dataset.num_samples
    return [place[row.tobytes()] for row in dataset.batch(0, count).tokens_BS]


@pytest.mark.parametrize(("name", "part"), ALL)
def test_parts_hold_the_documents_of_fleetx(name: str, part: str) -> None:
    documents = np.unique(their(name, part, "doc_idx"))
    file, dataset = token_file(name), make_dataset(name, part, shuffle=False)
    start, stop = file.start_of(int(documents[0])), file.start_of(int(documents[-1]) + 1)
    assert dataset.divided_by == "documents"
    assert dataset.num_documents == documents.size
    assert dataset.num_tokens == stop - start
    first = dataset.batch(0, 1).tokens_BS[0]
    assert first.tolist() == file.ids[start : start + dataset.seq_len].tolist()


@pytest.mark.parametrize(
    ("part", "theirs"), [("train", "Train"), ("valid", "Eval"), ("test", "Test")]
)
def test_parts_hold_the_documents_of_ppfleetx(part: str, theirs: str) -> None:
    documents = np.unique(load_arrays("N_corpus_dataset.npz")[f"gpt_{theirs}.doc_idx"])
    assert documents.tolist() == np.unique(their("corpus", part, "doc_idx")).tolist()


@pytest.mark.parametrize(("name", "part"), ALL)
def test_samples_of_the_first_epoch_begin_where_those_of_fleetx_begin(name: str, part: str) -> None:
    file, dataset = token_file(name), make_dataset(name, part, shuffle=False)
    documents, samples = their(name, part, "doc_idx"), their(name, part, "sample_idx")
    positions = np.concatenate([[0], np.cumsum(file.lens[documents], dtype=np.int64)])
    starts = positions[samples[:, 0]] + samples[:, 1]
    whole = whole_samples(dataset)
    assert starts[: whole + 1].tolist() == [k * dataset.seq_len for k in range(whole + 1)]
    # The tokens at these places are those of our samples; the label of the last is there, too.
    first = file.start_of(int(documents[0]))
    batch = dataset.batch(0, whole)
    for k, start in enumerate(starts[:whole] + first):
        row = np.append(batch.tokens_BS[k], batch.labels_BS[k, -1])
        assert row.tolist() == file.ids[start : start + dataset.seq_len + 1].tolist()


@pytest.mark.parametrize(
    ("name", "part"), [("tiny", "train"), ("tiny", "valid"), ("corpus", "valid")]
)
def test_one_epoch_comes_in_the_order_of_fleetx(name: str, part: str) -> None:
    dataset = make_dataset(name, part, shuffle=True)
    order = their(name, part, "shuffle_idx").tolist()
    assert len(order) == whole_samples(dataset)
    found = numbers_of(dataset, name, part, dataset.num_samples)
    assert found == [*order, dataset.num_samples - 1]


@pytest.mark.parametrize(("name", "part"), [("corpus", "train"), ("tiny", "test")])
def test_the_last_epoch_shuffled_apart_leaves_one_before_it_in_our_order(
    name: str, part: str
) -> None:
    """FleetX's two epochs are equal in the first one; its twelve are shuffled together."""
    dataset = make_dataset(name, part, shuffle=True)
    whole = whole_samples(dataset)
    order = their(name, part, "shuffle_idx")[:whole].tolist()
    assert (numbers_of(dataset, name, part, whole) == order) is (part == "train")


def test_samples_are_fleetx_samples_with_labels_and_masks() -> None:
    for name, part in [
        ("tiny", "train"),
        ("tiny", "valid"),
        ("corpus", "train"),
        ("corpus", "valid"),
    ]:
        batch = make_dataset(name, part, shuffle=True).batch(0, 6)
        for key, ours in (
            ("tokens", batch.tokens_BS),
            ("labels", batch.labels_BS),
            ("loss_mask", batch.mask_BS),
        ):
            np.testing.assert_array_equal(ours, their(name, part, f"first6.{key}"))


def test_batches_are_those_that_fleetx_trained_on() -> None:
    """Six steps of FleetX's engine, of 4 samples each; any of them is found by its cursor."""
    recorded = load_arrays("A_train.npz")
    dataset = make_dataset("tiny", "train", shuffle=True)
    for step in (3, 4, 5, 0, 1, 2):
        batch = dataset.batch(4 * step, 4)
        np.testing.assert_array_equal(batch.tokens_BS, recorded["tokens"][step])
        np.testing.assert_array_equal(batch.labels_BS, recorded["labels"][step])
        np.testing.assert_array_equal(batch.mask_BS, recorded["loss_mask"][step])


def test_the_padded_sample_ends_every_epoch() -> None:
    dataset = make_dataset("corpus", "test", shuffle=True)
    masks = dataset.batch(0, 3 * dataset.num_samples).mask_BS
    # A mask may end in a zero for an end of text; padding is a whole row's tail.
    padding = (dataset.num_tokens - 1) % dataset.seq_len
    for epoch in range(3):
        rows = masks[epoch * dataset.num_samples : (epoch + 1) * dataset.num_samples]
        assert not rows[-1, padding:].any()
        assert all(row[padding:].any() for row in rows[:-1])


TRAIN_YAML = """\
Global: {device: cpu, seed: 1024}
Engine:
  max_steps: 3
  logging_freq: 1
  eval_freq: 3
  eval_iters: 1
  save_load: {save_steps: 3, output_dir: run}
Model:
  vocab_size: 128
  hidden_size: 16
  num_layers: 1
  num_attention_heads: 2
  max_position_embeddings: 32
  hidden_dropout_prob: 0.0
  attention_probs_dropout_prob: 0.0
Data:
  batch_size: {global_batch_size: 4, micro_batch_size: 4}
  dataset: {input_dir: tiny_data, split: "900,80,20", max_seq_len: 32, eos_id: 127}
"""


def test_fleetx_own_files_are_trained_on_and_evaluated_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without meta.json and tokenizer, and nothing is written beside them."""
    shutil.copytree(FIXTURES_DIR / "tiny_data", tmp_path / "tiny_data")
    before = sorted(file.name for file in (tmp_path / "tiny_data").iterdir())
    (tmp_path / "a.yaml").write_text(TRAIN_YAML, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    trained = run_in_process(capsys, "pretrain", "-c", "a.yaml")
    assert trained.returncode == 0, trained.stderr
    for part in PARTS:
        done = run_in_process(
            capsys, "eval", "run", "--data", "tiny_data", "--part", part, "--json"
        )
        values = json.loads(done.stdout)
        dataset = make_dataset("tiny", part, shuffle=False)
        assert values["tokens"] == dataset.batch(0, dataset.num_samples).num_valid
        assert values["bits_per_byte"] is None

    assert sorted(file.name for file in (tmp_path / "tiny_data").iterdir()) == before
