"""Where each rank stands: against Paddle's own topology."""

from __future__ import annotations

import pytest
from paddle.distributed.fleet.base.topology import CommunicateTopology

from fastffn_cli.distributed.layout import Layout
from fastffn_cli.distributed.mesh import Axis, Mesh

LAYOUT = Layout(dp=2, pp=3, sharding_degree=2, mp=2)
FLEET = {"dp": "data", "pp": "pipe", "sharding": "sharding", "mp": "model"}


@pytest.mark.parametrize("name", FLEET)
def test_the_axes_are_those_of_paddles_fleet(name: str) -> None:
    order = ["data", "pipe", "sharding", "model"]
    topology = CommunicateTopology(order, [2, 3, 2, 2])
    groups = topology.get_comm_list(FLEET[name])
    for rank in range(LAYOUT.cards):
        axis: Axis = getattr(Mesh(LAYOUT, rank), name)
        assert list(axis.ranks) in groups
        assert axis.ranks[axis.index] == rank


def test_the_data_axis_joins_all_that_train_the_same_weights() -> None:
    for rank in range(LAYOUT.cards):
        mesh = Mesh(LAYOUT, rank)
        assert mesh.data.ranks[mesh.data.index] == rank
        alike = {
            other
            for other in range(LAYOUT.cards)
            if (Mesh(LAYOUT, other).pp.index, Mesh(LAYOUT, other).mp.index)
            == (mesh.pp.index, mesh.mp.index)
        }
        assert set(mesh.data.ranks) == alike


def test_one_process_is_alone_on_every_axis() -> None:
    mesh = Mesh(Layout())
    axes = (mesh.dp, mesh.pp, mesh.sharding, mesh.mp, mesh.data, mesh.world)
    assert [axis.size for axis in axes] == [1] * len(axes)
    assert mesh.is_main
    assert mesh.world.totals(1.5, 2.0) == [1.5, 2.0]
    assert mesh.world.all_texts("alone") == ["alone"]


def test_every_meeting_is_listed_once_and_alike_in_all_processes() -> None:
    layout = Layout(dp=2, pp=3, mp=2)
    listed = Mesh(layout, 0).meetings
    assert len(set(listed)) == len(listed)
    for rank in range(layout.cards):
        mesh = Mesh(layout, rank)
        assert mesh.meetings == listed
        assert {mesh.dp.ranks, mesh.pp.ranks, mesh.mp.ranks, mesh.world.ranks} <= set(listed)
        first, middle, last = mesh.pp.ranks
        assert {(first, middle), (middle, last), (first, last)} <= set(listed)
    assert Mesh(Layout()).meetings == []
