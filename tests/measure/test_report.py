"""The report as a file, and as a browser shows it."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from deepnarrow.errors import UserError
from deepnarrow.measure.ledger import Record, append, read
from deepnarrow.measure.report import report

Records = Callable[..., list[Record]]
VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "circle"}


class Page(HTMLParser):
    """The page's elements, with every attribute, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def drawn(write_invented_study: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study, drawn once for the tests that only look at it."""
    return report(write_invented_study(tmp_path_factory.mktemp("drawn") / "study")).page


@pytest.fixture(scope="module")
def text(drawn: Path) -> str:
    return drawn.read_text("utf-8")


def test_the_page_is_whole_and_needs_no_network(text: str) -> None:
    page = Page(text)
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1, ids.most_common(3)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert not str(attributes.get(name, "")).startswith(("http", "//")), attributes
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_the_page_can_be_heard_and_walked_by_keyboard(text: str) -> None:
    page = Page(text)
    assert page.all("html")[0]["lang"] == "en"
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") == "true" or (drawing["role"] == "img" and drawing["aria-label"])
    labels = [drawing["aria-label"] for drawing in page.all("svg") if drawing.get("role") == "img"]
    assert any("On the frontier, cheapest first" in str(label) for label in labels)
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    scroll = next(one for one in page.all("div") if one.get("class") == "scroll")
    assert (scroll["tabindex"], scroll["role"]) == ("0", "region")
    labelled = {value for _, a in page.elements for value in str(a.get("aria-labelledby") or "").split()}
    assert labelled <= {a.get("id") for _, a in page.elements}
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_the_page_says_what_to_use_and_where_it_comes_from(text: str, drawn: Path) -> None:
    assert '<p class="name">mini-nl8-v4096</p>' in text
    assert "the intervals overlap; more items or seeds would be needed" in text, "of the second task"
    assert "Invented CPU at 2 GHz, 2 cores, 16.0 GiB, Linux x86_64" in text
    assert "0123456789ab" in text
    assert "torch 2.13.0" in text
    assert "deepnarrow study invented.toml --out runs/invented" in text
    assert "128 tokens in, 32 out, float32, cpu, 2 threads" in text
    for shape in {one.shape for one in read(drawn.parent / "ledger.jsonl")}:
        assert f'<th scope="row" data-value="{shape}">' in text


def test_plots_are_files_too(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    done = report(study, out=out, metrics=["sst2"])
    names = {path.name for path in done.plots}
    assert names == {
        f"{name}.{kind}"
        for kind in ("png", "svg")
        for name in (
            "sst2-accuracy-validation-milliseconds", "sst2-accuracy-validation-parameters",
            "sst2-accuracy-validation-flops", "loss-pretrain", "loss-sst2",
        )
    }  # fmt: skip
    assert all(path.stat().st_size > 1000 and path.parent == out / "plots" for path in done.plots)
    assert list(done.recommendations) == ["sst2:accuracy"]


def test_an_unlearned_task_is_called_so(tmp_path: Path, records: Records) -> None:
    low = [replace(one, value=51.0, low=48.0, high=54.0) for one in records() if one.metric == "accuracy"]
    append(tmp_path / "ledger.jsonl", low)
    text = report(tmp_path).page.read_text("utf-8")
    assert "No shape is shown to have learned this task: majority label" in text


def test_one_seed_is_called_one_seed(tmp_path: Path, records: Records) -> None:
    append(tmp_path / "ledger.jsonl", records(seeds=1))
    text = report(tmp_path, metrics=["squad:exact_match"]).page.read_text("utf-8")
    assert "what another seed would have given is not known" in text
    assert "the evidence settles it" not in text


def test_one_shape_without_timings_or_logs_is_a_report(tmp_path: Path, records: Records) -> None:
    one = [item for item in records(shapes=("tiny",)) if item.kind == "score"]
    append(tmp_path / "scores.jsonl", one)
    text = report(tmp_path / "scores.jsonl").page.read_text("utf-8")
    assert "is the only shape measured" in text
    assert "not measured" in text
    assert "How they learned" not in text


def test_names_from_outside_are_escaped(tmp_path: Path, records: Records) -> None:
    bad = "<script>alert(1)</script>"
    append(tmp_path / "ledger.jsonl", [replace(one, task=bad, commit=bad) for one in records() if one.kind == "score"])
    (tmp_path / "study.json").write_text(json.dumps({"name": bad, "command": bad}))
    text = report(tmp_path).page.read_text("utf-8")
    assert "<script>alert" not in text
    Page(text)


def test_broken_logs_do_not_stop_a_report(study: Path) -> None:
    for path in study.rglob("log.jsonl"):
        path.write_text("not json\n{}\n")
    for path in list(study.rglob("run.json"))[:3]:
        path.write_text("[1]")
    assert "How they learned" not in report(study, metrics=["sst2"]).page.read_text("utf-8")


def test_mistakes_teach(tmp_path: Path, study: Path) -> None:
    with pytest.raises(UserError, match=r"no ledger\.jsonl in .*; give the folder of a study"):
        report(tmp_path)
    with pytest.raises(UserError, match="unknown cost 'time'"):
        report(study, cost="time")
    scores = [one for one in read(study / "ledger.jsonl") if one.kind == "score"]
    append(tmp_path / "scores.jsonl", scores)
    with pytest.raises(UserError, match="choose another --cost"):
        report(tmp_path / "scores.jsonl", cost="milliseconds")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--hide-scrollbars",
)  # fmt: skip


def browse(page: Path, profile: Path, *more: str) -> str:
    assert CHROMIUM is not None
    environment = {**os.environ, "HOME": str(profile.parent)}
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *more, page.resolve().as_uri()],
        capture_output=True, text=True, timeout=120, env=environment, check=True,
    )  # fmt: skip
    return done.stdout


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed here")

PROBE = """
<script>
addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.value);
  const press = (text) => [...table.tHead.querySelectorAll("button")]
    .find((button) => button.textContent === text).click();
  const found = { first: names() };
  press("ms"); found.ms = names();
  press("ms"); found.back = names();
  press("squad exact match"); found.score = names();
  found.said = document.getElementById("sorted").textContent;
  found.sorted = table.querySelectorAll("[aria-sort]").length;
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  found.shown = [...document.querySelectorAll("figure svg")]
    .filter((drawing) => drawing.getBoundingClientRect().width > 0).length;
  found.figures = document.querySelectorAll("figure").length;
  const out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_sorts_the_table_and_nothing_sticks_out(text: str, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    page.write_text(text.replace("</body>", PROBE + "</body>"))
    dom = browse(page, tmp_path / "profile", f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom")
    match = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert match
    found = json.loads(match[1])
    assert found["first"][0] == "tiny-nl2-v4096"
    assert found["ms"][-1] == found["back"][-1] == "small-v4096", "what was not measured stays last"
    assert found["ms"][:-1] == found["back"][:-1][::-1]
    assert found["score"][0] == "mini-nl8-v4096", "best first"
    assert found["said"] == "Sorted by squad exact match, descending."
    assert found["sorted"] == 1
    assert found["overflow"] <= 0
    assert found["shown"] == found["figures"], "each figure shows one of its two drawings"


@needs_browser
def test_a_browser_asks_the_network_for_nothing(drawn: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    browse(drawn, tmp_path / "profile", f"--log-net-log={log}", "--virtual-time-budget=2000", "--dump-dom")
    urls = set(re.findall(r'"url":\s*"(https?://[^"]+)"', log.read_text("utf-8", errors="replace")))
    assert not {url for url in urls if "google" not in url}, "only the browser's own housekeeping may be in the log"
