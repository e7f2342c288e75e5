"""`deepnarrow export`: a run as a folder for transformers."""

import json
from pathlib import Path

import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.errors import UserError
from deepnarrow.files import write_json
from deepnarrow.hub.export import export
from deepnarrow.model.adapters import Base, save_lora, save_prompt
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.lora import Lora, adapted, attach
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


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A run of LoRA over a plain model beside it."""
    model = T5(SHAPE)
    initialise(model, 0)
    save_model(model, load("bytes"), tmp_path / "base")
    settings, base = Lora(rank=2), Base.of(model, str(tmp_path / "base"))
    for number, one in enumerate(adapted(attach(model, settings)).values()):
        torch.nn.init.normal_(one.up.weight, std=0.3, generator=torch.Generator().manual_seed(number))
    folder = tmp_path / "lora"
    save_lora(model, settings, base, folder / "checkpoints/step-00000010")
    write_json(folder / "run.json", {"format": 1})
    write_json(folder / "checkpoints.json", {"last": "step-00000010", "best": None})
    return folder


def test_lora_is_written_merged_or_as_it_is(lora: Path, tmp_path: Path) -> None:
    ids = torch.tensor([[5, 6, 1]]), torch.tensor([[7, 1]])
    wanted = open_model(lora).model(*ids)
    export(lora, tmp_path / "merged")
    merged = open_model(tmp_path / "merged")
    assert merged.adapter is None
    assert torch.equal(merged.model(*ids), wanted)
    written = export(lora, tmp_path / "small", to="peft")
    assert set(written.files) == {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    assert torch.equal(open_model(tmp_path / "small").model(*ids), wanted)
    export(lora, tmp_path / "small", to="peft")  # replaced
    with pytest.raises(UserError, match="kept in float32"):
        export(lora, tmp_path / "low", to="peft", dtype="bfloat16")
    with pytest.raises(UserError, match="whole model and no adapter"):
        export(tmp_path / "base", tmp_path / "none", to="peft")
    with pytest.raises(UserError, match="holds more than a model"):
        export(lora, lora, to="peft")


def test_a_prompt_is_written_for_peft_alone(tmp_path: Path) -> None:
    model = T5(SHAPE)
    initialise(model, 0)
    save_model(model, load("bytes"), tmp_path / "base")
    base = Base.of(model, str(tmp_path / "base"))
    model.prompt = torch.nn.Parameter(torch.randn(3, 32))
    save_prompt(model, base, tmp_path / "prompt")
    with pytest.raises(UserError, match="use --to peft"):
        export(tmp_path / "prompt", tmp_path / "out")
    export(tmp_path / "prompt", tmp_path / "out", to="peft")
    found = open_model(tmp_path / "out").model.prompt
    assert found is not None
    assert torch.equal(found, model.prompt)
