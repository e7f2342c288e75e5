"""What docs/decoding.md shows runs as it stands."""

import re
from pathlib import Path

import pytest

from deepnarrow.model.folder import save_model
from deepnarrow.text.byte_tokenizer import ByteTokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "decoding.md"


def test_the_examples_run(
    untrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(untrained("tiny-nl1-dm32-ff64-kv8-v384"), ByteTokenizer(), tmp_path / "runs" / "model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}", printed[2])
    assert printed[3].split()[0] in ("positive", "negative")
    assert printed[5].startswith("2 2 ")
