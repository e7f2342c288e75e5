"""The demo: its study is what it says, and its verb goes the whole way (here with shapes of some thousand weights)."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from deepnarrow.cli import demo
from deepnarrow.measure.study_spec import BenchPlan, Study
from deepnarrow.shapes import parse
from deepnarrow.shapes.counts import parameters
from deepnarrow.text import builtin


def test_the_demos_shapes_are_about_equal_and_deeper_and_deeper() -> None:
    study = demo.demo_study()
    vocab = study.corpus.vocab
    assert vocab is not None
    shapes = [replace(parse(shape), vocab=vocab) for shape in study.shapes]
    sizes = [parameters(shape).total for shape in shapes]
    assert len(shapes) >= 3
    assert study.corpus.sources == ("builtin:python-train",)
    assert max(sizes) / min(sizes) < 1.06
    assert [shape.encoder_layers for shape in shapes] == sorted({shape.encoder_layers for shape in shapes})
    assert [shape.d_model for shape in shapes] == sorted({shape.d_model for shape in shapes}, reverse=True)


def test_the_demo_goes_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prose = tmp_path / "prose.txt"  # a twentieth of the demo's: of all of it a small vocabulary takes long
    prose.write_text("\n\n".join(text for text, _ in islice(builtin.training_documents(), 0, None, 20)), "utf-8")

    def small() -> Study:
        study = whole()
        short = {"steps": 2, "batch": 2, "input_length": 32}
        return replace(
            study,
            shapes=("tiny-dm16-ff32-nh1-kv16-nl1", "tiny-dm16-ff16-nh1-kv16-nl2"),
            corpus=replace(study.corpus, sources=(str(prose),), vocab=600),
            pretrain=short,
            tasks=tuple(replace(task, items=6, training=short) for task in study.tasks),
            bench=BenchPlan(input_length=8, target_length=4, repeats=1),
        )

    whole = demo.demo_study
    monkeypatch.setattr(demo, "demo_study", small)
    out = tmp_path / "demo"
    demo.demo(out=out, device="cpu")
    printed = capsys.readouterr().out
    assert "stdlib_topic:accuracy:" in printed
    assert "it answered" in printed
    assert "tiny-dm16-ff32-kv16-nh1-nl1-v640" in printed
    assert (out / "report.html").is_file()
    assert len(list((out / "cards").glob("*.md"))) == 6
    before = (out / "ledger.jsonl").read_bytes()
    demo.demo(out=out, device="cpu")
    assert (out / "ledger.jsonl").read_bytes() == before
