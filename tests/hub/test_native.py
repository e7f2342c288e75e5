"""Converted folders and the cache of conversions: complete, right, made anew when the model changes, bounded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.hub import native
from deepnarrow.hub.export import export
from deepnarrow.hub.native import native_folder
from deepnarrow.model.adapters import Base, save_lora, save_prompt
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.lora import Lora, adapted, attach
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.folder import is_native, prompt_in, was_checked
from deepnarrow.runtime.format import open_file
from deepnarrow.runtime.layout import PRECISIONS
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import load

SHAPE = parse("tiny-nl2-dm32-ff64-kv8-nh4-kh2-v400-shkv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "model", 0)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


def made(folder: Path, seed: int) -> Path:
    model = T5(SHAPE)
    initialise(model, seed)
    save_model(model, load("bytes"), folder)
    return folder


def entries(kept: Path) -> list[str]:
    return sorted(path.name for path in kept.iterdir() if path.is_dir() and path.name != "checked")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_folder_has_all_that_is_needed(folder: Path, tmp_path: Path, precision: str) -> None:
    written = export(folder, tmp_path / "out", to="native", precision=precision)
    assert (written.shape, written.dtype, written.has_tokenizer) == (SHAPE, precision, True)
    assert sorted(written.files) == ["config.json", "model.dn", "tokenizer_config.json"]  # bytes have no vocabulary
    file = open_file(tmp_path / "out" / "model.dn")
    assert (file.shape, file.precision, file.vocab_limit, file.eos) == (SHAPE, precision, load("bytes").size, 1)
    assert file.source["origin"] == str(folder)
    assert read_json(tmp_path / "out" / "config.json")["d_model"] == 32
    state, again = open_model(folder).model.state_dict(), open_model(tmp_path / "out").model.state_dict()
    for name, tensor in state.items():
        near = {"float32": 0.0, "bfloat16": 2**-8, "int8": 1 / 250}[precision]
        assert (again[name] - tensor).abs().max() <= near * tensor.abs().max()


def test_a_converted_folder_is_a_model_for_every_other_verb(folder: Path, tmp_path: Path) -> None:
    """In float32 it is the same model, and can be written back."""
    export(folder, tmp_path / "out", to="native")
    export(tmp_path / "out", tmp_path / "back")
    first, last = open_model(folder).model.state_dict(), open_model(tmp_path / "back").model.state_dict()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_an_adapter_is_merged_and_a_soft_prompt_goes_with_its_model(folder: Path, tmp_path: Path) -> None:
    opened = open_model(folder)
    base = Base.of(opened.model, opened.origin)
    lora = Lora(rank=2, alpha=4.0)
    attach(opened.model, lora, seed=1)
    for one in adapted(opened.model).values():
        torch.nn.init.normal_(one.up.weight, generator=torch.Generator().manual_seed(0))
    save_lora(opened.model, lora, base, tmp_path / "lora")
    export(tmp_path / "lora", tmp_path / "merged", to="native")
    file = open_file(tmp_path / "merged" / "model.dn").tensors()
    plain, merged = open_model(folder).model.state_dict(), open_model(tmp_path / "lora").model.state_dict()
    assert not torch.equal(plain["decoder.blocks.0.self_attention.query.weight"], merged[
        "decoder.blocks.0.self_attention.query.weight"])  # fmt: skip
    for name, tensor in merged.items():
        np.testing.assert_array_equal(file[name], tensor.numpy())

    model = open_model(folder).model
    vectors = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    model.prompt = torch.nn.Parameter(vectors)
    save_prompt(model, base, tmp_path / "prompt")
    export(tmp_path / "prompt", tmp_path / "prompted", to="native", precision="int8")
    np.testing.assert_array_equal(prompt_in(tmp_path / "prompted", SHAPE), vectors.numpy())
    assert torch.equal(open_model(tmp_path / "prompted").model.prompt, vectors)
    (tmp_path / "prompted" / "prompt.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"prompt.safetensors is damaged .*; export the soft prompt again"):
        open_model(tmp_path / "prompted")


def test_an_encoder_alone(tmp_path: Path) -> None:
    model = T5(parse("tiny-el2-dl0-dm32-ff64-v400"))
    initialise(model, 0)
    save_model(model, load("bytes"), tmp_path / "encoder")
    written = export(tmp_path / "encoder", tmp_path / "out", to="native", precision="int8")
    assert written.shape == model.shape
    assert read_json(tmp_path / "out" / "config.json")["architectures"] == ["T5EncoderModel"]


def test_wrong_wishes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown precision 'int4'; did you mean int8"):
        export(folder, tmp_path / "out", to="native", precision="int4")
    with pytest.raises(UserError, match="said by --precision float32 or bfloat16 or int8, not --dtype"):
        export(folder, tmp_path / "out", to="native", dtype="bfloat16")
    with pytest.raises(UserError, match="--precision is that of --to native"):
        export(folder, tmp_path / "out", precision="int8")
    with pytest.raises(UserError, match="holds more than a model"):
        export(folder, tmp_path, to="native")
    write_json(folder / "head.json", {})
    with pytest.raises(UserError, match="is an encoder with a head"):
        export(folder, tmp_path / "out", to="native")
    assert not (tmp_path / "out").exists()


def test_it_is_written_over_itself_and_what_is_refused_leaves_it(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", to="native")
    export(folder, tmp_path / "out", to="native", precision="int8")
    model = open_model(folder).model
    with torch.no_grad():
        model.embedding.weight[3, 3] = torch.nan
    save_model(model, load("bytes"), folder)
    with pytest.raises(UserError, match=r"embedding.weight holds infinite numbers or NaN"):
        export(folder, tmp_path / "out", to="native")
    assert open_file(tmp_path / "out" / "model.dn").precision == "int8"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_verb(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), "--out", str(tmp_path / "out"), "--to", "native", "--precision", "int8", "--json"])
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out)
    assert (said["dtype"], said["shape"]) == ("int8", str(SHAPE))
    assert is_native(tmp_path / "out")


def test_a_conversion_is_made_once(folder: Path, kept: Path) -> None:
    told: list[str] = []
    first = native_folder(folder, say=told.append)
    assert (first.origin, first.folder.parent) == (str(folder), kept)
    before = (first.folder / "model.dn").stat()
    again = native_folder(folder, say=told.append)
    assert again == first
    assert (again.folder / "model.dn").stat().st_ino == before.st_ino
    assert len(told) == 1
    assert "converting" in told[0]
    assert native_folder(folder, "int8").folder != first.folder
    assert len(entries(kept)) == 2


def test_a_converted_folder_stands_for_itself(folder: Path, kept: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", to="native", precision="int8")
    assert native_folder(tmp_path / "out").folder == tmp_path / "out"
    assert native_folder(tmp_path / "out", "int8").folder == tmp_path / "out"
    with pytest.raises(UserError, match="was converted to int8; for float32 name what it was made from"):
        native_folder(tmp_path / "out", "float32")


def test_a_changed_model_is_converted_anew_in_its_place(folder: Path, kept: Path) -> None:
    """Even one of the same size and time, as a copy may have."""
    first = native_folder(folder)
    before = open_file(first.folder / "model.dn").sha256
    times = (folder / "model.safetensors").stat()
    made(folder, 1)
    os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (folder / "model.safetensors").stat().st_size == times.st_size
    second = native_folder(folder)
    assert second.folder == first.folder
    assert open_file(second.folder / "model.dn").sha256 != before
    assert len(entries(kept)) == 1


def test_the_base_of_an_adapter_counts(folder: Path, kept: Path, tmp_path: Path) -> None:
    opened = open_model(folder)
    opened.model.prompt = torch.nn.Parameter(torch.ones(2, 32))
    base = Base(origin=str(folder.resolve()), fingerprint=None)
    save_prompt(opened.model, base, tmp_path / "prompt")
    before = open_file(native_folder(tmp_path / "prompt").folder / "model.dn").sha256
    made(folder, 1)
    assert open_file(native_folder(tmp_path / "prompt").folder / "model.dn").sha256 != before


def test_what_is_gone_is_removed_and_the_rest_is_bounded(
    folder: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [made(tmp_path / f"other-{number}", number) for number in range(3)]
    for number, other in enumerate(others):
        entry = native_folder(other).folder
        os.utime(entry / native.MADE_FROM, ns=(number, number))  # the order in which they were used
    (kept / ".left.12.tmp").mkdir()
    os.utime(kept / ".left.12.tmp", (0, 0))
    shutil.rmtree(others[1])
    monkeypatch.setattr(native, "LARGEST", 2 * native.folder_bytes(native_folder(others[2]).folder) + 1000)
    native_folder(folder)
    names = [read_json(kept / name / native.MADE_FROM)["folder"] for name in entries(kept)]
    assert sorted(names) == sorted([str(folder.resolve()), str(others[2].resolve())])


def test_a_broken_entry_is_made_anew(folder: Path, kept: Path) -> None:
    entry = native_folder(folder).folder
    (entry / native.MADE_FROM).write_text("{")
    assert native_folder(folder).folder == entry
    assert read_json(entry / native.MADE_FROM)["precision"] == "float32"


def test_a_checked_file_is_known_until_it_changes(folder: Path, kept: Path) -> None:
    path = native_folder(folder).folder / "model.dn"
    assert was_checked(path)
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not was_checked(path)


def test_processes_that_convert_at_once(folder: Path, kept: Path) -> None:
    script = "import sys; from deepnarrow.hub.native import native_folder; print(native_folder(sys.argv[1]).folder)"
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = {process.communicate(timeout=300)[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(said) == len(entries(kept)) == 1
    open_file(Path(said.pop().strip()) / "model.dn")
