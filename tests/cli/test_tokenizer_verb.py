"""`deepnarrow tokenizer`, as a program and as a person meet it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from deepnarrow.cli import main
from deepnarrow.text.tokenizer import load

SPACE = "\u2581"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the verb; give its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["tokenizer", *arguments])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and the dog does not mind the fox.\n" * 20)
    return path


def test_train_encode_decode_show(run: Any, text: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "vocabulary")
    code, printed, _ = run("train", str(text), "--vocab", "136", "--out", out)
    assert code == 0
    assert "136 ids; a model gives it 256 rows" in printed
    assert "100: 135 down to 36" in printed

    code, printed, errors = run("encode", out, "the fox <extra_id_0> dog")
    ids = [int(word) for word in printed.split()]
    assert (code, errors) == (0, "")
    assert ids == load(out).encode("the fox <extra_id_0> dog")
    assert 135 in ids

    assert run("encode", out, "the <extra_id_0>", "--pieces")[1].split()[-1] == "<extra_id_0>"
    answer = json.loads(run("encode", out, "the", "--json")[1])
    assert "".join(answer["pieces"]) == SPACE + "the"
    assert answer["ids"] == load(out).encode("the")
    assert answer["fingerprint"] == load(out).fingerprint

    assert run("decode", out, *map(str, ids))[1] == "the fox<extra_id_0> dog\n"
    assert run("decode", out, str(ids))[1] == "the fox<extra_id_0> dog\n"
    assert json.loads(run("decode", out, "--json", str([0, *ids, 1, 0]))[1]) == {"text": "the fox<extra_id_0> dog"}


def test_training_tells_a_program_everything(run: Any, text: Path, tmp_path: Path) -> None:
    code, printed, _ = run(
        "train", str(text), str(text), "--vocab", "56", "--sentinels", "20", "--out", str(tmp_path / "v"), "--json"
    )
    facts = json.loads(printed)
    assert code == 0
    assert (facts["size"], facts["rows"], facts["sentinels"]) == (56, 128, 20)
    assert (facts["first_sentinel"], facts["last_sentinel"]) == (55, 36)
    assert (facts["pad"], facts["eos"], facts["unk"]) == (0, 1, 2)
    assert facts["fingerprint"] == load(tmp_path / "v").fingerprint


def test_bytes_and_standard_input(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(run("show", "bytes", "--json")[1])["size"] == 384
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert run("encode", "bytes", "-")[1] == "107 108 13\n"
    assert run("decode", "bytes", "107", "108")[1] == "hi\n"
    assert "125: 383 down to 259" in run("show", "bytes")[1]


def test_the_t5_tokenizer(run: Any, shared: Path) -> None:
    folder = shared / "data" / "t5_tokenizer"
    for name in (folder, folder / "spiece.model", folder / "tokenizer.json"):
        assert run("encode", str(name), "Thank you <extra_id_0> me")[1] == "1562 25 32099 140\n"
        assert run("decode", str(name), "1562 25 32099 140 1 32127")[1] == "Thank you<extra_id_0> me\n"
    shown = run("show", str(folder))[1]
    assert "32,100 ids; a model gives it 32,128 rows" in shown
    assert "100: 32099 down to 32000" in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show", "nowhere"], "no tokenizer at nowhere"),
        (["encode", "nowhere", "text"], "no tokenizer at nowhere"),
        (["decode", "bytes", "3", "x"], "ids are whole numbers"),
        (["train", "absent.txt", "--vocab", "200", "--out", "v"], "no such file or folder: absent.txt"),
        (["train", "TEXT", "--vocab", "9000", "--out", "v"], "the largest it can fill is"),
        (["train", "TEXT", "--vocab", "100", "--out", "v"], "ask for more than 103"),
        (["train", "TEXT", "--vocab", "200", "--out", "."], "holds other files (text.txt)"),
    ],
)
def test_mistakes(arguments: list[str], complaint: str, run: Any, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(text.parent)
    code, printed, errors = run(*(str(text) if word == "TEXT" else word for word in arguments))
    assert (code, printed) == (2, "")
    assert complaint in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (text.parent / "v").exists()


@pytest.mark.parametrize("command", [[], ["train"], ["encode"], ["decode"], ["show"]])
def test_help_has_an_example(command: list[str], run: Any) -> None:
    code, printed, _ = run(*command, "--help")
    assert code == 0
    assert "  Example:\n    deepnarrow tokenizer" in printed
