"""Parallel ranks of FleetX put together: every bit as before it was dealt out."""

import tracemalloc

import numpy as np
import pytest

from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.fleetx import SYSTEM
from tests.interop.fleetx_files import (
    HEADS,
    LAYERS,
    STEP_0,
    pipeline_stages,
    save,
    small_arrays,
    tensor_parallel_parts,
)


def save_ranks(folder, ranks):
    """Write {(mp, sharding, pp): arrays} as FleetX does."""
    for (mp, sharding, pp), arrays in ranks.items():
        name = f"mp_{mp:02d}_sharding_{sharding:02d}_pp_{pp:02d}"
        save(folder / name / "model.pdparams", arrays)
    return folder


def assert_whole(path):
    assert SYSTEM.recognise(path)
    tensors, expected = SYSTEM.open(path).tensors, small_arrays()
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype.name)
        np.testing.assert_array_equal(tensors[name].read(), array, err_msg=name)


def dealt(degree):
    parts = tensor_parallel_parts(small_arrays(), degree, HEADS)
    return {(rank, 0, 0): arrays for rank, arrays in enumerate(parts)}


@pytest.mark.parametrize("degree", [2, 4])
def test_tensor_parallel_ranks(tmp_path, degree):
    folder = save_ranks(tmp_path / "epoch_0_step_5", dealt(degree))
    assert_whole(folder)
    opened = SYSTEM.open(folder)
    assert opened.step == 5
    assert f"tensor {degree}" in opened.title


def test_the_model_of_joined_ranks_computes_what_the_original_computed(tmp_path):
    import paddle

    from fastffn_cli.engine.checkpoint import build_loaded
    from fastffn_cli.interop.reading import read_foreign
    from tests.fleetx_models import load_arrays

    folder = save_ranks(tmp_path, dealt(2))
    given = [f"Model.num_attention_heads={HEADS}"]
    model = build_loaded(read_foreign(folder, "auto", overrides=given)).model
    expected = load_arrays("A_forward.npz")
    with paddle.no_grad():
        logits = model(paddle.to_tensor(expected["input_ids"])).numpy()
    assert np.abs(logits - expected["logits_eval"]).max() < 2e-5


def test_sharding_ranks_hold_the_same(tmp_path):
    assert_whole(save_ranks(tmp_path, {(0, rank, 0): small_arrays() for rank in range(3)}))


@pytest.mark.parametrize("nested_norm", [False, True])
@pytest.mark.parametrize("bounds", [(0, 2), (0, 3), (0, 1, 2)])
def test_stages_of_a_pipeline(tmp_path, bounds, nested_norm):
    stages = pipeline_stages(small_arrays(), LAYERS, bounds, nested_norm=nested_norm)
    folder = save_ranks(tmp_path, {(0, 0, pp): arrays for pp, arrays in enumerate(stages)})
    assert_whole(folder)
    assert any("compare the loss" in notice for notice in SYSTEM.open(folder).notices)


def test_stages_saved_through_paddles_wrapper(tmp_path):
    stages = pipeline_stages(small_arrays(), LAYERS, (0, 2), nested_norm=True)
    ranks = {
        (0, 0, pp): {f"_layers.{name}": array for name, array in stage.items()}
        for pp, stage in enumerate(stages)
    }
    assert_whole(save_ranks(tmp_path, ranks))


def test_all_kinds_of_ranks_at_once(tmp_path):
    ranks = {}
    for mp, part in enumerate(tensor_parallel_parts(small_arrays(), 2, HEADS)):
        for pp, stage in enumerate(pipeline_stages(part, LAYERS, (0, 2), nested_norm=True)):
            for sharding in range(2):
                ranks[mp, sharding, pp] = stage
    assert_whole(save_ranks(tmp_path, ranks))


@pytest.mark.parametrize("inner", ["", "mp_00_sharding_00_pp_00"])
@pytest.mark.parametrize("file", ["", "model.pdparams"])
def test_a_single_rank_is_a_checkpoint_by_any_of_its_paths(tmp_path, inner, file):
    folder = save_ranks(tmp_path / "model_100", {(0, 0, 0): small_arrays()})
    path = folder / inner / file
    if path.exists():
        assert_whole(path)
        assert SYSTEM.open(path).step == 100


def test_a_part_alone_names_the_folder_of_all(tmp_path):
    save_ranks(tmp_path, dealt(2))
    part = tmp_path / "mp_01_sharding_00_pp_00"
    for path in (part, part / "model.pdparams"):
        assert SYSTEM.recognise(path)
        with pytest.raises(CheckpointError, match="one of 2 parts") as caught:
            SYSTEM.open(path)
        assert str(tmp_path) in caught.value.hint


def test_a_part_moved_away_is_known_by_its_columns(tmp_path):
    file = save(tmp_path / "model.pdparams", dealt(4)[1, 0, 0])
    with pytest.raises(CheckpointError, match="one of 4 tensor parallel parts"):
        SYSTEM.open(file)


@pytest.mark.parametrize(("kept", "columns"), [(2, 48), (3, 72)])
def test_last_ranks_that_are_missing_are_known_by_the_columns(tmp_path, kept, columns):
    ranks = {rank: arrays for rank, arrays in dealt(4).items() if rank[0] < kept}
    with pytest.raises(CheckpointError, match=f"{columns} of the 96 columns .* probably 4 ranks"):
        SYSTEM.open(save_ranks(tmp_path, ranks))


def test_one_rank_copied_into_the_place_of_another_is_refused_when_it_is_read(tmp_path):
    ranks = dealt(2)
    ranks[1, 0, 0] = ranks[0, 0, 0]
    tensors = SYSTEM.open(save_ranks(tmp_path, ranks)).tensors
    with pytest.raises(CheckpointError, match="ranks 0 and 1 hold the same values"):
        tensors["gpt.decoder.layers.0.linear1.weight"].read()


