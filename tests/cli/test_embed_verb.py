"""Heads from the outside: `finetune --head`, `evaluate`, `compare`, `embed`, `export`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.model.adapters import Base, save_prompt
from deepnarrow.model.encoding import embed
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.heads import open_head
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.native import NotBuiltError, usable
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import load

Capture = pytest.CaptureFixture[str]
built = pytest.mark.skipif(not usable(), reason="needs the native library, which was not built here")
QUICK = ("--batch", "8", "--input-length", "40", "--learning-rate", "0.03", "--no-tensorboard", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = T5(parse("tiny-dm32-ff64-kv16-nh2-nl2-v384"))
    initialise(made, 0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(made, load("bytes"), folder)
    return folder


def rows(path: Path, made: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 60), ("validation", 20)):
        films = [{"sentence": f"{'good' if n % 2 else 'bad'} film {n}", "label": n % 2} for n in range(count)]
        rows(tmp_path / "films" / f"{split}.jsonl", films)
        words = [{"tokens": ["we", "met", name, "."], "tags": ["O", "O", "B-X", "O"]} for name in ("Ada", "Kurt")]
        rows(tmp_path / "names" / f"{split}.jsonl", words * (count // 10))
        letters = [{"input": letter * 5, "target": f"about {letter.upper()}"} for letter in "abcdefghijklmnop"]
        rows(tmp_path / "letters" / f"{split}.jsonl", letters)
    return tmp_path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return int(stopped.value.code or 0)


def program(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, whose last line on standard error names what it imported."""
    script = (
        "import sys; from deepnarrow.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*sorted(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done


def refused(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    return error


def test_a_classifier_from_flag_to_comparison(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    out, films = tmp_path / "run", data / "films"
    command = ("finetune", model, "--task", "sst2", "--data", films, "--head", "classify", "--out", out)
    assert run(*command, "--steps", 60, "--eval-every", 20, *QUICK) == 0
    said = capsys.readouterr().out
    assert "accuracy 100.00" in said
    assert f"next: deepnarrow evaluate {out} --task sst2 --data {films}" in said
    assert run("evaluate", out, "--data", films, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["accuracy"]["value"] == 100
    assert found["search"] == "a head's likeliest label"
    assert found["shape"] == "tiny-dm32-ff64-kv16-nh2-el2-dl0-v384"
    assert run("compare", out, model, "--task", "sst2", "--data", films) == 0
    said = capsys.readouterr().out
    assert "100.00" in said
    assert "judged by different protocols: a head's likeliest label; likelihood of each label" in said
    assert "is an encoder with a head, which writes no text" in refused(capsys, "generate", out, "hello")
    assert "has a head, which PyTorch runs" in refused(capsys, "evaluate", out, "--data", films, "--runtime", "native")
    assert "has a head, which answers in one pass" in refused(capsys, "evaluate", out, "--data", films, "--as-t5")


def test_a_tagger_of_own_rows_is_exported(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    command = ("finetune", model, "--task", "tagging", "--data", data / "names", "--head", "tag", "--out", out)
    assert run(*command, "--steps", 40, "--eval-every", 40, *QUICK) == 0
    assert "entity_f1 100.00" in capsys.readouterr().out
    assert run("export", out, "--out", tmp_path / "out") == 0
    capsys.readouterr()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["T5ForTokenClassification"]
    assert "was trained to tag" in refused(
        capsys, "export", out, "--out", tmp_path / "st", "--to", "sentence-transformers"
    )


def test_vectors_from_training_to_a_file(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    out, letters = tmp_path / "run", data / "letters"
    command = ("finetune", model, "--task", letters, "--head", "embed", "--out", out, "--best", "mrr")
    assert run(*command, "--steps", 60, "--eval-every", 30, *QUICK) == 0
    said = capsys.readouterr().out
    assert "retrieval_accuracy" in said
    assert run("evaluate", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["mrr"]["value"] > found["scores"]["mrr"]["baseline"]

    (tmp_path / "texts.txt").write_text("aaaaa\nbbbbb\n", "utf-8")
    assert run("embed", out, "--file", tmp_path / "texts.txt", "--out", tmp_path / "v.npy") == 0
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, embed(open_head(out), ["aaaaa", "bbbbb"]), atol=1e-5)
    if usable():  # the encoder below the head was converted, and is not converted again
        done = program("embed", out, "--file", tmp_path / "texts.txt", "--runtime", "native")
        assert "torch" not in done.stderr.split()
        assert np.allclose([json.loads(line) for line in done.stdout.splitlines()], vectors, atol=1e-6)
    assert run("export", out, "--out", tmp_path / "st", "--to", "sentence-transformers") == 0
    assert (tmp_path / "st" / "modules.json").is_file()


def test_a_plain_model_embeds_and_is_judged(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("embed", model, "hello") == 0
    printed = json.loads(capsys.readouterr().out)
    assert np.allclose(printed, embed(open_model(model), ["hello"])[0], atol=1e-6)
    rows(data / "sts.jsonl", [
        {"sentence1": "a cat", "sentence2": "a cat", "score": 5.0},
        {"sentence1": "a cat", "sentence2": "the cat sat", "score": 2.5},
        {"sentence1": "a cat", "sentence2": "0123456789", "score": 0},
    ])  # fmt: skip
    assert run("embed", model, "--similarity", data / "sts.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["spearman"]["value"] == 100
    assert run("export", model, "--out", tmp_path / "st", "--to", "sentence-transformers") == 0


@built
def test_the_native_runtime_gives_pytorchs_vectors(model: Path, tmp_path: Path, capsys: Capture) -> None:
    texts = ["a", "Gr\u00fc\u00dfe an alle", *(f"{'word ' * (n * 7 % 40)}{n}" for n in range(120)), "long " * 300]
    (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
    common = ("embed", model, "--file", tmp_path / "texts.txt", "--device", "cpu")
    for name, options in (
        ("torch", ("--runtime", "torch")), ("native", ("--runtime", "native")), ("auto", ()),
        ("unit", ("--normalise", "--input-length", 9)),
        ("unit_torch", ("--normalise", "--input-length", 9, "--runtime", "torch")),
        ("bfloat16", ("--dtype", "bfloat16", "--normalise")), ("int8", ("--dtype", "int8", "--normalise")),
    ):  # fmt: skip
        assert run(*common, "--out", tmp_path / f"{name}.npy", *options) == 0, capsys.readouterr().err
    found = {path.stem: np.load(path) for path in tmp_path.glob("*.npy")}
    assert found["torch"].shape == (len(texts), 32)
    assert np.abs(found["native"] - found["torch"]).max() < 1e-4
    assert np.array_equal(found["auto"], found["native"])
    assert np.abs(found["unit"] - found["unit_torch"]).max() < 1e-4
    whole = found["torch"] / np.linalg.norm(found["torch"], axis=1, keepdims=True)
    for precision, bound in (("bfloat16", 0.9999), ("int8", 0.99)):
        cosines = (found[precision] * whole).sum(1)
        assert bound < cosines.min() < 1, (precision, cosines.min())


@built
def test_a_converted_folder_is_embedded_without_torch(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("export", model, "--out", tmp_path / "native", "--to", "native") == 0
    done = program("embed", tmp_path / "native", "hello")
    *said, modules = done.stderr.splitlines()
    assert said == []
    assert "numpy" in modules.split()
    assert "torch" not in modules.split()
    assert np.allclose(json.loads(done.stdout), embed(open_model(model), ["hello"])[0], atol=1e-5)
    capsys.readouterr()
    assert "was converted to float32; for int8" in refused(capsys, "embed", tmp_path / "native", "a", "--dtype", "int8")


def test_without_the_library_pytorch_embeds_and_one_line_says_so(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise NotBuiltError("it was not built")

    monkeypatch.setattr("deepnarrow.runtime.native.library", missing)
    assert run("embed", model, "hello", "--device", "cpu") == 0
    out, err = capsys.readouterr()
    assert np.allclose(json.loads(out), embed(open_model(model), ["hello"])[0], atol=1e-6)
    assert err == "deepnarrow: embedding with PyTorch, since the native runtime is not there: it was not built\n"
    assert "the native runtime is not there" in refused(capsys, "embed", model, "hello", "--runtime", "native")


def test_a_soft_prompt_has_no_encoder_of_its_own(model: Path, tmp_path: Path, capsys: Capture) -> None:
    opened = open_model(model)
    base = Base.of(opened.model, str(model))
    opened.model.prompt = torch.nn.Parameter(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    save_prompt(opened.model, base, tmp_path / "prompt")
    for runtime in ("auto", "torch"):
        assert "has an adapter; only LoRA merged" in refused(
            capsys, "embed", tmp_path / "prompt", "a", "--runtime", runtime
        )


def test_mistakes(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    films = ("--task", "sst2", "--data", data / "films", "--out", tmp_path / "run")
    assert "unknown head 'clasify'; did you mean classify" in refused(
        capsys, "finetune", model, *films, "--head", "clasify"
    )
    several = (
        "finetune",
        model,
        "--task",
        "sst2,cola",
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--head",
        "classify",
    )
    assert "a head is trained on one task" in refused(capsys, *several)
    packed = ("finetune", model, *films, "--head", "classify", "--batching", "packed")
    assert 'use the batching "bucketed"' in refused(capsys, *packed)
    lora = ("finetune", model, *films, "--head", "classify", "--adapt", "lora")
    assert "leave out --adapt lora" in refused(capsys, *lora)
    assert "no evaluation of this run gives 'f1'" in refused(
        capsys, "finetune", model, *films, "--head", "classify", "--best", "f1"
    )
    assert "nothing to answer" in refused(capsys, "embed", model)
    assert "NumPy's .npy; name --out v.npy" in refused(capsys, "embed", model, "a", "--out", "v.txt")
    assert "unknown runtime 'nativ'; did you mean native" in refused(capsys, "embed", model, "a", "--runtime", "nativ")
    assert "int8 is a precision of the native runtime" in refused(
        capsys, "embed", model, "a", "--runtime", "torch", "--dtype", "int8"
    )
    assert "unknown dtype 'int4'; did you mean int8" in refused(capsys, "embed", model, "a", "--dtype", "int4")
    (data / "bad.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "score": "high"}\n')
    assert "row 1: two texts and a number" in refused(capsys, "embed", model, "--similarity", data / "bad.jsonl")
    assert not (tmp_path / "run" / "run.json").exists()
