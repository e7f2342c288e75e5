"""The plots of a report: quality against a cost with its frontier, and loss curves.

matplotlib without pyplot, so nothing global is touched. One point of a figure is one CSS pixel of the page: a plot is
drawn for the width it is shown at, not shrunk, and text stays readable on a telephone.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from deepnarrow.measure.frontier import Point, frontier
from deepnarrow.measure.labels import Box, Spot, place, short_names, spread
from deepnarrow.measure.palette import LIGHT, SERIES

POINTS_PER_INCH = 72
LOG_FROM = 6.0  # the ratio of largest to smallest cost from which a logarithmic axis shows more
TEXT = 12.0
SMALL = 11.0
TOP = 44  # room for the upright axis' label
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT,
    "axes.unicode_minus": False,
    "svg.hashsalt": "deepnarrow",  # the same plot is the same file
}


class Size(NamedTuple):
    """Width and height in CSS pixels."""

    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis measures and how its numbers are written."""

    label: str
    show: Callable[[float], str]


def frontier_plot(
    points: Sequence[Point],
    *,
    cost: Axis,
    quality: Axis,
    pick: str | None,
    size: Size,
    names: Mapping[str, str],
    baseline: tuple[str, float] | None = None,
) -> Figure:
    """Quality over cost: the frontier drawn and named, dominated shapes greyed, `pick` marked.

    Intervals are bars. The frontier is a staircase: the best that a budget buys. Names that would cover each other are
    left out; `names` gives each point's short name. `baseline`, a name and a score, is a dashed line.
    """
    with mpl.rc_context(STYLE):
        figure, axes = blank(size, top=TOP, left=52)
        best = frontier(points)
        kept = {point.name for point in best}
        _scales(axes, points, cost, baseline)
        taken = _baseline(axes, baseline)
        _staircase(axes, best)
        for point in sorted(points, key=lambda one: one.name in kept):
            _mark(axes, point, on=point.name in kept, picked=point.name == pick)
        _axis_labels(figure, axes, cost, quality, size)
        _name_points(figure, axes, points, kept, pick, names, taken)
    return figure


def blank(size: Size, *, top: float, left: float, right: float = 14, bottom: float = 46) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(size.width / POINTS_PER_INCH, size.height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
    FigureCanvasAgg(figure)
    figure.patch.set_facecolor(LIGHT["card"])
    width, height = size
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["faint"])
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelsize=SMALL, labelcolor=LIGHT["soft"], pad=6)
    return figure, axes


def _scales(axes: Axes, points: Sequence[Point], cost: Axis, baseline: tuple[str, float] | None) -> None:
    costs = [point.cost for point in points]
    low, high = min(costs), max(costs)
    if low > 0 and high / low >= LOG_FROM:
        axes.set_xscale("log")
        room = (high / low) ** 0.09
        axes.set_xlim(low / room, high * room)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1, 3), numticks=20))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = (high - low) * 0.12 or abs(high) * 0.12 or 1.0
        axes.set_xlim(low - room if low - room > 0 or low <= 0 else 0, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: cost.show(value)))
    lows = [point.quality if point.low is None else point.low for point in points]
    highs = [point.quality if point.high is None else point.high for point in points]
    if baseline is not None:
        lows, highs = [*lows, baseline[1]], [*highs, baseline[1]]
    room = (max(highs) - min(lows)) * 0.08 or 1.0
    axes.set_ylim(min(lows) - room, max(highs) + room)
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _baseline(axes: Axes, baseline: tuple[str, float] | None) -> list[Artist]:
    """Draw the line and its name; the name is what later names must not cover."""
    if baseline is None:
        return []
    name, value = baseline
    axes.axhline(value, color=LIGHT["soft"], linewidth=1.2, linestyle=(0, (4, 3)), zorder=1, gid="baseline")
    text = axes.annotate(
        name, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
        ha="right", va="bottom", fontsize=SMALL, color=LIGHT["soft"], zorder=1.2, gid="baseline name",
    )  # fmt: skip
    return [text]


def _staircase(axes: Axes, best: Sequence[Point]) -> None:
    (_, right), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    xs = [*(point.cost for point in best), right]
    ys = [*(point.quality for point in best), best[-1].quality]
    axes.fill_between(xs, ys, bottom, step="post", color=LIGHT["glow"], linewidth=0, zorder=0.5)
    axes.step(xs, ys, where="post", color=LIGHT["accent"], linewidth=1.6, zorder=2, gid="frontier")


