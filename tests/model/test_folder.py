"""Opening and writing model folders: every layout met in the wild, every way they are broken, the hub's cache."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepnarrow.errors import UserError
from deepnarrow.files import write_json
from deepnarrow.model.folder import find, open_model, read_shape, resolve_device, resolve_dtype, save_model
from deepnarrow.model.t5 import T5
from deepnarrow.model.weights import to_published
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import load as load_tokenizer

TINY = "tiny-nl2-dm32-ff64-kv8-nh4-v400"


@pytest.fixture
def model(random_model) -> T5:
    return random_model(TINY)


@pytest.fixture
def folder(model: T5, tmp_path: Path) -> Path:
    save_model(model, None, tmp_path / "model")
    return tmp_path / "model"


def equal(found: T5, expected: T5) -> bool:
    ours, theirs = found.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def refused(where: str | Path) -> str:
    """The message of opening something broken: one line."""
    with pytest.raises(UserError) as caught:
        open_model(where)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_pickle(folder: Path, **how) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **how)
    (folder / "model.safetensors").unlink()


def as_shards(folder: Path, suffix: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, write = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    places = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        write({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": places})


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "safetensors": lambda folder: None,
    "shards": lambda folder: as_shards(folder, "safetensors"),
    "pickle": as_pickle,
    "pickle before PyTorch 1.6": lambda folder: as_pickle(folder, _use_new_zipfile_serialization=False),
    "pickle shards": lambda folder: as_shards(folder, "bin"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens(layout: str, folder: Path, model: T5) -> None:
    LAYOUTS[layout](folder)
    opened = open_model(folder)
    assert equal(opened.model, model)
    assert opened.shape == model.shape == read_shape(folder)
    assert opened.origin == str(folder)
    assert opened.tokenizer is None
    assert not opened.model.training
    assert all(weight.requires_grad for weight in opened.model.parameters())


def test_a_configuration_of_2020_opens(folder: Path, model: T5) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size", "model_type", "architectures")
    write_json(folder / "config.json", {key: config[key] for key in kept})
    assert equal(open_model(folder).model, model)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_one_asked_for(stored: torch.dtype, folder: Path, model: T5) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        opened = open_model(folder, dtype=dtype)
        assert {weight.dtype for weight in opened.model.parameters()} == {dtype}
        for name, tensor in model.state_dict().items():
            assert torch.equal(opened.model.state_dict()[name], tensor.to(stored).to(dtype))


def test_loaded_weights_do_not_hang_on_the_file(folder: Path, model: T5) -> None:
    opened = open_model(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(8)
    assert equal(opened.model, model)


def test_dropout_and_device_are_passed_on(folder: Path) -> None:
    opened = open_model(folder, dropout=0.3, device="meta")
    assert opened.model.dropout == 0.3
    assert opened.model.embedding.weight.is_meta


def test_float16_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="65,504"):
        open_model(folder, dtype=torch.float16)
    with pytest.raises(UserError, match=r"not torch\.float64"):
        open_model(folder, dtype=torch.float64)


# --- broken folders


def test_broken_configurations(folder: Path) -> None:
    path = folder / "config.json"
    for text, says in (
        ("{not json", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("\xff\xfe", "is not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "lacks d_model, d_kv"),
    ):
        path.write_bytes(text.encode("latin-1"))
        assert says in refused(folder)
        assert str(path) in refused(folder)
    path.unlink()
    assert "it has no config.json (it holds generation_config.json, model.safetensors)" in refused(folder)


@pytest.mark.parametrize("size", [0, 4, 8, 200, -1, -5000])
def test_truncated_safetensors(size: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    assert "model.safetensors is broken or only a part of a file" in refused(folder)


@pytest.mark.parametrize("size", [0, 10, 2000, -100])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickles(size: int, zipped: bool, folder: Path) -> None:
    as_pickle(folder, _use_new_zipfile_serialization=zipped)
    file = folder / "pytorch_model.bin"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    assert "pytorch_model.bin" in refused(folder)


def test_overwritten_files(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    for wrong in (
        b"\xff" * len(data),
        b"<!DOCTYPE html>" * 400,
        data[:8] + b"[" + data[9:],
        b"version https://git-lfs",
    ):
        file.write_bytes(wrong)
        assert "is broken or only a part of a file" in refused(folder)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "pytorch_model.bin" in refused(folder)


def test_pickled_objects_are_not_run(folder: Path, tmp_path: Path) -> None:
    as_pickle(folder)
    trace = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {trace}",))

    torch.save({"shared.weight": Evil()}, folder / "pytorch_model.bin")
    assert "which are not run" in refused(folder)
    assert not trace.exists()
    torch.save([1, 2], folder / "pytorch_model.bin")
    assert "holds a list, not a dictionary of tensors" in refused(folder)
    torch.save({"model": {"shared.weight": torch.zeros(1)}}, folder / "pytorch_model.bin")
    assert "its entry 'model' is a dict, not a tensor" in refused(folder)


def test_broken_shards(folder: Path) -> None:
    as_shards(folder, "safetensors")
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    second = folder / "model-00002-of-00002.safetensors"
    second.rename(folder / "aside")
    assert "lacks model-00002-of-00002.safetensors, one of the 2 shards" in refused(folder)
    (folder / "aside").rename(second)
    for wrong in ({}, [], {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}):
        write_json(index, wrong)
        assert 'it lacks "weight_map"' in refused(folder)
    write_json(index, {"weight_map": listing["weight_map"] | {"a": "../../secret.safetensors"}})
    assert "'../../secret.safetensors', which is not a file beside it" in refused(folder)
    os.truncate(second, 100)
    write_json(index, listing)
    assert "model-00002-of-00002.safetensors is broken" in refused(folder)


def test_no_weights_and_foreign_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no weights: expected model.safetensors" in refused(folder)
    (folder / "flax_model.msgpack").touch()
    assert "has weights only as flax_model.msgpack (Flax)" in refused(folder)


def test_quantised_weights_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"shared.weight": torch.zeros(400, 32, dtype=torch.int8)}, folder / "model.safetensors")
    assert "shared.weight holds int8 numbers; quantised weights" in refused(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"d_ff": 65})
    assert "is (64, 32), but config.json" in refused(folder)
    write_json(folder / "config.json", config | {"num_layers": 3})
    assert "it lacks encoder.block.2." in refused(folder)
    write_json(folder / "config.json", config | {"num_layers": 2**31 - 1})
    assert "numbers, but config.json" in refused(folder)


def test_a_tokenizer_too_large_for_the_model(model: T5, random_model, tmp_path: Path) -> None:
    save_model(model, load_tokenizer("bytes"), tmp_path / "fits")
    assert open_model(tmp_path / "fits").tokenizer is not None
    save_model(random_model(replace(model.shape, vocab=300)), load_tokenizer("bytes"), tmp_path / "larger")
    says = refused(tmp_path / "larger")
    assert "the tokenizer has 384 ids but the model only 300 rows of embedding" in says


# --- names


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert "is a file; a model is a folder with config.json" in refused(file)
    assert refused(tmp_path / "absent") == f"no folder {tmp_path / 'absent'}"
    assert refused("./absent") == "no folder ./absent"
    assert refused("a/b/c") == "no folder a/b/c"
    assert "is a shape, which has no weights of its own" in refused("small-el16-dl2")
    assert refused("small-el16-dl2").endswith("published with weights: google/t5-efficient-small-el16-dl2")
    assert refused("tiny-kh1").endswith("deepnarrow pretrain --shape tiny-kh1 ...")
    assert "is neither a folder nor a hub name" in refused("no such model!")
    assert "no config.json (it holds model.safetensors)" in refused(tmp_path)


def test_run_folders(model: T5, random_model, tmp_path: Path) -> None:
    run, other = tmp_path / "run", random_model(TINY, seed=1)
    write_json(run / "run.json", {"format": 1})
    assert "has no checkpoint yet" in refused(run)
    save_model(model, None, run / "checkpoints/step-00000010")
    save_model(other, None, run / "checkpoints/step-00000020")
    write_json(run / "checkpoints.json", {"last": "step-00000020", "best": None})
    assert equal(open_model(run).model, other)
    write_json(run / "checkpoints.json", {"last": "step-00000020", "best": "step-00000010"})
    opened = open_model(str(run))
    assert equal(opened.model, model)
    assert opened.origin == str(run / "checkpoints/step-00000010")
    assert equal(open_model(run / "checkpoints/step-00000020").model, other)
    for wrong in ("step-00000030", "../checkpoints/step-00000010"):
        write_json(run / "checkpoints.json", {"last": wrong, "best": None})
        assert f"names the checkpoint {wrong!r}" in refused(run)
    write_json(run / "checkpoints.json", [])
    assert "has no checkpoint yet" in refused(run)
    (run / "checkpoints.json").write_text("{")
    assert "is not valid JSON" in refused(run)


def test_find_expands_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find("~/model").folder == folder


# --- the hub, through its real library and a cache laid out as that library does

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def into_cache(folder: Path, cache: Path, name: str) -> None:
    """What huggingface_hub leaves behind: blobs, a snapshot of links to them, and the commit a branch stood at."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "refs").mkdir()
    (home / "refs/main").write_text(COMMIT)
    for file in folder.iterdir():
        shutil.copy(file, home / "blobs" / f"blob-of-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-of-{file.name}")


