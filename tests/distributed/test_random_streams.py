"""Random numbers of a process's own, among those that all processes have in common."""

import numpy as np
import paddle

from fastffn_cli.distributed.random_streams import RandomStream


def draw():
    return paddle.rand([64]).numpy()


def own_numbers(index, seed=7, times=2):
    """What process `index` draws: its own numbers, then common ones, `times` times."""
    paddle.seed(seed)
    stream = RandomStream(index)
    drawn = []
    for _ in range(times):
        stream.begin()
        mine = draw()
        stream.end()
        drawn.append((mine, draw()))
    return drawn


def test_processes_draw_different_numbers_and_have_the_common_ones_alike():
    for (first, common), (second, again) in zip(own_numbers(0), own_numbers(1), strict=True):
        assert not np.isclose(first, second).any()
        assert np.array_equal(common, again)


def test_each_time_the_numbers_are_others():
    (first, common), (second, _) = own_numbers(3)
    assert not np.isclose(first, second).any()
    assert not np.isclose(first, common).any()


def test_how_much_is_drawn_does_not_move_the_common_numbers():
    paddle.seed(7)
    stream = RandomStream(0)
    stream.begin()
    paddle.rand([5])
    stream.end()
    assert np.array_equal(draw(), own_numbers(0, times=1)[0][1])


def test_the_same_seed_gives_the_same_numbers():
    assert np.array_equal(own_numbers(2), own_numbers(2))
    assert not np.array_equal(own_numbers(2), own_numbers(2, seed=8))
