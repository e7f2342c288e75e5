"""`deepnarrow export`: a run as a folder for transformers."""

import json
from pathlib import Path

import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.errors import UserError
from deepnarrow.files import write_json
from deepnarrow.hub.export import export
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import load

SHAPE = parse("tiny-nl2-dm32-ff64-kv8-nh4-kh2-v400-shkv")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint, which holds training state beside the model."""
    model, folder = T5(SHAPE), tmp_path / "run"
    initialise(model, 0)
    save_model(model, load("bytes"), folder / "checkpoints/step-00000010")
    (folder / "checkpoints/step-00000010/optimizer.safetensors").write_bytes(b"")
    write_json(folder / "run.json", {"format": 1})
    write_json(folder / "checkpoints.json", {"last": "step-00000010", "best": None})
    return folder


def test_transformers_computes_the_same_from_an_exported_run(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    written = export(run, tmp_path / "out")
    assert written.shape == SHAPE
    assert written.has_tokenizer
    assert "optimizer.safetensors" not in written.files
    assert written.files["model.safetensors"] == (tmp_path / "out/model.safetensors").stat().st_size
    model = open_model(run).model
    assert written.parameters == sum(weight.numel() for weight in model.parameters())
    reference = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    inputs, targets = torch.randint(2, 400, (2, 9)), torch.randint(2, 400, (2, 5))
    with torch.no_grad():
        found = reference(input_ids=inputs, labels=targets).logits
        torch.testing.assert_close(found, model(inputs, targets), rtol=1e-4, atol=1e-4)


def test_bfloat16_halves_the_file(run: Path, tmp_path: Path) -> None:
    whole, half = export(run, tmp_path / "whole"), export(run, tmp_path / "half", dtype="bfloat16")
    assert half.dtype == "bfloat16"
    assert half.files["model.safetensors"] == pytest.approx(whole.files["model.safetensors"] / 2, rel=0.05)
    assert open_model(tmp_path / "half").shape == SHAPE


def test_an_exported_folder_exports_again_over_itself(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out")
    assert export(tmp_path / "out", tmp_path / "out", dtype="bfloat16").shape == SHAPE


def test_wrong_wishes(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'onnx'; choose from: hf"):
        export(run, tmp_path / "out", to="onnx")
    with pytest.raises(UserError, match="65,504"):
        export(run, tmp_path / "out", dtype="float16")
    with pytest.raises(UserError, match="holds more than a model"):
        export(run, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_verb(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), "--out", str(out), "--json"])
    assert not ended.value.code
    written = json.loads(capsys.readouterr().out)
    assert written["shape"] == str(SHAPE)
    assert set(written["files"]) >= {"config.json", "model.safetensors"}
    with pytest.raises(SystemExit):
        main(["export", str(run), "--out", str(out), "--dtype", "bfloat16"])
    assert "parameters, bfloat16" in capsys.readouterr().out


def test_the_verb_refuses_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "absent"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [f"deepnarrow: no folder {tmp_path / 'absent'}"]
