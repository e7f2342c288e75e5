"""What is kept stands for an evaluation of just that: the same weights, items and protocol, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.measure.judging import kept
from deepnarrow.measure.judging.items import fingerprint, read_numbers, write_numbers
from deepnarrow.measure.judging.judge import Wanted, data_of, judge, split_of
from deepnarrow.measure.judging.subject import seeds_in, subject, tasks_for, torch_way
from deepnarrow.model.folder import save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair, own
from deepnarrow.text.tokenizer import ByteTokenizer

Ask = Callable[..., Wanted]


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "seeds" / "seed-0", tmp_path / "run"))


def test_a_run_knows_its_task_and_its_place(run: Path) -> None:
    one = subject(run)
    assert [task.name for task in one.tasks] == ["sst2"]
    assert one.home == run / "evaluations"
    assert one.checkpoint == "step-00000030"
    assert tasks_for(one, None)[0] is tasks.get("sst2")
    assert [task.name for task in tasks_for(one, "rte, boolq")] == ["rte", "boolq"]


def test_what_is_kept_comes_back_whole(run: Path, wanted: Ask) -> None:
    made = judge(subject(run), wanted(likelihood=True))
    assert not made.reused
    assert made.kept.folder == run / "evaluations" / "sst2.validation"
    again = kept.read(made.kept.folder)
    assert again == made.kept
    scores = json.loads((again.folder / "scores.json").read_text())
    for key in ("versions", "machine", "commit", "date", "data", "device"):
        assert key in scores
    assert scores["model"]["shape"] == str(subject(run).shape)
    assert scores["model"]["checkpoint"] == "step-00000030"
    assert "validation.jsonl (sha256" in scores["data"]
    rows = [json.loads(line) for line in (again.folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(24))
    assert set(rows[0]["probabilities"]) == {"negative", "positive"}
    assert rows[0]["log_likelihood"] < 0


def test_it_is_reused_and_only_then(run: Path, wanted: Ask) -> None:
    first = judge(subject(run), wanted())
    assert judge(subject(run), wanted()) == (first.kept, True)
    assert judge(subject(run), wanted(batch=3)).reused  # the batch decides nothing
    assert not judge(subject(run), wanted(), again=True).reused
    assert not judge(subject(run), wanted(likelihood=True)).reused
    assert judge(subject(run), wanted(likelihood=True)).reused
    assert judge(subject(run), wanted()).reused  # what holds more serves too
    assert not judge(subject(run), wanted(limit=9)).reused
    assert not judge(subject(run), wanted(as_t5=True)).reused
    assert not judge(subject(run, torch_way(dtype="bfloat16")), wanted()).reused
    assert sorted(path.name for path in (run / "evaluations").iterdir()) == [
        "sst2.validation", "sst2.validation.bfloat16", "sst2.validation.limit-9", "sst2.validation.t5",
    ]  # fmt: skip


def test_other_weights_replace_it_and_other_items_do_not(run: Path, runs: Path, wanted: Ask) -> None:
    first = judge(subject(run), wanted()).kept
    shutil.copytree(runs / "short" / "checkpoints" / "step-00000001", run / "checkpoints" / "step-00000099")
    (run / "checkpoints.json").write_text('{"last": "step-00000099"}')
    second = judge(subject(run), wanted())
    assert not second.reused
    assert second.kept.folder == first.folder
    assert second.kept.evaluation.predictions != first.evaluation.predictions
    third = judge(subject(run), wanted(data=runs / "other.jsonl"))
    assert third.kept.evaluation.n == 20
    assert third.kept.folder.name == f"sst2.validation.items-{third.kept.items[:8]}"
    assert judge(subject(run), wanted()).reused
    assert judge(subject(run), wanted(data=runs / "other.jsonl")).reused


def test_a_checkpoint_by_name_has_a_folder_of_its_own(run: Path, wanted: Ask) -> None:
    folder = run / "checkpoints" / "step-00000030"
    found = judge(subject(folder), wanted()).kept.folder
    assert found == run / "evaluations" / "sst2.validation.step-00000030"


def test_a_model_that_is_no_run_is_kept_here(
    runs: Path, wanted: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = subject(runs / "blank")
    found = judge(one, wanted()).kept.folder
    assert found.parent.parent == Path("evaluations")
    assert found.parent.name.endswith(one.weights[:8])
    assert judge(subject(runs / "blank"), wanted()).reused
    elsewhere = judge(subject(runs / "blank"), wanted(), out=tmp_path / "there").kept.folder
    assert elsewhere == tmp_path / "there" / "sst2.validation"


def test_a_broken_one_is_told_and_made_again(run: Path, wanted: Ask) -> None:
    folder = judge(subject(run), wanted()).kept.folder
    lines = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    (folder / "predictions.jsonl").write_text("".join(lines[:-3]))
    with pytest.raises(UserError, match="21 of 24 items; evaluate with --again"):
        judge(subject(run), wanted())
    assert judge(subject(run), wanted(), again=True).kept.evaluation.n == 24
    (folder / "scores.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="another version"):
        kept.read(folder)
    (folder / "scores.json").unlink()
    with pytest.raises(UserError, match="is no kept evaluation"):
        judge(subject(run), wanted())


def test_own_data_needs_no_name(runs: Path, tmp_path: Path) -> None:
    """A run of a user's own file makes its task again, and finds its rows where they were."""
    rows = [{"input": f"say {n}", "target": "ab"[n % 2]} for n in range(200)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = own.own_task(tmp_path / "mine.jsonl")
    shutil.copytree(runs / "short", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["origin"] |= {"task": task.name, "task_spec": own.spec(task)}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    one = subject(tmp_path / "run")
    [found] = tasks_for(one, None)
    assert (found.name, found.labels) == ("mine", ("a", "b"))
    judged = judge(one, Wanted(task=found, split=split_of(found, None, None))).kept
    assert judged.evaluation.n == len(tasks.load(task, "validation").pairs)
    assert judged.identity["task_spec"]["kind"] == "labels"
    assert [task.name for task in tasks_for(one, "mine")] == ["mine"]


def test_seeds_of_one_command(runs: Path) -> None:
    assert [path.name for path in seeds_in(runs / "seeds")] == ["seed-0", "seed-1"]
    assert seeds_in(runs / "short") == []


def test_a_model_without_a_task_must_be_told_one(runs: Path) -> None:
    with pytest.raises(UserError, match="name one with --task"):
        tasks_for(subject(runs / "blank"), None)


def test_several_tasks_have_a_folder_each(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "rte.jsonl").touch()
    assert data_of(tasks.get("sst2"), tmp_path, alone=False) == tmp_path / "sst2"
    assert data_of(tasks.get("rte"), tmp_path, alone=False) == tmp_path / "rte.jsonl"
    assert data_of(tasks.get("cola"), tmp_path, alone=True) == tmp_path
    with pytest.raises(UserError, match="has no folder cola"):
        data_of(tasks.get("cola"), tmp_path, alone=False)


def test_numbers_of_items(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "dirty.json"
    write_numbers(path, [4, 2], items=fingerprint(pairs), task="sst2")
    assert read_numbers(path, items=fingerprint(pairs), n=24) == {2, 4}
    with pytest.raises(UserError, match="other items"):
        read_numbers(path, items=fingerprint(pairs[1:]), n=23)
    (tmp_path / "plain.txt").write_text("3\n7\n")
    assert read_numbers(tmp_path / "plain.txt", items="", n=8) == {3, 7}
    with pytest.raises(UserError, match="'7', but the 7 items"):
        read_numbers(tmp_path / "plain.txt", items="", n=7)
    with pytest.raises(UserError, match="no such file"):
        read_numbers(tmp_path / "absent.txt", items="", n=7)


def test_the_weights_are_the_model_alone(runs: Path, tmp_path: Path) -> None:
    """Two seeds differ; the optimizer's state and a copy's place do not matter."""
    first, second = subject(runs / "seeds" / "seed-0"), subject(runs / "seeds" / "seed-1")
    assert first.weights != second.weights
    copy = Path(shutil.copytree(first.folder, tmp_path / "copy"))
    (copy / "optimizer.safetensors").unlink()
    (copy / "state.json").unlink()
    assert subject(copy).weights == first.weights
    model = T5(parse("tiny-nl1-dm32-ff64-nh2-kv16-v384"))
    initialise(model, seed=5)
    save_model(model, ByteTokenizer(), tmp_path / "another")
    assert subject(tmp_path / "another").weights != subject(runs / "blank").weights
