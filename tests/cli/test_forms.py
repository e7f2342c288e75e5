"""`deepnarrow generate` with choices, regular expressions, JSON schemas and drafts, as a person meets it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.cli.forms import Asked
from deepnarrow.model import likelihood
from deepnarrow.model.adapters import Base, save_prompt
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime import native
from deepnarrow.shapes.shape import parse
from deepnarrow.text import tokenizer

TEXTS = ["a longer text that comes first", "bee", "Gr\u00fc\u00dfe an alle"]
RUNTIMES = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not native.usable(), reason="the native library is not built")),
]


def make_model(folder: Path, shape: str, seed: int) -> Path:
    """A model that writes letters, at random but always the same ones."""
    model = T5(parse(shape))
    initialise(model, seed=seed)
    with torch.no_grad():
        model.output.weight *= 4
        model.output.weight[2:100] = 0
        model.output.weight[126:] = 0
    save_model(model, tokenizer.load("bytes"), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("forms") / "model", "tiny-nl2-dm32-ff64-kv8-v384-untied", 4)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("forms") / "draft", "tiny-nl1-dm32-ff64-kv8-v384-untied", 5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the verb; give its exit code, standard output and standard error."""
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["generate", *map(str, arguments)])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


def likelihoods(folder: Path, texts: list[str], labels: list[str]) -> np.ndarray:
    opened = open_model(folder)
    inputs, choices = ([[*opened.tokenizer.encode(text), 1] for text in some] for some in (texts, labels))
    return likelihood.rank(opened.model, inputs, choices)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_choices(run: Any, folder: Path, file: Path, tmp_path: Path, runtime: str) -> None:
    labels = ["yes", "no", "not sure"]
    logs = likelihoods(folder, TEXTS, labels)
    code, out, err = run(folder, "--file", file, "--choices", "yes,no, not sure", "--runtime", runtime)
    assert (code, err) == (0, "")
    assert out.splitlines() == [labels[best] for best in logs.argmax(-1)]
    listed = tmp_path / "labels.txt"
    listed.write_text("yes\nno\nnot sure\n")
    options = ("--choices-file", listed, "--num-return", 3, "--json", "--runtime", runtime, "--batch", 2)
    rows = [json.loads(line) for line in run(folder, "--file", file, *options)[1].splitlines()]
    for row, its in zip(rows, logs, strict=True):
        order = np.argsort(-its)
        assert [output["text"] for output in row["outputs"]] == [labels[index] for index in order]
        np.testing.assert_allclose([output["score"] for output in row["outputs"]], its[order], rtol=1e-4)
        shares = np.exp(its[order]) / np.exp(its).sum()
        np.testing.assert_allclose([output["probability"] for output in row["outputs"]], shares, rtol=1e-3)


def test_choices_under_prompts(run: Any, folder: Path, tmp_path: Path) -> None:
    opened = open_model(folder)
    base = Base.of(opened.model, str(folder))
    opened.model.prompt = torch.nn.Parameter(3 * torch.randn(4, 32, generator=torch.Generator().manual_seed(1)))
    save_prompt(opened.model, base, tmp_path / "prompt")
    options = ("--choices", "yes,no", "--num-return", 2, "--json", "--runtime", "torch")
    scores = []
    for arguments in ((folder,), (tmp_path / "prompt",), (folder, "--prompt", tmp_path / "prompt")):
        [row] = run(arguments[0], "bee", *arguments[1:], *options)[1].splitlines()
        scores.append([output["score"] for output in json.loads(row)["outputs"]])
    assert scores[0] != scores[1]
    np.testing.assert_allclose(scores[1], scores[2], rtol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("search", [(), ("--beam", 3, "--num-return", 2), ("--temperature", 2, "--num-return", 3)])
def test_a_regular_expression(run: Any, folder: Path, file: Path, search: tuple, runtime: str) -> None:
    pattern = r"(bzz|hm){1,3}[.!]"
    code, out, err = run(folder, "--file", file, "--regex", pattern, "--runtime", runtime, *search)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == len(TEXTS) * (search[-1] if search else 1)
    for line in out.splitlines():
        assert re.fullmatch(pattern, line)


def test_a_json_schema(run: Any, folder: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["bee", "ant"]}, "legs": {"type": "integer"}}}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({**schema, "required": ["name"], "additionalProperties": False}))
    code, out, _ = run(folder, "bee", "--json-schema", path, "--json")
    assert code == 0
    [output] = json.loads(out)["outputs"]
    assert output["complete"]
    assert json.loads(output["text"])["name"] in ("bee", "ant")


def test_an_answer_cut_short_is_shown_and_said(run: Any, folder: Path, file: Path) -> None:
    code, out, err = run(folder, "bee", "--regex", "[a-z]{9}", "--max-tokens", 5)
    assert code == 2
    assert re.fullmatch("[a-z]{5}\n", out)
    assert "the answer was cut off before keeping to the form; raise --max-tokens above 5" in err
    code, out, err = run(folder, "--file", file, "--regex", "[a-z]{9}", "--max-tokens", 5, "--json")
    assert code == 2
    assert "3 of 3 answers were cut off" in err
    assert [json.loads(line)["outputs"][0]["complete"] for line in out.splitlines()] == [False] * 3


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("search", [(), ("--temperature", 0.9, "--seed", 3, "--num-return", 2)])
@pytest.mark.parametrize("how", ["copy", "draft", "both"])
def test_drafts_change_no_answer(
    run: Any, folder: Path, draft: Path, file: Path, search: tuple, how: str, runtime: str
) -> None:
    options = {"copy": ["--copy"], "draft": ["--draft", draft], "both": ["--copy", "--draft", draft]}[how]
    plain = run(folder, "--file", file, "--max-tokens", 20, "--runtime", runtime, *search)
    code, out, err = run(folder, "--file", file, "--max-tokens", 20, "--runtime", runtime, *search, *options)
    assert (code, out) == (0, plain[1])
    assert re.fullmatch(r"deepnarrow: \d+ tokens in \d+ steps, \d+ of \d+ drafted tokens right \(\d+ %\)\n", err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--choices", "a,b", "--regex", "a"], "--choices and --regex each say what an answer must be"),
        (["--choices", "a,b", "--beam", 2], "--choices ranks all of them exactly"),
        (["--choices-file", "x", "--temperature", 1], "--choices-file ranks all of them exactly"),
        (["--choices", "a,b", "--copy"], "ranks without generating"),
        (["--choices", "a,b", "--num-return", 0], "--num-return must be at least 1"),
        (["--copy", "--beam", 2], "do not go with --beam"),
        (["--choices", "a,,b"], "a choice is empty"),
        (["--choices", "a,a"], "the same to the model"),
        (["--regex", "("], "cannot be read"),
        (["--json-schema", "no/such/file.json"], "no/such/file.json"),
        (["--draft", "no/such/model"], "no folder no/such/model"),
    ],
)
def test_mistakes_teach(run: Any, folder: Path, options: list, message: str) -> None:
    code, out, err = run(folder, "bee", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_draft_of_another_vocabulary_is_refused(run: Any, folder: Path, tmp_path: Path) -> None:
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v384"))
    initialise(model, seed=1)
    save_model(model, tokenizer.ByteTokenizer(sentinels=100), tmp_path / "other")
    code, _, err = run(folder, "bee", "--draft", tmp_path / "other")
    assert code == 2
    assert "has another vocabulary" in err


def test_what_was_asked() -> None:
    assert not Asked().anything
    assert Asked(choices="").ranks
    assert Asked(copy=True).drafts
    assert Asked(regex="").constrains