def _mark(axes: Axes, point: Point, *, on: bool, picked: bool) -> None:
    colour = LIGHT["pick"] if picked else LIGHT["accent"] if on else LIGHT["faint"]
    layer = 5 if picked else 4 if on else 3
    if point.low is not None and point.high is not None:
        axes.plot(
            [point.cost, point.cost], [point.low, point.high],
            color=colour, linewidth=2.2, alpha=0.55, solid_capstyle="round", zorder=layer,
        )  # fmt: skip
    axes.plot(
        [point.cost], [point.quality], "o", gid=f"mark:{point.name}", zorder=layer + 0.5, color=colour,
        markersize=11.5 if picked else 10 if on else 8.5, markeredgecolor=LIGHT["card"], markeredgewidth=1.5,
    )  # fmt: skip
    if picked:
        axes.plot([point.cost], [point.quality], "o", markersize=18, markerfacecolor="none",
                  markeredgecolor=colour, markeredgewidth=1.5, zorder=layer)  # fmt: skip


def _axis_labels(figure: Figure, axes: Axes, cost: Axis, quality: Axis, size: Size) -> None:
    """The label of the upright axis lies flat above it, where it is read first."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quality.show(value)))
    figure.text(12 / size.width, 1 - 12 / size.height, quality.label, va="top", fontsize=TEXT, color=LIGHT["ink"])
    axes.set_xlabel(cost.label, fontsize=TEXT, color=LIGHT["ink"], labelpad=6, loc="right")


def _name_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[Point],
    kept: set[str],
    pick: str | None,
    names: Mapping[str, str],
    taken: Sequence[Artist],
) -> None:
    """The recommended shape is named first, then the frontier, then the rest while there is room."""
    order = sorted(points, key=lambda one: (one.name != pick, one.name not in kept, one.cost))
    texts = [
        axes.text(
            0, 0, names[one.name], fontsize=TEXT if one.name in kept else SMALL, zorder=9, ha="left", va="baseline",
            fontweight="bold" if one.name == pick else "normal",
            color=LIGHT["pick"] if one.name == pick else LIGHT["ink"] if one.name in kept else LIGHT["soft"],
            transform=None,
        )
        for one in order
    ]  # fmt: skip
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in texts]
    at = [tuple(axes.transData.transform((one.cost, one.quality))) for one in order]
    frame = axes.get_window_extent(renderer)
    spots = place(
        at,
        [(box.width + 2, box.height) for box in boxes],
        frame=Box(frame.x0 + 2, frame.y0 + 2, frame.x1 + 10, frame.y1 + 6),
        hard=[*(Box(x - 7, y - 7, x + 7, y + 7) for x, y in at), *(_extent(one, renderer) for one in taken)],
        soft=[*_bars(axes, points), *_stairs(axes, frontier(points))],
    )
    for one, text, box, spot, (x, y) in zip(order, texts, boxes, spots, at, strict=True):
        if spot is None:
            text.remove()
            continue
        text.set_position((spot.box.left + 1, spot.box.bottom - box.y0))
        text.set_gid(f"name:{one.name}")
        if spot.tied:
            _tie(axes, spot, x, y)


def _extent(artist: Artist, renderer: Any) -> Box:
    box = artist.get_window_extent(renderer)
    return Box(box.x0, box.y0, box.x1, box.y1)


def _tie(axes: Axes, spot: Spot, x: float, y: float) -> None:
    """A thin line from a name to its point."""
    box = spot.box
    near = (min(max(x, box.left), box.right), min(max(y, box.bottom), box.top))
    (x0, y0), (x1, y1) = axes.transData.inverted().transform([near, (x, y)])
    axes.plot([x0, x1], [y0, y1], color=LIGHT["faint"], linewidth=0.8, zorder=1.5, scalex=False, scaley=False)


def _bars(axes: Axes, points: Sequence[Point]) -> list[Box]:
    boxes = []
    for point in points:
        if point.low is not None and point.high is not None:
            (x, bottom), (_, top) = axes.transData.transform([(point.cost, point.low), (point.cost, point.high)])
            boxes.append(Box(x - 3, bottom, x + 3, top))
    return boxes


def _stairs(axes: Axes, best: Sequence[Point]) -> list[Box]:
    """The staircase as thin boxes: flat to the next point, then upright."""
    boxes = []
    right = axes.get_xlim()[1]
    for here, there in zip(best, [*best[1:], None], strict=True):
        end = (right, here.quality) if there is None else (there.cost, there.quality)
        (x0, y0), (x1, y1) = axes.transData.transform([(here.cost, here.quality), end])
        boxes += [Box(x0, y0 - 2, x1, y0 + 2), Box(x1 - 2, y0, x1 + 2, y1)]
    return boxes


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Losses of one run by step."""

    name: str
    steps: Sequence[float]
    losses: Sequence[float]


