"""Curves of several seeds in one line, and pictures that any arm name leaves whole."""

import xml.dom.minidom

import numpy as np
import pytest

from fastffn_cli.comparison.figures import Line, draw_losses, mean_and_band


def test_mean_and_band_where_all_curves_are():
    first = [(0.0, 4.0), (2.0, 2.0), (4.0, 1.0)]
    second = [(1.0, 4.0), (3.0, 2.0)]
    xs, mean, low, high = mean_and_band([first, second])
    np.testing.assert_allclose(xs, [1.0, 2.0, 3.0])
    np.testing.assert_allclose(low, [3.0, 2.0, 1.5])
    np.testing.assert_allclose(high, [4.0, 3.0, 2.0])
    np.testing.assert_allclose(mean, [3.5, 2.5, 1.75])


@pytest.mark.parametrize(
    "name",
    ["low_rank_8", "_hidden", "$\\frac{", "<b>&</b>", "-->", "名前", "", "a\nb"],
)
def test_any_name_can_be_drawn(name, recwarn):
    lines = [
        Line("dense", ([(1.0, 4.0), (2.0, 3.0)],), is_baseline=True),
        Line(name, ([(1.0, 4.1), (2.0, 2.9)], [(1.0, 4.2), (2.0, 2.8)])),
    ]
    svg = draw_losses(lines, x_label="tokens", title="title")
    assert xml.dom.minidom.parseString(svg.encode()).documentElement.tagName == "svg"
    assert not recwarn.list


def test_many_arms_and_single_points():
    lines = [Line(f"arm {index}", ([(5.0, 3.0 + index)],)) for index in range(15)]
    assert "<svg" in draw_losses(lines, x_label="tokens", title="")


def test_arms_without_curves_are_left_out():
    assert "<svg" in draw_losses([Line("dense", (), True)], x_label="tokens", title="")
    apart = Line("apart", ([(1.0, 3.0), (2.0, 2.0)], [(3.0, 2.0), (4.0, 1.0)]))
    assert "<svg" in draw_losses([apart], x_label="tokens", title="")
