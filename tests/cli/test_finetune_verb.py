"""`deepnarrow finetune` from the outside."""

import json
from pathlib import Path

import pytest

from deepnarrow.cli import main
from deepnarrow.files import read_json, read_json_lines
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import load

Capture = pytest.CaptureFixture[str]
QUICK = ("--batch", "8", "--input-length", "40", "--learning-rate", "0.02", "--no-tensorboard", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = T5(parse("tiny-dm32-ff64-kv16-nh2-nl2-v384"))
    initialise(made, 0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(made, load("bytes"), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 80), ("validation", 20)):
        rows = [{"sentence": f"{'good' if n % 2 else 'bad'} film {n}", "label": n % 2} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", *map(str, arguments)])
    return int(stopped.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    return error


def test_learns_and_marks_the_best_by_the_main_metric(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = (model, "--task", "sst2", "--data", data, "--out", out, "--steps", 60, "--eval-every", 20, *QUICK)
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "accuracy 100.00" in said
    assert f"next: deepnarrow evaluate {out} --task sst2 --data {data}" in said
    rows = [row for row in read_json_lines(out / "log.jsonl") if "accuracy" in row]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert all("held_out_loss" in row for row in rows)
    best = max(rows, key=lambda row: (row["accuracy"], -row["step"]))["step"]
    assert open_model(out).origin.endswith(f"step-{best:08d}")
    assert run(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == {"step": best, "metric": "accuracy", "value": 100.0}


def test_a_single_file_and_a_limit(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (model, "--task", "sst2", "--data", data / "train.jsonl", "--out", out, "--steps", 2, *QUICK)
    assert run(*command, "--limit", 10) == 0
    found = read_json(out / "run.json")
    assert found["origin"]["pairs"] == 10
    assert read_json(out / "checkpoints.json")["best"] is None


def test_a_validation_file(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    files = ("--data", data / "train.jsonl", "--validation", data / "validation.jsonl")
    assert run(model, "--task", "sst2", *files, "--out", out, "--steps", 2, "--eval-every", 1, *QUICK) == 0
    assert len([row for row in read_json_lines(out / "log.jsonl") if "accuracy" in row]) == 2


def test_lengths_are_the_tasks_own_unless_given(model: Path, data: Path, tmp_path: Path) -> None:
    from deepnarrow import tasks

    out = tmp_path / "run"
    words = ("--data", data, "--out", out, "--steps", 1, "--batch", 2, "--no-tensorboard")
    assert run(model, "--task", "sst2", *words) == 0
    config = read_json(out / "run.json")["config"]
    task = tasks.get("sst2")
    assert (config["input_length"], config["target_length"]) == (task.input_tokens, task.target_tokens)


def test_mistakes_take_one_line(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "run")
    task = ("--task", "sst2", "--data", data)
    assert "did you mean" in refused(capsys, model, "--task", "sst", "--data", data, *out)
    assert "no folder" in refused(capsys, "./nowhere", *task, *out)
    assert "is a shape, which has no weights" in refused(capsys, "tiny-dl2", *task, *out)
    assert "steps must be from 1" in refused(capsys, model, *task, *out, "--steps", 0)
    assert "unknown recipe" in refused(capsys, model, *task, *out, "--recipe", "t5_efficient")
    assert "holds no dev.jsonl" in refused(capsys, model, *task, *out, "--split", "dev")
    lone = ("--task", "sst2", "--data", data / "train.jsonl")
    assert "other examples than those of" in refused(capsys, model, *lone, *out, "--eval-every", 2)
    assert not (tmp_path / "run" / "run.json").exists()


def rows(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_mixture_of_tasks_is_chosen_by_their_average(model: Path, tmp_path: Path, capsys: Capture) -> None:
    for split, count in (("train", 40), ("validation", 10)):
        films = [{"sentence": f"{'good' if n % 2 else 'bad'} film {n}", "label": n % 2} for n in range(count)]
        rows(tmp_path / "tasks" / "sst2" / f"{split}.jsonl", films)
        said = [{"sentence": f"{'we go' if n % 2 else 'go we'} {n}", "label": n % 2} for n in range(count)]
        rows(tmp_path / "tasks" / "cola" / f"{split}.jsonl", said)
    out = tmp_path / "run"
    command = (model, "--task", "sst2,cola", "--data", tmp_path / "tasks", "--out", out, "--steps", 30, *QUICK)
    assert run(*command, "--eval-every", 15, "--mixture", "size,limit=20") == 0
    assert f"evaluate {out} --task sst2,cola --data {tmp_path / 'tasks'}" in capsys.readouterr().out
    judged = [row for row in read_json_lines(out / "log.jsonl") if "average" in row]
    assert [row["step"] for row in judged] == [15, 30]
    for row in judged:
        assert row["average"] == pytest.approx((row["sst2/accuracy"] + row["cola/matthews"]) / 2)
    found = read_json(out / "run.json")
    assert (found["origin"]["task"], found["origin"]["pairs"]) == (["sst2", "cola"], [40, 40])
    assert found["config"]["mixture"] == "size,limit=20"


def test_a_file_of_ones_own_needs_no_code(model: Path, tmp_path: Path, capsys: Capture) -> None:
    from deepnarrow.tasks import own

    lines = [
        {"body": f"{'pay' if n % 2 else 'ship'} order {n}", "team": "money" if n % 2 else "post"} for n in range(80)
    ]
    file = rows(tmp_path / "tickets.jsonl", lines)
    out = tmp_path / "run"
    words = ("--task", file, "--input-template", "ticket: {body}", "--target-template", "{team}", "--out", out)
    assert run(model, *words, "--steps", 40, "--eval-every", 40, *QUICK) == 0
    said = capsys.readouterr().out
    assert "accuracy 100.00" in said
    assert f"next: deepnarrow evaluate {out}\n" in said
    spec = read_json(out / "run.json")["origin"]["task_spec"]
    assert own.from_spec(spec).labels == ("money", "post")
    assert "no such file" in refused(capsys, model, "--task", tmp_path / "gone.csv", "--out", tmp_path / "no")
    assert "body" in refused(capsys, model, *words[:3], "ticket: {boddy}", *words[4:6], "--out", tmp_path / "no")
    sst2 = ("--task", "sst2", "--input-template", "{sentence}", "--out", tmp_path / "no")
    assert "are for a file of your own" in refused(capsys, model, *sst2)


def test_several_seeds_in_one_command(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "runs"
    command = (model, "--task", "sst2", "--data", data, "--out", out, "--steps", 3, *QUICK)
    assert run(*command, "--seeds", "3,5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["run"] for one in found] == [str(out / "seed-3"), str(out / "seed-5")]
    assert [read_json(out / f"seed-{n}" / "run.json")["config"]["seed"] for n in (3, 5)] == [3, 5]
    one, other = ((out / f"seed-{n}/checkpoints/step-00000003/model.safetensors").read_bytes() for n in (3, 5))
    assert one != other
    assert run(*command[:5], *command[5:], "--seed", 3, "--out", tmp_path / "alone") == 0
    assert (tmp_path / "alone/checkpoints/step-00000003/model.safetensors").read_bytes() == one
    capsys.readouterr()
    assert "not both" in refused(capsys, *command, "--seeds", "2", "--seed", 1)
    assert "cannot read --seeds" in refused(capsys, *command, "--seeds", "a,b")
    assert "is a single run" in refused(capsys, *command, "--out", tmp_path / "alone", "--seeds", "2")


def test_early_stopping_and_a_named_metric(model: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    command = (model, "--task", "cola", "--data", data, "--out", out, "--steps", 200, "--eval-every", 10, *QUICK)
    assert run(*command, "--patience", 2, "--best", "accuracy", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["metric"] == "accuracy"
    assert found["step"] == found["best"]["step"] + 20 < 200
    assert "gives 'f1'" in refused(capsys, *command, "--best", "f1")
    assert "patience counts evaluations" in refused(capsys, *command[:7], *QUICK, "--patience", 2)


def test_the_closed_book_protocols_choose_their_splits(model: Path, tmp_path: Path) -> None:
    for split, count in (("train", 30), ("validation", 4)):
        asked = [{"question": f"who wrote book {n}", "answers": [f"writer {n}"]} for n in range(count)]
        rows(tmp_path / "nq" / f"{split}.jsonl", asked)
    for recipe, pairs, judged in (("ssm_nq", 34, 0), ("ssm-nqo", 30, 2)):
        out = tmp_path / recipe
        words = ("--task", "nq_open", "--data", tmp_path / "nq", "--recipe", recipe, "--steps", 2, "--batch", 8)
        every = ("--eval-every", 1) if judged else ()
        assert (
            run(model, *words, *every, "--dtype", "float32", "--no-tensorboard", "--device", "cpu", "--out", out) == 0
        )
        assert read_json(out / "run.json")["origin"]["pairs"] == pairs
        assert len([row for row in read_json_lines(out / "log.jsonl") if "exact_match" in row]) == judged


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_light_adaptation_is_a_run_like_any_other(
    kind: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = (
        ("--lora-targets", "all", "--lora-rank", 4)
        if kind == "lora"
        else ("--prompt-length", 6, "--prompt-init", "labels")
    )
    command = (model, "--task", "sst2", "--data", data, "--out", out, "--steps", 4, "--eval-every", 2, *QUICK)
    assert run(*command, "--adapt", kind, *flags) == 0
    assert "accuracy" in capsys.readouterr().out
    assert open_model(out).adapter is not None
    assert read_json(out / "run.json")["config"]["adapt"] == kind
    for verb in (["evaluate", out, "--task", "sst2", "--data", data], ["generate", out, "sst2 sentence: a film"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in verb])
        assert not stopped.value.code, capsys.readouterr().err
    assert run(*command, "--adapt", kind, *flags, "--json") == 0  # nothing is left to do
    capsys.readouterr()
    assert "another config: adapt" in refused(capsys, *command)


def test_mistakes_of_light_adaptation(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (model, "--task", "sst2", "--data", data, "--out", tmp_path / "run", *QUICK)
    assert "lora_rank means something with adapt 'lora' only" in refused(capsys, *command, "--lora-rank", 2)
    assert "did you mean prompt" in refused(capsys, *command, "--adapt", "promt")
    assert "LoRA cannot adapt 'qv'" in refused(capsys, *command, "--adapt", "lora", "--lora-targets", "qv")
    assert "unknown prompt init" in refused(capsys, *command, "--adapt", "prompt", "--prompt-init", "words")
    assert "--parallel ddp" in refused(capsys, *command, "--adapt", "lora", "--parallel", "fsdp")
    assert not (tmp_path / "run").exists()
