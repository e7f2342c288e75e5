"""`deepnarrow shapes`, as a program and as a person meet it."""

import json
import os
import re
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import pytest

from deepnarrow.cli import main
from deepnarrow.shapes import cost, parse

NAMES = ["google/t5-efficient-base-dl2", "small-el16-dl2", "large-dm2000"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the verb; give its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["shapes", *arguments])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


def test_json_is_exact(run: Any) -> None:
    code, out, err = run(*NAMES, "--json")
    assert (code, err) == (0, "")
    first, second, third = json.loads(out)
    assert first["name"] == NAMES[0]
    assert first["shape"] == "base-dl2"
    assert first["parameters"] == 128508672
    assert first["published"] == [NAMES[0]]
    assert second["parameters"] == 75190784
    assert third["dimensions"]["d_model"] == 2048
    for row in (first, second, third):
        whole = cost(parse(row["shape"]))
        assert row["flops"]["forward"] == whole.forward_flops
        assert row["flops"]["training_step"] == 3 * row["flops"]["forward"]
        assert row["bytes"]["weights"]["float32"] == 4 * row["parameters"]
        assert row["bytes"]["training"]["adamw"]["total"] == 16 * row["parameters"]
        assert (
            sum(row["parameters_by_part"][part] for part in ("embedding", "encoder", "decoder", "output"))
            == (row["parameters"])
        )


def test_lengths_and_batch_change_work_and_caches_not_weights(run: Any) -> None:
    short = json.loads(run("small", "--json")[1])[0]
    long = json.loads(run("small", "--input-length", "1024", "--target-length", "228", "--batch", "4", "--json")[1])[0]
    assert (long["input_length"], long["target_length"], long["batch"]) == (1024, 228, 4)
    assert long["flops"]["forward"] > 8 * short["flops"]["forward"]
    for cache in ("self_attention_cache", "cross_attention_cache"):
        assert long["bytes"][cache]["float32"] == 8 * short["bytes"][cache]["float32"]
    assert long["bytes"]["weights"] == short["bytes"]["weights"]


def test_the_table_compares_side_by_side(run: Any) -> None:
    code, out, _ = run(*NAMES)
    assert code == 0
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    assert re.search(r"base-dl2 +small-el16-dl2 +large-dm2000", out)
    assert re.search(r"total +128\.5 M +75\.19 M +0\.59x +1\.475 G +11\.48x", out)
    assert re.search(r"Layers, encoder \+ decoder +12 \+ 2 +16 \+ 2 +24 \+ 24", out)
    for row in ("without vocabulary", "training step", "int8", "cross-attention", "adafactor", "adamw, adamw_scale"):
        assert row in out
    assert "small-el16-dl2: published as google/t5-efficient-small-el16-dl2" in out


@pytest.mark.parametrize("width", ["50", "80", "100", "200"])
def test_many_shapes_fit_any_terminal(run: Any, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    names = ["tiny", "google/byt5-small", "base-sh", "small-kh2-skv", "v1_1-xxl", "t5-3b", "small-dl0", "xl-nl4"]
    _, out, _ = run(*names)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= min(100, int(width))
    assert "which is not settled" in " ".join(out.split())
    assert out.count("total") >= 2  # more than one table, since not all fit beside each other
    shown = "".join(out.split())
    for name in ("tiny", "base-sh", "small-kh2-skv", "v1_1-xxl", "small-dl0", "xl-nl4"):
        assert name in shown


def test_one_shape_has_no_ratios(run: Any) -> None:
    _, out, _ = run("small")
    assert "60.51 M" in out
    assert not re.search(r"\d x|\dx\b", out.split("Parameters")[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["smal"], "did you mean small"),
        (["small-ell6"], "cannot read 'ell6' in shape 'small-ell6'; did you mean el"),
        (["google/t5-efficient-base-dl3"], "no checkpoint 'google/t5-efficient-base-dl3' was released; did you mean"),
        (["small", "--batch", "0"], "batch must be at least 1, not 0"),
        (["small", "--input-length", "-3", "--json"], "input_length must be at least 1, not -3"),
    ],
)
def test_mistakes_are_one_line(run: Any, arguments: list[str], says: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert says in err


def test_it_needs_neither_torch_nor_numpy() -> None:
    script = (
        "import sys\nfrom deepnarrow.cli import main\n"
        "try: main(['shapes', *sys.argv[1:]])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    for extra in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *NAMES, *extra], capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("[]\n")


def processor_seconds(*command: str) -> float:
    """Best of five, since a busy machine may delay any single run."""
    taken = []
    for _ in range(5):
        before = getrusage(RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True, env={**os.environ, "COLUMNS": "100"})
        after = getrusage(RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def test_the_whole_process_takes_little_more_than_its_libraries() -> None:
    """It answers at once: 0.16 s where it was measured, 0.4 on a processor half as fast, of which imports are most."""
    libraries = processor_seconds(sys.executable, "-c", "import typer, typer._adapters, rich.console, rich.table")
    assert processor_seconds(sys.executable, "-m", "deepnarrow", "shapes", *NAMES) < 2.5 * libraries


def test_help_teaches_the_grammar(run: Any) -> None:
    _, out, _ = run("--help")
    assert "Example:\n    deepnarrow shapes base small-el16-dl2\n" in out
    assert "encoder and\n" in out or "encoder and decoder" in out
    assert max(map(len, out.splitlines())) <= 100
