"""`deepnarrow corpus`: what a user types and reads."""

import json
import re
from pathlib import Path

import pytest

from deepnarrow.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["corpus", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    texts = [f"Sentence {n} says that {n} and {n + 1} are neighbours on the line of numbers." for n in range(50)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def folder(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "corpus"
    assert run("build", source, "--tokenizer", "bytes", "--out", out, "--held-out", 0.1) == 0
    capsys.readouterr()
    return out


def test_build_says_what_it_made(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build", source, "--tokenizer", "bytes", "--out", tmp_path / "corpus", "--held-out", 0.1) == 0
    shown = capsys.readouterr().out
    assert re.search(r"documents +4\d +\d", shown)
    assert "held out" in shown
    assert "texts.jsonl: 4" in shown


def test_a_salient_corpus_is_shown_in_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "born.txt"
    source.write_text("Ada Lovelace was born in London in 1815. She met Charles Babbage in June 1833.")
    command = ("build", source, "--tokenizer", "bytes", "--out", tmp_path / "salient", "--salient", "sentinel")
    assert run(*command) == 0
    shown = capsys.readouterr().out
    assert re.search(r"examples +[1-9]", shown)
    assert re.search(r"born\.txt: [1-9]\d* examples", shown)
    assert "rows of" not in shown
    assert "bytes per token" not in shown


def test_build_as_json_and_again(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("build", source, "--tokenizer", "bytes", "--out", tmp_path / "corpus", "--shard-tokens", 100, "--json")
    assert run(*command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["documents"] == 50
    assert first["held_out"] is None
    assert len(first["shards"]) == -(-first["tokens"] // 100)
    assert run(*command) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_show_as_json(folder: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", folder, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["documents"] + shown["held_out"]["documents"] == 50
    assert shown["sources"][0]["file"] == str(source)
    assert shown["vocab"] == 384
    assert shown["dtype"] == "uint16"


def test_sample_shows_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", folder, "--n", 2) == 0
    shown = capsys.readouterr().out
    assert "Up to 64 tokens of inputs and 14 of targets" in shown
    assert shown.count("targets  <extra_id_0>") == 2
    assert shown.count("texts.jsonl") == 2


def test_sample_rebuilds_the_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", folder, "--n", 5, "--seed", 3, "--json") == 0
    for example in json.loads(capsys.readouterr().out):
        _, *spans = re.split(r"<extra_id_\d+>", example["targets"])
        text = example["inputs"]
        for number, span in enumerate(spans):
            text = text.replace(f"<extra_id_{number}>", span)
        assert len(text) == 70
        assert re.search(r"Sentence \d+ says|neighbours on the line", text + text)


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", folder) == 0
    assert "is whole: 1 shard(s)" in capsys.readouterr().out
    shard = folder / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\0\0")
    assert run("verify", folder) == 2
    assert "damaged in shard-00000.bin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "nowhere is not a corpus"),
        (["verify", "nowhere"], "nowhere is not a corpus"),
        (["build", "nowhere.txt", "--tokenizer", "bytes", "--out", "x"], "no such file or folder: nowhere.txt"),
        (["build", "builtin:python", "--tokenizer", "nowhere", "--out", "x"], "no tokenizer at nowhere"),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_objective(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sample", folder, "--objective", "spam") == 2
    assert "did you mean span?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "show", "verify", "sample"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"Example:\n    deepnarrow corpus {command}" in capsys.readouterr().out
