"""`deepnarrow generate`, as a program, a pipe and a person meet it."""

import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from deepnarrow.cli import main
from deepnarrow.cli.generating import Stream, one_line
from deepnarrow.model.adapters import Base, save_prompt
from deepnarrow.model.decode import Beam, Greedy, Sample, generate
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes.shape import parse
from deepnarrow.text import tokenizer

TEXTS = ["a longer text that comes first", "bee", "Gr\u00fc\u00dfe an alle", "d", "and another of middling length"]


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


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the verb; give its exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["generate", *map(str, arguments)])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


@pytest.fixture
def prompts(folder: Path, tmp_path: Path) -> list[Path]:
    """Two soft prompts of unequal length over the model."""
    opened = open_model(folder)
    base = Base.of(opened.model, str(folder))
    for length in (3, 8):
        opened.model.prompt = torch.nn.Parameter(
            torch.randn(length, 32, generator=torch.Generator().manual_seed(length))
        )
        save_prompt(opened.model, base, tmp_path / f"prompt-{length}")
    return [tmp_path / "prompt-3", tmp_path / "prompt-8"]


def test_several_prompts_over_one_model(run: Any, folder: Path, prompts: list[Path], file: Path) -> None:
    alone = [run(prompt, "--file", file, "--max-tokens", 9)[1].splitlines() for prompt in prompts]
    assert alone[0] != alone[1]
    code, out, _ = run(folder, "--file", file, "--max-tokens", 9, "--prompt", prompts[0], "--prompt", prompts[1])
    assert code == 0
    wanted = [
        f"{name}\t{answer}" for pair in zip(*alone, strict=True) for name, answer in zip(prompts, pair, strict=True)
    ]
    assert out.splitlines() == wanted
    code, out, _ = run(folder, "bee", "--max-tokens", 9, "--prompt", prompts[1], "--json")
    found = json.loads(out)
    assert (found["prompt"], found["outputs"][0]["text"]) == (str(prompts[1]), alone[1][TEXTS.index("bee")])
    assert run(folder, "bee", "--max-tokens", 9, "--prompt", prompts[1], "--dtype", "bfloat16")[0] == 0


def test_a_prompt_of_another_model_is_refused(run: Any, folder: Path, prompts: list[Path], tmp_path: Path) -> None:
    other = T5(parse("tiny-nl1-dm32-ff64-kv8-v384-untied"))
    initialise(other, seed=5)
    save_model(other, tokenizer.load("bytes"), tmp_path / "other")
    code, _, err = run(tmp_path / "other", "bee", "--prompt", prompts[0])
    assert code == 2
    assert "trained over other weights" in err
    assert len(err.splitlines()) == 1
    code, _, err = run(folder, "bee", "--prompt", folder)
    assert code == 2
    assert "is not an adapter" in err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


def expected(folder: Path, texts: list[str], search: Any, tokens: int = 12) -> list[list[str]]:
    opened = open_model(folder)
    inputs = [[*opened.tokenizer.encode(text), 1] for text in texts]
    found = generate(opened.model, inputs, search, max_tokens=tokens, vocab_limit=384)
    return [[opened.tokenizer.decode(output.ids) for output in outputs] for outputs in found]


def test_one_text(run: Any, folder: Path) -> None:
    code, out, err = run(folder, TEXTS[0], "--max-tokens", 12)
    assert (code, err) == (0, "")
    assert out == expected(folder, TEXTS[:1], Greedy())[0][0] + "\n"
    assert len(out) > 3


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_a_file_is_answered_in_its_order(run: Any, folder: Path, file: Path, batch: int) -> None:
    code, out, _ = run(folder, "--file", file, "--max-tokens", 12, "--batch", batch)
    assert code == 0
    assert out.splitlines() == [answer for [answer] in expected(folder, TEXTS, Greedy())]


