"""Pictures. Each function takes data and returns an Axes; none knows where the data came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle

from IPython.display import display
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

TEACHER, STUDENT, NEUTRAL = "#b2521e", "#1f6f8b", "#5f5f5f"
"""One colour for each role in every picture; they differ in lightness too."""


def ema(values: Sequence[float], alpha: float) -> list[float]:
    """Exponential moving average: ``m[0] = x[0]`` and ``m[i] = alpha * x[i] + (1 - alpha) * m[i - 1]``.

    Args:
        values: the raw series.
        alpha: weight of the newest value, above 0 and at most 1; 1 leaves the series as it is.

    Raises:
        ValueError: alpha out of its range.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}: it has to be above 0 and at most 1.")
    means: list[float] = []
    for value in values:
        means.append(alpha * value + (1 - alpha) * means[-1] if means else float(value))
    return means


def show(figure: Figure, alt: str) -> None:
    """Display a figure with a text for those who cannot see it, and close it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def learning_curve(
    steps: Sequence[dict], validations: Sequence[dict], key: str, title: str, ax: Axes, color: str = STUDENT
) -> Axes:
    """Draw one metric: raw training values faint, their EMA over them, validations as points.

    Args:
        steps: one dict a training step, with ``step`` and the metric.
        validations: the same for each validation.
        key: the metric.
        title: what it is, with its unit.
        ax: where to draw.
        color: of the model that learns.
    """
    x, y = [s["step"] for s in steps], [s[key] for s in steps]
    ax.plot(x, y, color=color, alpha=0.35, linewidth=1, label="each step")
    ax.plot(x, ema(y, 0.1), color=color, linewidth=2, label="EMA, alpha = 0.1")
    if validations:
        points = [v["step"] for v in validations], [v[key] for v in validations]
        ax.plot(*points, "o", color="black", markersize=6, label="validation")
    ax.set(title=title, xlabel="optimizer step", xlim=(0, None))
    ax.grid(alpha=0.3)
    return ax


def comparison_bars(values: dict[str, float], title: str, xlabel: str, ax: Axes, form: str = "{:.3g}") -> Axes:
    """Draw one horizontal bar a name, in the order given, with its value written at the end."""
    names = list(values)
    colors = [TEACHER if "teacher" in name.lower() else STUDENT for name in names]
    bars = ax.barh(names, list(values.values()), color=colors)
    ax.bar_label(bars, [form.format(value) for value in values.values()], padding=4)
    ax.yaxis.set_inverted(True)
    ax.margins(x=0.18)
    ax.set(title=title, xlabel=xlabel)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def seed_points(
    values: dict[str, Sequence[float]], title: str, xlabel: str, ax: Axes, references: dict[str, float] | None = None
) -> Axes:
    """Draw one row a name, in the order given: a point for each seed, and a line at their mean.

    Args:
        values: one number a seed for each name.
        title: what the numbers are.
        xlabel: their unit.
        ax: where to draw.
        references: numbers that are drawn as vertical lines with their names.
    """
    for row, numbers in enumerate(values.values()):
        ax.plot(numbers, [row] * len(numbers), "o", color=STUDENT, alpha=0.6, markersize=6)
        ax.plot([sum(numbers) / len(numbers)] * 2, [row - 0.3, row + 0.3], color=STUDENT, linewidth=2.5)
    for name, number in (references or {}).items():
        ax.axvline(number, color=TEACHER if "teacher" in name.lower() else NEUTRAL, linestyle="--", label=name)
    ax.set_yticks(range(len(values)), list(values))
    ax.yaxis.set_inverted(True)
    ax.grid(axis="x", alpha=0.3)
    ax.set(title=title, xlabel=xlabel)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def contender_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name: the teacher's for what is called teacher, for others matplotlib's "tab20", the dark ones
    of it first, without the two that are too near to the teacher's."""
    colors = colormaps["tab20"].colors
    others = cycle(c for c in map(to_hex, [*colors[::2], *colors[1::2]]) if c not in ("#ff7f0e", "#8c564b"))
    return {name: TEACHER if "teacher" in name.lower() else next(others) for name in names}


