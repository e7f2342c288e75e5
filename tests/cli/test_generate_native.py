"""`deepnarrow generate` by the native runtime: the answers of PyTorch without PyTorch, and what else it says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deepnarrow.cli import answering, main
from deepnarrow.hub.export import export
from deepnarrow.model.adapters import Base, save_prompt
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.native import usable
from deepnarrow.shapes.shape import parse
from deepnarrow.text import tokenizer

TEXTS = ["a longer text that comes first", "bee", "Gr\u00fc\u00dfe an alle", "d"]
HEAVY = ("torch", "transformers", "typer", "click", "pydantic", "rich", "huggingface_hub", "sentencepiece")
built = pytest.mark.skipif(not usable(), reason="needs the native library, which was not built here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes letters, at random but always the same ones."""
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v384-untied"))
    initialise(model, seed=4)
    with torch.no_grad():
        model.output.weight *= 4
        model.output.weight[2:100] = 0
        model.output.weight[126:] = 0
    path = tmp_path_factory.mktemp("generate") / "model"
    save_model(model, tokenizer.load("bytes"), path)
    return path


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    export(folder, folder.parent / "native", to="native")
    return folder.parent / "native"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["generate", *map(str, arguments)])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


def program(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The verb in a process of its own, whose last line on standard error names what it imported."""
    script = (
        "import sys; from deepnarrow.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(*sorted(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "generate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@built
def test_no_torch_on_the_way_from_a_converted_folder_to_an_answer(converted: Path, run: Any) -> None:
    done = program(converted, TEXTS[0], "--max-tokens", 12)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(converted, TEXTS[0], "--max-tokens", 12, "--runtime", "torch")[1]
    *said, modules = done.stderr.splitlines()
    assert said == []
    assert "numpy" in modules.split()
    assert [name for name in HEAVY if name in modules.split()] == []


@built
def test_nor_from_any_other_model_once_it_was_converted(folder: Path, tmp_path: Path) -> None:
    first = program(folder, TEXTS[0], "--dtype", "int8", DEEPNARROW_CACHE=str(tmp_path))
    second = program(folder, TEXTS[0], "--dtype", "int8", DEEPNARROW_CACHE=str(tmp_path))
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    assert "torch" in first.stderr.split()  # which made the conversion
    assert [name for name in HEAVY if name in second.stderr.split()] == []


@built
@pytest.mark.parametrize(
    "options", [(), ("--beam", 3, "--num-return", 2), ("--temperature", 0.9, "--seed", 5), ("--top-k", 4, "--seed", 1)]
)
def test_answers_are_those_of_pytorch(run: Any, folder: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS), "utf-8")
    found = [
        run(folder, "--file", file, "--max-tokens", 12, "--json", "--runtime", runtime, *options)
        for runtime in ("native", "torch")
    ]
    assert [(code, err) for code, _, err in found] == [(0, ""), (0, "")]
    ours, theirs = ([json.loads(line) for line in out.splitlines()] for _, out, _ in found)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine["input"], mine["model"]) == (wanted["input"], wanted["model"])
        assert [one["text"] for one in mine["outputs"]] == [one["text"] for one in wanted["outputs"]]
        for one, other in zip(mine["outputs"], wanted["outputs"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)


@built
def test_soft_prompts(run: Any, folder: Path, converted: Path, tmp_path: Path) -> None:
    opened = open_model(folder)
    base = Base.of(opened.model, str(folder))
    opened.model.prompt = torch.nn.Parameter(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    save_prompt(opened.model, base, tmp_path / "prompt")
    wanted = run(tmp_path / "prompt", TEXTS[0], "--max-tokens", 9, "--runtime", "torch")[1]
    assert wanted != run(folder, TEXTS[0], "--max-tokens", 9)[1]
    assert run(tmp_path / "prompt", TEXTS[0], "--max-tokens", 9, "--runtime", "native")[1] == wanted
    export(tmp_path / "prompt", tmp_path / "out", to="native")
    assert run(tmp_path / "out", TEXTS[0], "--max-tokens", 9)[1] == wanted
    for model in (folder, converted):  # over a model that is converted already: it is known by its weights as they were
        code, out, err = run(model, TEXTS[0], "--max-tokens", 9, "--prompt", tmp_path / "prompt")
        assert (code, out, err) == (0, wanted, "")
    other = T5(opened.shape)
    initialise(other, seed=9)
    save_model(other, tokenizer.load("bytes"), tmp_path / "other")
    code, _, err = run(tmp_path / "other", TEXTS[0], "--prompt", tmp_path / "prompt")
    assert code == 2
    assert "was trained over other weights" in err


def test_without_the_library_pytorch_answers_and_one_line_says_so(folder: Path, converted: Path) -> None:
    for model in (folder, converted):
        done = program(model, TEXTS[0], "--max-tokens", 9, DEEPNARROW_NATIVE="0")
        assert done.returncode == 0, done.stderr
        *said, modules = done.stderr.splitlines()
        assert len(said) == 1
        assert "answering with PyTorch, since the native runtime is not there" in said[0]
        assert "torch" in modules.split()
        assert done.stdout.strip()
    for options in (("--runtime", "native"), ("--dtype", "int8")):
        done = program(folder, TEXTS[0], *options, DEEPNARROW_NATIVE="0")
        assert done.returncode == 2
        assert "the native runtime is not there: it is switched off" in done.stderr


@built
def test_where_nothing_can_be_kept_pytorch_answers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = program(folder, TEXTS[0], "--max-tokens", 9, DEEPNARROW_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert "answering with PyTorch, since the model cannot be kept converted" in done.stderr
    done = program(folder, TEXTS[0], "--runtime", "native", DEEPNARROW_CACHE=str(tmp_path / "file"))
    assert done.returncode == 2


@built
def test_a_damaged_file_is_refused(converted: Path, tmp_path: Path) -> None:
    data = bytearray((converted / "model.dn").read_bytes())
    data[-100] ^= 1
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer_config.json").write_bytes((converted / "tokenizer_config.json").read_bytes())
    (broken / "model.dn").write_bytes(data)
    for _ in range(2):  # what is wrong is not remembered as right
        done = program(broken, TEXTS[0])
        assert done.returncode == 2
        assert "model.dn is damaged: its SHA-256 is not what it states" in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "nativ"], "unknown runtime 'nativ'; did you mean native"),
        (["--runtime", "native", "--device", "cuda"], "the native runtime runs on the CPU, not on cuda"),
        (["--runtime", "torch", "--dtype", "int8"], "int8 is a precision of the native runtime"),
        (["--dtype", "int4"], "unknown dtype 'int4'"),
    ],
)
def test_mistakes(run: Any, folder: Path, arguments: list[str], message: str) -> None:
    code, out, err = run(folder, "text", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@built
def test_a_converted_folder_has_its_own_precision(run: Any, converted: Path) -> None:
    code, _, err = run(converted, "text", "--dtype", "int8")
    assert code == 2
    assert "was converted to float32; for int8 name what it was made from" in err


def test_the_device_that_is_left_to_us_is_the_processor_where_there_is_no_other() -> None:
    assert answering.cuda() == torch.cuda.is_available()
