import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from helpers import plots


def test_ema_by_hand_and_against_pandas():
    assert plots.ema([1, 3, 5], 0.5) == [1, 2, 3.5]
    values = [2.0, -1.0, 0.5, 4.0, 3.0]
    for alpha in (0.05, 0.3, 1.0):
        expected = pd.Series(values).ewm(alpha=alpha, adjust=False).mean().tolist()
        assert plots.ema(values, alpha) == pytest.approx(expected, rel=1e-12)
    assert plots.ema([], 0.1) == []


@pytest.mark.parametrize("alpha", [0, -0.1, 1.1, float("nan")])
def test_ema_refuses_alpha(alpha):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        plots.ema([1, 2], alpha)


def test_learning_curve_draws_raw_values_their_ema_and_the_validations():
    steps = [{"step": i, "loss": 1 / i} for i in range(1, 9)]
    _, ax = plt.subplots()
    plots.learning_curve(steps, [{"step": 8, "loss": 0.2}], "loss", "loss", ax, plots.TEACHER)
    raw, smooth, points = (line.get_ydata() for line in ax.lines)
    assert list(raw) == [1 / i for i in range(1, 9)]
    assert list(smooth) == plots.ema(list(raw), 0.1)
    assert list(points) == [0.2]
    assert ax.lines[0].get_alpha() < 0.5
    assert {line.get_color() for line in ax.lines[:2]} == {plots.TEACHER}


def test_comparison_bars_writes_each_value():
    _, ax = plt.subplots()
    plots.comparison_bars({"teacher": 1.0, "student": 2.5}, "title", "unit", ax)
    assert [bar.get_width() for bar in ax.patches] == [1.0, 2.5]
    assert [text.get_text() for text in ax.texts] == ["1", "2.5"]


def test_seed_points_draws_each_seed_and_the_mean():
    _, ax = plt.subplots()
    plots.seed_points({"a": [1.0, 2.0, 6.0], "b": [4.0]}, "title", "unit", ax, {"teacher": 7.0})
    points, mean, _, other_mean, reference = ax.get_lines()
    assert list(points.get_xdata()) == [1.0, 2.0, 6.0]
    assert list(mean.get_xdata()) == [3.0, 3.0]
    assert list(other_mean.get_xdata()) == [4.0, 4.0]
    assert (reference.get_xdata()[0], reference.get_label()) == (7.0, "teacher")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]


def test_names_are_read_from_the_top_in_panels_that_share_an_axis():
    for draw, values in ((plots.comparison_bars, {"a": 1.0, "b": 2.0}), (plots.seed_points, {"a": [1.0], "b": [2.0]})):
        _, axes = plt.subplots(1, 2, sharey=True)
        for ax in axes:
            draw(values, "title", "unit", ax)
        assert axes[0].yaxis_inverted()


def test_seed_curves_draws_each_seed_their_mean_and_their_range():
    _, ax = plt.subplots()
    values = [[4.0, 2.0, 1.0], [2.0, 2.0, 5.0]]
    plots.seed_curves({"teacher": [([1, 2, 3], own) for own in values]}, "loss", ax, 0.5)
    *raw, mean = ax.get_lines()
    assert [list(line.get_ydata()) for line in raw] == values
    smooth = [plots.ema(own, 0.5) for own in values]
    assert list(mean.get_ydata()) == [sum(pair) / 2 for pair in zip(*smooth, strict=True)]
    assert mean.get_color() == plots.TEACHER
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].min() == min(map(min, smooth))
    assert edges[:, 1].max() == max(map(max, smooth))


def test_seed_curves_of_one_name_have_the_colour_of_all_pictures():
    colors = plots.contender_colors(["teacher", "a", "b", "c"])
    _, ax = plt.subplots()
    plots.seed_curves({"c": [([1, 2], [0.5, 0.7])]}, "accuracy", ax, 1.0, colors)
    assert [line.get_color() for line in ax.get_lines()] == [colors["c"]] * 2
    assert list(ax.get_lines()[-1].get_ydata()) == [0.5, 0.7], "not smoothed, it ends where the run has ended"


def test_points_stand_at_their_means_and_their_names_apart():
    _, ax = plt.subplots()
    points = {"a": (2.0, [1.0, 3.0]), "b": (2.0, [2.0]), "low": (4.0, [0.0]), "c": (2.0, [2.0, 2.0])}
    plots.points_with_ranges(points, "title", "ms", "%", ax)
    drawn = [line.get_xydata().tolist() for line in ax.get_lines() if line.get_marker() == "o"]
    assert drawn == [[[2.0, 2.0]], [[2.0, 2.0]], [[4.0, 0.0]], [[2.0, 2.0]]]
    heights = {text.get_text(): text.xyann[1] for text in ax.texts}
    apart = sorted(heights.values())
    assert np.diff(apart).min() > 0.2
    assert heights["low"] == min(apart)
    assert len(set(plots.contender_colors(points).values())) == 4


def test_layer_map_names_each_layer():
    _, ax = plt.subplots()
    plots.layer_map(6, [0, 2, 5], ax)
    numbers = sorted(text.get_text() for text in ax.texts if text.get_text().isdigit())
    assert numbers == sorted("012345" + "012")


def test_each_of_many_contenders_has_a_colour_of_its_own():
    for count in (7, 8, 19):
        colors = plots.contender_colors(["teacher", *(f"run {number}" for number in range(count - 1))])
        assert len(set(colors.values())) == count