def seed_curves(
    runs: dict[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    title: str,
    ax: Axes,
    alpha: float,
    colors: dict[str, str] | None = None,
) -> Axes:
    """Draw a line a name through the mean over its seeds of their EMAs, a band from the least to the greatest of them.

    Args:
        runs: for each name, (steps, values) of each seed; a name's seeds have the same steps. The values are drawn
            faintly.
        title: what they are, with their unit.
        ax: where to draw.
        alpha: see `ema`.
        colors: of each name, where several pictures share them; by default `contender_colors` of these names.
    """
    colors = colors or contender_colors(runs)
    for name in runs:
        color = colors[name]
        steps = runs[name][0][0]
        smooth = [ema(values, alpha) for _, values in runs[name]]
        for _, values in runs[name]:
            ax.plot(steps, values, color=color, alpha=0.2, linewidth=0.7)
        columns = list(zip(*smooth, strict=True))
        ax.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=color, alpha=0.25, linewidth=0)
        ax.plot(steps, [sum(column) / len(column) for column in columns], color=color, linewidth=1.8, label=name)
    ax.set(title=title, xlabel="optimizer step", xlim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return ax


def points_with_ranges(
    points: dict[str, tuple[float, Sequence[float]]], title: str, xlabel: str, ylabel: str, ax: Axes
) -> Axes:
    """Draw a point a name: x one number, y the mean over seeds, a bar from the least to the greatest.

    The names stand at the right: `ax` is of a figure with constrained layout, which makes room for them.
    """
    means = {name: sum(values) / len(values) for name, (_, values) in points.items()}
    gap = 0.07 * (max(max(values) for _, values in points.values()) - min(min(values) for _, values in points.values()))
    # Points may lie on each other: the names stand in a column, a line's height apart, the highest at its point.
    heights, above = {}, float("inf")
    for name in sorted(means, key=means.get, reverse=True):
        heights[name] = above = min(means[name], above - gap)
    right, colors, outside = max(x for x, _ in points.values()), contender_colors(points), ax.get_yaxis_transform()
    for name in points:
        (x, values), mean = points[name], means[name]
        reach = [[mean - min(values)], [max(values) - mean]]
        ax.errorbar(x, mean, yerr=reach, fmt="o", color=colors[name], capsize=4, markersize=7)
        line = {"arrowstyle": "-", "color": colors[name], "lw": 0.7, "alpha": 0.6}
        style = {"color": colors[name], "va": "center", "arrowprops": line}
        ax.annotate(name, (x, mean), (1.02, heights[name]), textcoords=outside, **style)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, 1.05 * right))
    ax.set_ylim(bottom=min(ax.get_ylim()[0], above - gap / 2))  # the lowest name does not hang below the picture
    ax.grid(alpha=0.3)
    return ax


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, color: str, filled: bool = True) -> None:
    """Draw a box with its text, filled with its colour or white."""
    face = color if filled else "white"
    ax.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.08", fc=face, ec=color, lw=1.6))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color="white" if filled else "black")


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    """Draw an arrow from one point to another."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.4, "shrinkA": 0, "shrinkB": 0})


def layer_map(teacher_layers: int, layers: Sequence[int], ax: Axes) -> Axes:
    """Draw which of the teacher's layers becomes which of the student's."""
    for old in range(teacher_layers):
        box(ax, old, 1.6, 0.85, 0.7, str(old), TEACHER, filled=old in layers)
    for new, old in enumerate(layers):
        # The student is drawn centred below the teacher.
        x = new + (teacher_layers - len(layers)) / 2
        box(ax, x, 0, 0.85, 0.7, str(new), STUDENT)
        arrow(ax, (old + 0.42, 1.58), (x + 0.42, 0.74), NEUTRAL)
    ax.text(-0.3, 1.95, "teacher", ha="right", va="center", color=TEACHER, weight="bold")
    ax.text(-0.3, 0.35, "student", ha="right", va="center", color=STUDENT, weight="bold")
    ax.set(xlim=(-2.2, teacher_layers), ylim=(-0.1, 2.4))
    ax.set_title(f"{teacher_layers} layers to {len(layers)}: {list(layers)}")
    ax.set_aspect("equal")
    ax.axis("off")
    return ax


def word_bars(words: Sequence[str], probabilities: dict[str, Sequence[float]], title: str, ax: Axes) -> Axes:
    """Draw, for each word from the top, one bar a model with its probability written at the end.

    Args:
        words: the words.
        probabilities: for each model's name, a number from 0 to 1 for each word.
        title: what is predicted.
        ax: where to draw.
    """
    height = 0.8 / len(probabilities)
    for i, (name, values) in enumerate(probabilities.items()):
        color = TEACHER if "teacher" in name else STUDENT if "student" in name else NEUTRAL
        style = {"color": color, "alpha": 0.45 if "before" in name else 1, "label": name}
        bars = ax.barh([row + i * height for row in range(len(words))], values, 0.9 * height, **style)
        ax.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
    ax.set_yticks([row + 0.4 - height / 2 for row in range(len(words))], list(words))
    ax.yaxis.set_inverted(True)
    ax.margins(x=0.12)
    ax.set(title=title, xlabel="probability")
    if len(probabilities) > 1:
        ax.legend(fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def masked_row(original: Sequence[str], read: Sequence[str], picked: Sequence[bool], mask: str, ax: Axes) -> Axes:
    """Draw a row of tokens in lines of ten: what the model reads, in boxes; above a picked one, what it was.

    Args:
        original, read: the tokens before and after masking.
        picked: which of them are to be predicted: hidden by `mask` in one colour, random in another, kept in a third.
        mask: the token that hides.
        ax: where to draw.
    """
    for i, (was, token) in enumerate(zip(original, read, strict=True)):
        x, y, color = 1.5 * (i % 10), -1.9 * (i // 10), NEUTRAL
        if picked[i]:
            color = NEUTRAL if token == mask else "#3d7a4a" if token == was else "#7b4ab0"
            was = was if any(map(str.isalnum, was)) else f"“{was}”"  # or a full stop would be a speck
            ax.text(x + 0.7, y + 0.95, was, ha="center", va="center", color=color, weight="bold")
        box(ax, x, y, 1.4, 0.65, token, color, filled=picked[i])
        ax.texts[-1].set_fontsize(min(10, 95 / len(token)))
    lines = (len(read) - 1) // 10
    ax.set(xlim=(-0.1, 15.1), ylim=(-1.9 * lines - 0.2, 1.3))
    ax.set_aspect("equal")
    ax.axis("off")
    return ax