def loss_plot(curves: Sequence[Curve], *, label: str, size: Size, colours: Mapping[str, int]) -> Figure:
    """Loss over steps, each line named at its end. `colours` gives each name its place in the palette, so that a shape
    keeps its colour from plot to plot; after eight the palette begins again, dashed."""
    with mpl.rc_context(STYLE):
        short = short_names([curve.name for curve in curves])
        room = max(len(name) for name in short.values()) * SMALL * 0.66 + 20
        beside = room < size.width * 0.42  # else the names stand in the corner that falling curves leave free
        figure, axes = blank(size, top=TOP, left=52, right=room if beside else 14)
        named: set[str] = set()
        ends: list[tuple[float, float, str, str]] = []
        for curve in curves:
            place_in = colours[curve.name]
            colour = LIGHT[f"series{place_in % SERIES}"]
            line = "-" if place_in < SERIES else (0, (4, 2))
            axes.plot(curve.steps, curve.losses, color=colour, linewidth=1.6, linestyle=line, alpha=0.9,
                      gid=f"curve:{curve.name}")  # fmt: skip
            if curve.name not in named:  # further seeds of a shape share its colour and its name
                named.add(curve.name)
                ends.append((curve.steps[-1], curve.losses[-1], short[curve.name], colour))
        last = max(step for step, *_ in ends)
        axes.set_xlim(0, last or 1)
        axes.set_ylim(*_loss_limits(curves))
        axes.xaxis.set_major_locator(MaxNLocator(5 if size.width > 400 else 3, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        quality = Axis(label=label, show=lambda value: f"{value:g}")
        _axis_labels(figure, axes, Axis(label="steps", show=str), quality, size)
        (_name_ends if beside else _name_corner)(axes, ends)
    return figure


def _loss_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """From the lowest loss to the highest of what follows the first fifth, whose fall would flatten all the rest."""
    lowest = min(min(curve.losses) for curve in curves)
    settled = max(max(curve.losses[len(curve.losses) // 5 :]) for curve in curves)
    room = (settled - lowest) * 0.05 or 0.1
    return lowest - room, settled + room


def _name_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside the lines' ends, moved apart where they would touch, and tied to them by a thin line."""
    to_pixels, from_pixels = axes.transData, axes.transData.inverted()
    low, high = (to_pixels.transform((0, y))[1] for y in axes.get_ylim())
    wanted = [to_pixels.transform((x, y))[1] for x, y, *_ in ends]
    for (x, y, name, colour), at in zip(ends, spread(wanted, gap=SMALL + 4, low=low, high=high), strict=True):
        pixel_x, pixel_y = to_pixels.transform((x, y))
        text_x = max(pixel_x, to_pixels.transform((axes.get_xlim()[1], 0))[0]) + 12
        end_x, end_y = from_pixels.transform((text_x - 3, at))
        start_x, _ = from_pixels.transform((pixel_x, pixel_y))
        axes.plot([start_x, end_x], [y, end_y], color=colour, linewidth=0.8, alpha=0.6, clip_on=False,
                  scalex=False, scaley=False)  # fmt: skip
        label_x, label_y = from_pixels.transform((text_x, at))
        axes.text(label_x, label_y, name, color=colour, fontsize=SMALL, va="center", gid=f"name:{name}")


def _name_corner(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names one below the other in the upper right, in the order of the lines' ends."""
    for row, (_, _, name, colour) in enumerate(sorted(ends, key=lambda end: -end[1])):
        axes.annotate(
            name, (1, 1), xycoords="axes fraction", xytext=(-2, -row * (SMALL + 4)), textcoords="offset points",
            ha="right", va="top", fontsize=SMALL, color=colour, gid=f"name:{name}",
        )  # fmt: skip


# Files and page


def png(figure: Figure, *, scale: float = 2.0) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=POINTS_PER_INCH * scale, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """A standalone drawing, letters as outlines, so that it looks the same everywhere."""
    return _svg(figure, fonttype="path")


def _svg(figure: Figure, *, fonttype: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.fonttype": fonttype}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, *, prefix: str, label: str, titles: Mapping[str, str], klass: str) -> str:
    """The drawing as an element of the page: colours as variables, letters as text, ids made unique by `prefix`.

    `label` is read to those who do not see the plot; `titles` is shown when the pointer rests on a mark.
    """
    text = _svg(figure, fonttype="none")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    width, height = (round(side * POINTS_PER_INCH) for side in figure.get_size_inches())
    head = (
        f'<svg class="{klass}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    text = head + text[text.index(">") + 1 :]
    for name, title in titles.items():
        mark = f'<g id="mark:{escape(name)}">'
        text = text.replace(mark, f"{mark}<title>{escape(title)}</title>", 1)
    text = re.sub(r' id="([^"]*)"', rf' id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'xlink:href="#([^"]*)"', rf'xlink:href="#{prefix}-\1"', text)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--sans)", text)
    return re.sub(r"\n\s*", "\n", text).strip()