def test_everything_that_is_missing_is_listed(tmp_path):
    ranks = dealt(4)
    del ranks[1, 0, 0], ranks[2, 0, 0]
    del ranks[3, 0, 0]["gpt.decoder.norm.bias"]
    with pytest.raises(CheckpointError) as caught:
        SYSTEM.open(save_ranks(tmp_path, ranks))
    for words in (
        "missing: mp_01_sharding_00_pp_00",
        "missing: mp_02_sharding_00_pp_00",
        "tensor parallel rank 3 has no gpt.decoder.norm.bias",
    ):
        assert words in caught.value.message


def test_a_folder_without_its_file_is_named(tmp_path):
    save_ranks(tmp_path, dealt(2))
    (tmp_path / "mp_00_sharding_00_pp_00" / "model.pdparams").unlink()
    assert SYSTEM.recognise(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: .*mp_00_sharding_00_pp_00"):
        SYSTEM.open(tmp_path)


def test_numbers_of_ranks_beyond_all_measure_are_refused(tmp_path):
    (tmp_path / "mp_999999999_sharding_999999999_pp_00").mkdir()
    save(tmp_path / "mp_999999999_sharding_999999999_pp_00" / "model.pdparams", small_arrays())
    save_ranks(tmp_path, {(0, 0, 0): small_arrays()})
    with pytest.raises(CheckpointError, match="gaps"):
        SYSTEM.open(tmp_path)


def test_uneven_parts_are_refused(tmp_path):
    ranks = dealt(2)
    name = "gpt.decoder.layers.1.linear1.weight"
    ranks[1, 0, 0][name] = ranks[1, 0, 0][name][:, :-1]
    with pytest.raises(CheckpointError, match=r"linear1\.weight is dealt out unevenly"):
        SYSTEM.open(save_ranks(tmp_path, ranks))


def test_sharding_ranks_of_other_shapes_are_refused(tmp_path):
    other = small_arrays()
    name = "gpt.decoder.layers.1.linear1.weight"
    other[name] = other[name][:1]
    with pytest.raises(CheckpointError, match=r"linear1\.weight is \[1, 128\] here"):
        SYSTEM.open(save_ranks(tmp_path, {(0, 0, 0): small_arrays(), (0, 1, 0): other}))


@pytest.mark.parametrize(
    "name", ["gpt.decoder.layers.0.linear2.bias", "gpt.embeddings.position_embeddings.weight"]
)
def test_copies_that_differ_are_refused_when_they_are_read(tmp_path, name):
    ranks = dealt(2)
    ranks[1, 0, 0][name] = ranks[1, 0, 0][name] + np.float32(1e-6)
    opened = SYSTEM.open(save_ranks(tmp_path, ranks))
    with pytest.raises(CheckpointError, match="not the same in tensor parallel ranks"):
        opened.tensors[name].read()


def test_a_pipeline_whose_head_is_not_the_embedding_is_refused(tmp_path):
    stages = pipeline_stages(small_arrays(), LAYERS, (0, 2), nested_norm=True)
    stages[1]["shared_layers.embed.word_embeddings.weight"] = np.zeros((128, 32), np.float32)
    opened = SYSTEM.open(save_ranks(tmp_path, {(0, 0, pp): each for pp, each in enumerate(stages)}))
    with pytest.raises(CheckpointError, match="the first and the last stage"):
        opened.tensors["gpt.embeddings.word_embeddings.weight"].read()


def test_a_missing_stage_is_refused(tmp_path):
    stages = pipeline_stages(small_arrays(), LAYERS, (0, 2, 3), nested_norm=True)
    ranks = {(0, 0, 0): stages[0], (0, 0, 1): stages[1]}
    with pytest.raises(CheckpointError, match=r"missing: gpt\.decoder\.norm\.weight"):
        SYSTEM.open(save_ranks(tmp_path, ranks))


@pytest.mark.parametrize("name", ["0.self_attn.qkv_proj.weight", "0.1.linear1.weight"])
def test_unknown_names_in_a_pipeline_are_refused(tmp_path, name):
    stages = pipeline_stages(small_arrays(), LAYERS, (0, 2), nested_norm=True)
    stages[0][name] = np.zeros((2, 2), np.float32)
    with pytest.raises(CheckpointError, match=f"pipeline stage 0 has {name}"):
        SYSTEM.open(save_ranks(tmp_path, {(0, 0, pp): each for pp, each in enumerate(stages)}))


def test_two_stages_with_the_same_layer_are_refused(tmp_path):
    stages = pipeline_stages(small_arrays(), LAYERS, (0, 2), nested_norm=True)
    stages[1]["1.linear1.weight"] = stages[0]["1.linear1.weight"]
    with pytest.raises(CheckpointError, match="as an earlier one"):
        SYSTEM.open(save_ranks(tmp_path, {(0, 0, pp): each for pp, each in enumerate(stages)}))


def test_joining_holds_the_whole_tensor_and_one_part(tmp_path):
    name, whole = "gpt.embeddings.word_embeddings.weight", np.ones((80_000, 32), np.float32)
    parts = tensor_parallel_parts({**small_arrays(), name: whole}, 4, HEADS)
    tensors = SYSTEM.open(
        save_ranks(tmp_path, {(rank, 0, 0): arrays for rank, arrays in enumerate(parts)})
    ).tensors
    tracemalloc.start()
    joined = tensors[name].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(joined, whole)
    assert peak < 1.3 * whole.nbytes


def test_the_real_checkpoint_that_the_parts_were_made_of_is_whole():
    assert_whole(STEP_0)
