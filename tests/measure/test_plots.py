"""Plots: readable colours, names that do not cover each other, drawings that a page can hold."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations

import numpy as np
import pytest

from deepnarrow.measure.frontier import Point
from deepnarrow.measure.labels import short_names
from deepnarrow.measure.palette import DARK, LIGHT, MARKS, TEXT, contrast
from deepnarrow.measure.plots import Axis, Curve, Size, frontier_plot, inline_svg, loss_plot, png, svg

COST = Axis(label="parameters", show=lambda value: f"{value:g}")
QUALITY = Axis(label="exact match", show=lambda value: f"{value:g}")
SIZES = (Size(1058, 440), Size(356, 350))


def cloud(n: int, seed: int) -> list[Point]:
    draw = np.random.default_rng(seed)
    costs, scores = 10 ** draw.uniform(6, 8, n), draw.uniform(20, 60, n)
    return [
        Point(f"tiny-el{at}-dl2", float(cost), float(score), float(score) - 2, float(score) + 2)
        for at, (cost, score) in enumerate(zip(costs, scores, strict=True))
    ]


def drawn(points: list[Point], size: Size) -> "object":
    names = short_names([point.name for point in points])
    return frontier_plot(points, cost=COST, quality=QUALITY, pick=points[0].name, size=size, names=names)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_read(theme: dict[str, str]) -> None:
    for paper in ("paper", "card"):
        for name in TEXT:
            assert contrast(theme[name], theme[paper]) >= 4.5, name
        for name in MARKS:
            assert contrast(theme[name], theme[paper]) >= 3, name
    assert contrast(theme["soft"], theme["glow"]) >= 4.5, "names of dominated shapes lie on the glow"
    assert contrast(theme["ink"], theme["glow"]) >= 4.5


def test_themes_have_the_same_names_and_light_colours_differ() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT), "a page finds a variable by its light colour"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_names_do_not_cover_each_other(size: Size, seed: int) -> None:
    figure = drawn(cloud(10, seed), size)
    (axes,) = figure.axes  # type: ignore[attr-defined]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = [text for text in axes.texts if str(text.get_gid()).startswith("name:")]
    assert len(texts) >= 8
    assert any(text.get_gid() == "name:tiny-el0-dl2" for text in texts), "the recommended shape is always named"
    for one, other in combinations([text.get_window_extent(renderer) for text in texts], 2):
        assert not one.overlaps(other)


def test_the_page_drawing_has_variables_for_colours_and_letters_as_text() -> None:
    text = inline_svg(
        drawn(cloud(6, 1), SIZES[0]),
        prefix="p1", label='a "plot" <here>', titles={"tiny-el0-dl2": "tip & more"}, klass="roomy",
    )  # fmt: skip
    ElementTree.fromstring(text)
    assert not set(re.findall(r"#[0-9a-f]{6}\b", text)) - {"#000000", "#ffffff"}, (
        "a fixed colour would not follow a theme"
    )
    assert 'aria-label="a &quot;plot&quot; &lt;here&gt;"' in text
    assert "<title>tip &amp; more</title>" in text
    assert "tiny-el3" in text
    assert not re.search(r'(href|src)="http', text)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("p1-") for name in ids)
    used = set(re.findall(r'(?:url\(#|xlink:href="#)([^)"]+)', text))
    assert used <= set(ids)


def test_files_are_whole_and_the_same_every_time() -> None:
    one, other = (drawn(cloud(6, 1), SIZES[0]) for _ in range(2))
    assert svg(one) == svg(other)
    assert png(one) == png(other)
    assert png(one).startswith(b"\x89PNG")
    ElementTree.fromstring(svg(one))


def test_names_do_not_cover_the_baselines() -> None:
    points = [Point(f"tiny-el{at}", 1e6 * (at + 1), 50.0, 48.0, 52.0) for at in range(4)]
    figure = frontier_plot(
        points, cost=COST, quality=QUALITY, pick="tiny-el0", size=SIZES[1],
        names=short_names([point.name for point in points]), baseline=("commonest label", 50.0),
    )  # fmt: skip
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    (base,) = [text for text in axes.texts if text.get_gid() == "baseline name"]
    named = [text for text in axes.texts if str(text.get_gid()).startswith("name:")]
    assert named
    assert not any(text.get_window_extent(renderer).overlaps(base.get_window_extent(renderer)) for text in named)


@pytest.mark.parametrize(
    "points",
    [
        [Point("tiny", 10.0, 50.0)],
        [Point("tiny", 10.0, 50.0), Point("mini", 10.0, 50.0)],
        [Point("tiny", 1e6, 0.0, 0.0, 0.0), Point("mini", 1e9, 100.0, 99.0, 100.0)],
    ],
    ids=["one", "same", "extremes"],
)
def test_degenerate_planes_are_drawn(points: list[Point]) -> None:
    assert png(drawn(points, SIZES[1])).startswith(b"\x89PNG")


def test_loss_curves_are_named_once_and_apart() -> None:
    steps = list(range(0, 1000, 10))
    curves = [
        Curve(name=f"tiny-el{at % 10}", steps=steps, losses=[4 + at / 100 + 4 * np.exp(-step / 100) for step in steps])
        for at in range(12)
    ]
    figure = loss_plot(curves, label="loss", size=SIZES[1], colours={f"tiny-el{at}": at for at in range(10)})
    (axes,) = figure.axes
    names = [text for text in axes.texts if str(text.get_gid()).startswith("name:")]
    assert len(names) == 10
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for one, other in combinations([text.get_window_extent(renderer) for text in names], 2):
        assert not one.overlaps(other)
    assert axes.get_ylim()[1] < 6, "the first fall does not flatten the rest"
