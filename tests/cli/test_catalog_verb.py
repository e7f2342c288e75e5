"""`deepnarrow catalog`, as a program and as a person meet it."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from deepnarrow.cli import main
from deepnarrow.shapes import entries


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the verb; give its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["catalog", *arguments])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


def names(out: str) -> list[str]:
    return [row["name"].removeprefix("t5-efficient-") for row in json.loads(out)]


def test_list_shows_everything_within_100_columns(run: Any) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    for entry in entries():
        assert re.search(rf"^ {re.escape(entry.name)} ", out, re.MULTILINE), entry.name
    assert "174 of 174 checkpoints" in out


def test_filters_and_orders(run: Any) -> None:
    _, out, _ = run("list", "--family", "base", "--max-params", "160M", "--sort", "params", "--json")
    rows = json.loads(out)
    sizes = [row["parameters"] for row in rows]
    assert sizes == sorted(sizes)
    assert max(sizes) <= 160_000_000
    assert rows[0]["id"] == "google/t5-efficient-base-nl2"
    _, out, _ = run("list", "--min-params", "2.8b", "--max-params", "3B", "--json")
    assert names(out) == ["xl", "t5-3b-ssm", "t5-3b-ssm-nq", "t5-3b-ssm-nqo"]
    _, out, _ = run("search", "t5-efficient-mini", "--sort", "name", "--json")
    assert names(out) == ["mini", "mini-nl6", "mini-nl8", "mini-nl12", "mini-nl24"]
    _, out, _ = run("list", "--sort", "params", "--json")
    assert json.loads(out)[-1]["parameters"] is None  # what is unknown stands last


def test_search(run: Any) -> None:
    _, out, _ = run("search", "natural_questions")
    assert re.search(r"t5-3b-ssm-nq .*exact match 33\.2", out)
    assert re.search(r"t5-3b-ssm-nqo .*exact match 31\.7", out)
    assert "2 of 174" in out
    code, out, _ = run("search", "no", "such", "thing")
    assert code == 0
    assert "Nothing in the catalogue" in out
    assert json.loads(run("search", "no such thing", "--json")[1]) == []


def test_show(run: Any) -> None:
    _, out, _ = run("show", "small-el16-dl2")
    for text in ("google/t5-efficient-small-el16-dl2", "75,190,784", "75.21 M parameters", "300.83 MB", "524,288 steps",
                 "d_kv 32", "apache-2.0", "arXiv:2109.10686", "Sources"):  # fmt: skip
        assert text in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    _, out, _ = run("show", "google/t5-3b-ssm-nqo")
    for text in ("31.7 exact match", "salient span masking", "20,000 steps", "34.8 google/t5-11b-ssm-nqo"):
        assert text in out
    _, out, _ = run("show", "base-sh")
    for text in ("not settled", "Read here as", "-67.856", "-95.87"):
        assert text in out


def test_show_as_json_has_every_field(run: Any) -> None:
    row = json.loads(run("show", "base-dl2", "--json")[1])
    assert row["parameters"] == 128508672
    assert row["card"] == {"parameters_millions": 128.52, "fp32_mb": 514.09, "half_mb": 257.05}
    assert row["stages"][0]["datasets"] == ["c4"]
    assert row["sources"]["card"] == "model card"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "small-el16dl2"], "did you mean t5-efficient-small-el16-dl2"),
        (["list", "--family", "smal"], "unknown family 'smal'; did you mean small"),
        (["list", "--max-params", "100X"], "cannot read '100X' as a size; write a number such as 100M"),
        (["search", "nl4", "--min-params", "-1"], "cannot read '-1' as a size"),
    ],
)
def test_mistakes_are_one_line(run: Any, arguments: list[str], says: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert says in err


def test_it_needs_neither_torch_nor_numpy_and_has_two_names() -> None:
    script = (
        "import sys\nfrom deepnarrow.cli import main\n"
        "try: main(['catalogue', 'list', '--family', 'mini'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "t5-efficient-mini-nl24" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["search"]])
def test_help_has_an_example_and_the_true_number(run: Any, command: list[str]) -> None:
    _, out, _ = run(*command, "--help")
    assert "Example:\n    deepnarrow catalog " in out
    assert command or f"{len(entries())} checkpoints" in out
