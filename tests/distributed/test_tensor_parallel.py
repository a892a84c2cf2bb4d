"""A model that is split among real processes computes and trains as the whole one does."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.mesh import Axis, Mesh
from fastffn_cli.distributed.tensor_parallel import Partition, split
from fastffn_cli.distributed.traffic import count_traffic
from fastffn_cli.errors import ConfigError
from models.gpt import GPTConfig
from tests.distributed.pipeline_member import STEPS, Case, new_model
from tests.distributed.processes import run_cases, run_processes
from tests.distributed.tensor_parallel_member import train

MEMBER = "tests.distributed.tensor_parallel_member"
SMALL = {"num_layers": 2}
LOW_RANK = {"ffn": {"kind": "low_rank", "rank": 4, "lr_rule": "spectral", "decay_rule": "half"}}
FACTORS = {**LOW_RANK, "attention_rank": 4, "embedding_rank": 5}
FOUR_HEADS = {"num_attention_heads": 4}
RECOMPUTE = {"use_recompute": True}

TWO = {
    "dense": {},
    "low rank": LOW_RANK,
    "thin": {"ffn": {"kind": "thin", "rank": 2, "width": 8}},
    "narrow": {"ffn": {"kind": "narrow", "width": 8}},
    "an activation between factors": {"ffn": {"kind": "low_rank_activation", "rank": 4}},
    "factors everywhere": FACTORS,
    "two kinds": {"ffn": {"kind": "low_rank", "rank": 4, "dense_layers": [0]}},
    "a masked token": {"masked_token_id": 3},
    "recompute": {**FACTORS, **RECOMPUTE},
    "recompute of attention": {**RECOMPUTE, "recompute_granularity": "full_attn"},
    "recompute of its core": {**RECOMPUTE, "recompute_granularity": "core_attn"},
}
SLICED = {
    "dense": {"masked_token_id": 3, **RECOMPUTE, "recompute_granularity": "full_attn"},
    "narrow": {"ffn": {"kind": "narrow", "width": 8}},
    "an activation between factors": {"ffn": {"kind": "low_rank_activation", "rank": 4}},
    "factors everywhere": {**FACTORS, **RECOMPUTE},
}
TWO = {name: Case(mp=2, pieces=2, model={**SMALL, **model}) for name, model in TWO.items()} | {
    f"{name}, time divided": Case(mp=2, sequence=True, pieces=2, model={**SMALL, **model})
    for name, model in SLICED.items()
}
FOUR = {
    "dense on four": Case(mp=4, model={**SMALL, **FOUR_HEADS}),
    "low rank on four": Case(mp=4, model={**SMALL, **FOUR_HEADS, **LOW_RANK}),
    "factors on four, time divided": Case(
        mp=4, sequence=True, model={**SMALL, **FOUR_HEADS, **FACTORS}
    ),
    "two by two": Case(dp=2, mp=2, pieces=2, model=SMALL),
    "two by two, time divided": Case(dp=2, mp=2, sequence=True, pieces=2, model=SMALL),
    "two by two, factors": Case(dp=2, mp=2, pieces=2, model={**SMALL, **FACTORS}),
}
# Of gloo's messages: some tens of bytes each, and their number is not always the same.
HEADERS = 0.04
WIDE = {
    "vocab_size": 16, "hidden_size": 768, "num_layers": 1, "num_attention_heads": 12,
    "ffn_hidden_size": 3072, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return run_cases([MEMBER, "train"], TWO, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    return run_cases([MEMBER, "train"], FOUR, 4, tmp_path_factory.mktemp("four"))


def check(case, ranks):
    """Losses, norms, gradients and moments of each process, joined, are those of the whole."""
    whole = train(case, Mesh(Layout()))
    assert f"loss {STEPS - 1}" in whole
    for rank in ranks:
        assert rank.keys() == whole.keys()
        for name, array in whole.items():
            np.testing.assert_allclose(rank[name], array, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_processes_train_as_one(name, of_two):
    check(TWO[name], of_two[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_train_as_one(name, of_four):
    check(FOUR[name], of_four[name])


@pytest.mark.slow
def test_tensor_parallel_processes_stay_alike_to_the_last_bit(of_two):
    """What is whole in each of them is never compared or sent again."""
    for first, second in of_two.values():
        assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_as_many_bytes_arrive_as_are_planned_and_96_times_fewer_for_thin_factors(count):
    models = {
        "dense": WIDE,
        "low rank": {**WIDE, "ffn": {"kind": "low_rank", "rank": 8}},
    }
    if count == 2:
        models["recompute"] = {**models["low rank"], **RECOMPUTE}
        models["factors"] = {**models["low rank"], "attention_rank": 16}
    cases = [[model, False] for model in models.values()]
    done = run_processes(MEMBER, ["traffic", json.dumps(cases)], count)
    layout = Layout(mp=count, micro_batch_size=16)
    for member in done:
        counted = dict(zip(models, member.answer, strict=True))
        for name, (step, _) in counted.items():
            config = GPTConfig(**models[name])
            asked = replace(layout, recompute=config.use_recompute)
            planned = count_traffic(config, 16, asked, 0).tensor
            assert step == pytest.approx(planned, rel=HEADERS), name
        assert counted["dense"][1] / counted["low rank"][1] == pytest.approx(96, rel=HEADERS)


@pytest.mark.slow
def test_divided_time_sends_what_is_planned_and_whole_sums_for_parts_of_them():
    """A CPU has no reduce-scatter: two thirds of the bytes between layers are of all-reduces."""
    models = [WIDE, {**WIDE, "ffn": {"kind": "low_rank", "rank": 8}, "attention_rank": 16}]
    cases = [[{**model, **more}, True] for model in models for more in ({}, RECOMPUTE)]
    for member in run_processes(MEMBER, ["traffic", json.dumps(cases)], 2):
        for (model, _), (step, feed_forward) in zip(cases, member.answer, strict=True):
            config = GPTConfig(**model)
            values = 16 * 16 * (config.ffn.get("rank") or config.hidden_size)
            # The output's sum and the gradient's, an all-reduce each, and two gathers.
            assert feed_forward == pytest.approx(4 * 3 * values, rel=HEADERS)

            def planned(rows, sequence, config=config):
                layout = Layout(
                    mp=2,
                    micro_batch_size=rows,
                    sequence_parallel=sequence,
                    recompute=config.use_recompute,
                )
                return count_traffic(config, 16, layout, 0).tensor

            layers = planned(16, False)
            ends = planned(18, True) - planned(2, True) - layers
            assert step == pytest.approx(1.5 * layers + ends, rel=HEADERS)


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
    """What each process saw: layer by layer in training, the end; the same in evaluation."""
    folder = tmp_path_factory.mktemp("dropout")
    run_processes(MEMBER, ["dropout", folder], 2)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


@pytest.mark.slow
def test_attention_drops_other_probabilities_in_each_process_and_layer(dropped):
    first, second = dropped
    assert np.array_equal(first["seen 5"], second["seen 5"]), "heads are alike in evaluation"
    for layer in range(4):
        assert not np.array_equal(first[f"seen {layer}"], second[f"seen {layer}"])


@pytest.mark.slow
def test_hidden_dropout_is_the_same_in_all_processes(dropped):
    first, second = dropped
    assert np.array_equal(first["seen 4"], second["seen 4"])
    assert not np.array_equal(first["seen 4"], first["seen 9"])


@pytest.mark.slow
def test_recomputing_repeats_the_dropout_of_each_process(dropped):
    for rank in dropped:
        for sequence in (False, True):
            for index in (1, 2, 3):
                np.testing.assert_allclose(
                    rank[f"gradients {sequence} {index}"],
                    rank[f"gradients {sequence} 0"],
                    rtol=0,
                    atol=1e-6,
                )


@pytest.mark.slow
def test_where_time_is_divided_hidden_dropout_differs(dropped):
    """Elements at one place in two processes are of other time steps."""
    first, second = dropped
    for dropout in range(3):
        whole, sliced = (f"hidden {sequence} {dropout}" for sequence in (False, True))
        assert np.array_equal(first[whole], second[whole])
        assert not np.array_equal(first[sliced], second[sliced])
    assert np.array_equal(first["after True"], second["after True"])


@pytest.mark.slow
def test_split_models_evaluate_and_generate_as_whole_ones_also_when_joined_merged_and_split():
    models = [{}, FACTORS, {"masked_token_id": 3}]
    for member in run_processes(MEMBER, ["generate", json.dumps(models)], 2):
        assert np.max(member.answer) < 1e-5


@pytest.mark.parametrize("kind", ["moe", "monarch", "guided"])
def test_kinds_that_are_not_split_are_refused_with_the_way_out(kind):
    model = new_model(Case(model={"ffn": {"kind": kind}}))
    with pytest.raises(ConfigError) as caught:
        split(model, Axis("mp", (0, 1), 0))
    assert any("set mp_degree to 1" in problem for problem in caught.value.problems)


def test_heads_that_do_not_divide_are_refused_before_anything_is_split():
    model = new_model(Case())
    with pytest.raises(ConfigError, match="num_attention_heads 2"):
        split(model, Axis("mp", (0, 1, 2, 3), 0))
    assert model.layers[0].self_attn.heads == 2


def test_alone_nothing_is_split():
    model = new_model(Case())
    partition = split(model, Mesh(Layout()).mp)
    assert partition.dimensions == {}
    array = np.ones([4, 6])
    assert partition.part("layers.0.ffn.linear1.weight", array) is array
    assert partition.whole("layers.0.ffn.linear1.weight", array) is array


def test_parts_of_weights_and_of_their_states_join_to_the_whole():
    dimensions = {"qkv.weight": 1, "out.weight": 0}
    parts = [Partition(Axis("mp", (0, 1), index), dimensions) for index in range(2)]
    array = np.arange(24.0).reshape(4, 6)
    for name, dimension in [("qkv.weight", 1), ("qkv.weight.moment2", 1), ("out.weight.master", 0)]:
        joined = np.concatenate([each.part(name, array) for each in parts], axis=dimension)
        assert np.array_equal(joined, array)
    for name in ("norm.weight", "norm.weight.moment1", "qkv.weight.beta1_pow"):
        assert all(each.part(name, array) is array for each in parts)