def test_standard_input_windows_lines_and_byte_order_mark(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    code, out, _ = run(folder, "--file", "-", "--max-tokens", 12, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["input"] for row in rows] == TEXTS
    assert [[o["text"] for o in row["outputs"]] for row in rows] == expected(folder, TEXTS, Greedy())


def test_json_has_scores_and_where_they_come_from(run: Any, folder: Path, file: Path) -> None:
    _, out, _ = run(folder, "--file", file, "--beam", 3, "--num-return", 2, "--max-tokens", 12, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [[o["text"] for o in row["outputs"]] for row in rows] == expected(folder, TEXTS, Beam(3, num_return=2))
    for row in rows:
        first, second = row["outputs"]
        assert row["model"] == str(folder)
        assert second["score"] <= first["score"] < 0
        assert 0 <= first["tokens"] <= 12


def test_sampling(run: Any, folder: Path, file: Path) -> None:
    options = ("--temperature", 1.2, "--top-p", 0.9, "--top-k", 40, "--seed", 3, "--num-return", 2)
    code, out, _ = run(folder, "--file", file, "--max-tokens", 12, *options)
    search = Sample(1.2, top_k=40, top_p=0.9, seed=3, num_return=2)
    assert code == 0
    assert out.splitlines() == [one_line(answer) for answers in expected(folder, TEXTS, search) for answer in answers]
    assert run(folder, "x y", "--top-k", 5, "--seed", 1)[1] != run(folder, "x y", "--top-k", 5, "--seed", 2)[1]
    assert run(folder, "x y", "--temperature", 0)[1] == run(folder, "x y")[1]


def test_length_penalty_reaches_the_search(run: Any, folder: Path) -> None:
    _, out, _ = run(folder, TEXTS[0], "--beam", 4, "--length-penalty", 0, "--max-tokens", 12, "--json")
    [found] = json.loads(out)["outputs"]
    assert [found["text"]] == expected(folder, TEXTS[:1], Beam(4, 0.0))[0]


def test_a_terminal_sees_the_answer_grow(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        seen: list[str]

        def isatty(self) -> bool:
            return True

        def flush(self) -> None:
            self.seen = [*getattr(self, "seen", []), self.getvalue()]

    whole = expected(folder, TEXTS[:1], Greedy())[0][0]
    for options, grows in [((), True), (("--json",), False), (("--beam", "2"), False)]:
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        run(folder, TEXTS[0], "--max-tokens", 12, *options)
        states = [text for text in dict.fromkeys(terminal.seen) if text]
        assert (len(states) > 5) == grows
        if grows:
            assert states[-1] == whole + "\n"
            assert all(later.startswith(sooner) for sooner, later in pairwise(states))


def test_a_character_is_streamed_whole_and_a_corrected_text_anew() -> None:
    class Halves:
        """Decodes like a tokenizer whose second id completes a character, and whose fourth changes the first."""

        def decode(self, ids: list[int]) -> str:
            return ["", "\ufffd", "\u00e9", "\u00e9t", "et\n"][len(ids)]

    out = io.StringIO()
    stream = Stream(Halves(), out)
    for id in range(3):
        stream(0, id)
    assert out.getvalue() == "\u00e9t"
    stream(0, 3)
    stream.end("et\n")
    assert out.getvalue() == "\u00e9t\net\\n\n"


def test_a_line_stays_a_line() -> None:
    assert one_line("a\nb\r\x1b[2J\x85\u2028c\td\u00e9") == r"a\nb\r\x1b[2J\x85\u2028c" + "\td\u00e9"


def test_a_real_terminal(folder: Path, file: Path) -> None:
    """Lines on the terminal, or a bar there and the lines in the file."""
    command = [sys.executable, "-m", "deepnarrow", "generate", str(folder), "--file", str(file), "--max-tokens", "12"]
    lines = [answer for [answer] in expected(folder, TEXTS, Greedy())]
    for redirected in (False, True):
        master, slave = pty.openpty()
        output = subprocess.PIPE if redirected else slave
        process = subprocess.Popen(
            command, stdout=output, stderr=slave, stdin=slave, env={**os.environ, "TERM": "xterm"}
        )
        os.close(slave)
        seen = b""
        with suppress(OSError):  # the other end is closed
            while part := os.read(master, 4096):
                seen += part
        written, _ = process.communicate(timeout=60)
        os.close(master)
        assert process.returncode == 0
        if redirected:
            assert written.decode().splitlines() == lines
            assert "5/5" in seen.decode()
        else:
            assert seen.decode().splitlines() == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text", "--beam", "2", "--temperature", "1"], "--beam searches, --temperature"),
        (["text", "--beam", "2", "--top-k", "4"], "use one or the other"),
        (["text", "--length-penalty", "2"], "add --beam 4"),
        (["text", "--num-return", "3"], "greedy decoding has one answer; for --num-return 3 add --beam 3"),
        (["text", "--num-return", "3", "--temperature", "0"], "same one"),
        (["text", "--num-return", "3", "--beam", "2"], "a beam of 2 can return 1 to 2 answers"),
        (["text", "--num-return", "0"], "--num-return must be at least 1"),
        (["text", "--beam", "0"], "at least 1, not 0"),
        (["text", "--top-p", "1.5"], "top_p must be above 0 and at most 1"),
        (["text", "--temperature", "nan"], "temperature"),
        (["text", "--max-tokens", "0"], "max_tokens must be at least 1"),
        (["text", "--batch", "0"], "batch must be at least 1"),
        (["text", "--seed", "-1", "--top-k", "2"], "seed must be 0 or more"),
        (["text", "--device", "gpu"], "unknown device"),
        (["text", "--dtype", "float16"], "float16"),
        (["text", "--file", "x"], "not both"),
        ([], "nothing to answer"),
        (["  "], "the text is empty"),
        (["\udcff"], "not valid UTF-8"),
        (["--file", "no/such/file"], "No such file or directory: no/such/file"),
    ],
)
def test_mistakes_are_one_line(run: Any, folder: Path, arguments: list[str], message: str) -> None:
    code, out, err = run(folder, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; it should have one text a line"),
        (b"\n \n", "is empty"),
        (b"one\n\nthree\n", "line 2 is empty"),
        (b"one\ntwo \xff\n", "is not UTF-8 text (line 2)"),
    ],
)
def test_broken_files_are_one_line(run: Any, folder: Path, tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "broken.txt"
    path.write_bytes(data)
    code, out, err = run(folder, "--file", path)
    assert (code, out) == (2, "")
    assert message in err
    assert "broken.txt" in err
    assert len(err.splitlines()) == 1


def test_a_model_without_tokenizer(run: Any, folder: Path, tmp_path: Path) -> None:
    save_model(open_model(folder).model, None, tmp_path / "bare")
    code, out, err = run(tmp_path / "bare", "text")
    assert (code, out) == (2, "")
    assert "has no tokenizer" in err
    assert len(err.splitlines()) == 1


def test_an_encoder_alone(run: Any, tmp_path: Path) -> None:
    model = T5(parse("tiny-el1-dl0-dm32-ff64-kv8-v384"))
    initialise(model, seed=0)
    save_model(model, tokenizer.load("bytes"), tmp_path / "encoder")
    code, _, err = run(tmp_path / "encoder", "text")
    assert code == 2
    assert "encoder alone" in err
    assert len(err.splitlines()) == 1