def test_hub_names_offline(model: T5, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    save_model(model, load_tokenizer("bytes"), folder)
    into_cache(folder, cache, "google/safe")
    LAYOUTS["pickle"](folder)
    into_cache(folder, cache, "google/old")
    into_cache(folder, cache, "t5-canonical")
    names = [
        "google/safe", "google/safe@main", f"google/safe@{COMMIT}", "google/old", "t5-canonical",
        "google/absent", "google/safe@v2", "google/safe@" + "f" * 40,
    ]  # fmt: skip
    script = """if True:
        import sys
        from deepnarrow.errors import UserError
        from deepnarrow.model.folder import open_model
        for name in sys.argv[1:]:
            try:
                opened = open_model(name)
                print("opened", opened.origin, opened.shape, opened.tokenizer.size)
            except UserError as error:
                print("refused", error)
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", script, *names], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"opened google/safe@{COMMIT} {model.shape} 384"] * 3
    assert lines[3] == f"opened google/old@{COMMIT} {model.shape} 384"
    assert lines[4] == f"opened t5-canonical@{COMMIT} {model.shape} 384"
    for line, name in zip(lines[5:], ("google/absent", "google/safe at v2", "google/safe at fff"), strict=True):
        assert line.startswith(f"refused {name}")
        assert line.endswith(
            f"is no folder and not in the cache {cache}, and HF_HUB_OFFLINE is set; "
            "unset it to download, or give a folder"
        )


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ("RepositoryNotFoundError", "no folder google/x, and no model of that name on the hub"),
        ("RevisionNotFoundError", "the hub's google/x has no revision 'v9'"),
        ("GatedRepoError", "google/x asks for an agreement first"),
        ("HfHubHTTPError", "the hub did not give google/x: HfHubHTTPError: 500 Server Error"),
        ("LocalEntryNotFoundError", "and the hub cannot be reached"),
    ],
)
def test_what_the_hub_answers(failure: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors

    def fail(*_args: object, **_options: object) -> str:
        kind = getattr(errors, failure)
        if failure == "LocalEntryNotFoundError":
            raise kind("nothing here")
        response = SimpleNamespace(headers={}, status_code=500, request=None, text="")
        raise kind("500 Server Error\nmore", response=response)

    from types import SimpleNamespace

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert says in refused("google/x@v9")


def test_a_partial_snapshot_is_tried(folder: Path, model: T5, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, the library refuses a snapshot that lacks any file of the listing, such as one that no T5 needs."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def partial(*_args: object, **_options: object) -> str:
        error = LocalEntryNotFoundError("special_tokens_map.json is missing")
        error.snapshot_path = str(folder)  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", partial)
    assert equal(open_model("google/x").model, model)


# --- writing


def test_written_files_and_their_marks(model: T5, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["deepnarrow"] == {"shape": str(model.shape), "format": 1}
    assert config["architectures"] == ["T5ForConditionalGeneration"]
    assert config["torch_dtype"] == "float32"
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")  # it is the embedding


def test_bfloat16_is_written_as_such(model: T5, tmp_path: Path) -> None:
    save_model(model.bfloat16(), None, tmp_path / "low")
    assert {tensor.dtype for tensor in load_file(tmp_path / "low/model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "low/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert equal(open_model(tmp_path / "low", dtype=torch.bfloat16).model, model)


def test_transformers_loads_the_bfloat16_folder(model: T5, tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    save_model(model.bfloat16(), None, tmp_path / "low")
    reference = T5ForConditionalGeneration.from_pretrained(tmp_path / "low")
    assert reference.shared.weight.dtype is torch.bfloat16
    found = {name: tensor.bfloat16() for name, tensor in reference.state_dict().items()}  # it keeps wo in float32
    for name, tensor in to_published(model.state_dict(), model.shape).items():
        assert torch.equal(found[name], tensor)


def test_the_tokenizer_goes_along(model: T5, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    save_model(model, tokenizer, tmp_path / "model")
    found = open_model(tmp_path / "model").tokenizer
    assert found is not None
    assert found.fingerprint == tokenizer.fingerprint


def test_the_published_tokenizer_goes_along(shared: Path, random_model, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(shared / "data/t5_tokenizer")
    save_model(random_model("tiny-nl1-dm8-ff8-kv4-nh2"), tokenizer, tmp_path / "model")
    found = open_model(tmp_path / "model").tokenizer
    assert found is not None
    assert found.encode("Hello there") == tokenizer.encode("Hello there")


def test_a_model_folder_is_replaced_whole(model: T5, random_model, folder: Path) -> None:
    as_pickle(folder)
    other = random_model(f"{TINY}-untied", seed=1)
    save_model(other, None, folder)
    assert equal(open_model(folder).model, other)
    assert not (folder / "pytorch_model.bin").exists()


def test_other_folders_are_left_alone(model: T5, folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"holds more than a model \(README.md\)"):
        save_model(model, None, folder)
    with pytest.raises(UserError, match="name another folder"):
        save_model(model, None, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        save_model(model, None, folder / "README.md")
    assert equal(open_model(folder).model, model)


def test_a_failure_leaves_the_old_folder(
    model: T5, folder: Path, monkeypatch: pytest.MonkeyPatch, random_model
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepnarrow.model.folder.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(random_model(TINY, seed=1), None, folder)
    assert equal(open_model(folder).model, model)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_devices_and_dtypes_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(UserError, match="so cuda:99 is not there"):
        resolve_device("cuda:99")
    assert resolve_dtype("float32") is torch.float32
    with pytest.raises(UserError, match="did you mean bfloat16"):
        resolve_dtype("bfloat")
    with pytest.raises(UserError, match="65,504"):
        resolve_dtype("float16")


def test_knobs_survive_the_folder_and_are_not_seen_by_others(random_model, tmp_path: Path) -> None:
    model = random_model(f"{TINY}-kh2-shkv")
    save_model(model, None, tmp_path / "model")
    assert equal(open_model(tmp_path / "model").model, model)
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["deepnarrow"]
    write_json(tmp_path / "model/config.json", config)
    assert open_model(tmp_path / "model").shape == parse(TINY)
