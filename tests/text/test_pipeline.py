"""Pipelines: what they leave, under every executor, whatever the workers, whatever interrupts them."""

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="datatrove is in the extra `data`")

from deepnarrow.errors import UserError
from deepnarrow.text import pipeline_executors
from deepnarrow.text.building import WORK, build
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.cleaning import C4, Settings
from deepnarrow.text.corpus import MANIFEST, open_corpus
from deepnarrow.text.pipeline import Execution, groups_of

BYTES = ByteTokenizer()
SENTENCES = [
    f"The {animal} {verb} {where} the {place} on most days."
    for animal in ("dog", "cat", "horse", "heron", "old man")
    for verb in ("sleeps", "walks", "waits")
    for where in ("near", "behind", "above")
    for place in ("river", "mill", "church", "market")
]


def page(seed: int, length: int = 6) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.sample(SENTENCES, 2)) for _ in range(length))


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Three files; the third repeats a page of the first, and holds pages and lines that C4's rules drop."""
    (tmp_path / "in").mkdir()
    rubbish = [
        "Menu\nHome\nAbout us",
        "Too short a page, this one is.",
        page(50) + "\nA function { has brackets }.",
        " ",
    ]
    return [
        write(tmp_path / "in" / "a.jsonl", [page(n) for n in range(8)]),
        write(tmp_path / "in" / "b.jsonl", [page(n) + "\nHome | News" for n in range(8, 14)]),
        write(tmp_path / "in" / "c.jsonl", [page(3), *rubbish, page(20), page(3) + "\n" + page(21)]),
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def dropped(folder: Path) -> dict[str, dict]:
    cleaning = open_corpus(folder).cleaning
    assert cleaning is not None
    return {rule["rule"]: rule for rule in cleaning["rules"]}


def texts_of(folder: Path) -> list[str]:
    corpus = open_corpus(folder)
    return [BYTES.decode(corpus.document(number).tolist()) for number in range(corpus.documents)]


def test_c4_from_sources_to_shards_whatever_the_workers(tmp_path: Path, sources: list[Path]) -> None:
    settings = Settings(language=None)
    one = build(sources, BYTES, tmp_path / "one", cleaning=settings, tasks=3, shard_tokens=1000, held_out=0.1)
    build(
        sources, BYTES, tmp_path / "two", cleaning=settings, tasks=3, shard_tokens=1000, held_out=0.1,
        execution=Execution(workers=2),
    )  # fmt: skip
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not (tmp_path / "one" / WORK).exists()
    one.verify()

    found = dropped(tmp_path / "one")
    assert list(found) == [*(rule.name for rule in C4[:]), "duplicate sentences"]
    assert found["no end mark"]["lines"] == 9  # three of the menu, six of b.jsonl
    assert found["few sentences"]["documents"] == 2
    assert found["curly bracket"]["documents"] == 1
    assert found["duplicate sentences"]["documents"] == 1  # page 3 alone, on its second coming
    assert {rule["by"] for rule in found.values()} == {"deepnarrow", "datatrove"}
    assert one.cleaning is not None
    assert one.cleaning["read"]["documents"] == 20  # a blank document is none
    assert one.cleaning["kept"]["documents"] == 16
    held_out = one.held_out()
    assert held_out is not None
    kept = sorted(texts_of(tmp_path / "one") + texts_of(tmp_path / "one" / "held_out"))
    # page 21 stood behind another copy of page 3: it alone is left of its document
    assert kept == sorted([page(n) for n in [*range(14), 20, 21]])
    assert [source.documents for source in one.sources] != [0, 0, 0]
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["plan"]["pipeline"] == {
        "name": "c4", "language": None, "dedup": "sentences", "bad_words": None, "tasks": 3,
    }  # fmt: skip

    for change, message in (
        (Settings(language="en"), "--language None"),
        (Settings(language=None, dedup="none"), "--dedup sentences"),
        (None, "--pipeline c4"),
    ):
        with pytest.raises(UserError, match=message):
            build(sources, BYTES, tmp_path / "one", cleaning=change, tasks=3, shard_tokens=1000, held_out=0.1)


@pytest.mark.parametrize("dedup", ["exact", "lines", "minhash", "none"])
def test_deduplication(tmp_path: Path, dedup: str) -> None:
    base = page(1, length=40)
    near = base.replace("The dog", "A dog", 1) + "\nAnd that was all of it, it seems."
    lines = page(2, length=4)
    first, second = write(tmp_path / "a.jsonl", [base, lines]), write(tmp_path / "b.jsonl", [base, near, page(4)])
    settings = Settings(pipeline="none", language=None, dedup=dedup)
    build([first, second], BYTES, tmp_path / "out", cleaning=settings, tasks=2)
    kept = texts_of(tmp_path / "out")
    if dedup == "none":
        assert kept == [base, lines, base, near, page(4)]
    elif dedup == "exact":
        assert kept == [base, lines, near, page(4)]
    elif dedup == "minhash":
        assert len(kept) == 3
        assert lines in kept
        assert page(4) in kept
    else:
        assert kept[0] == base
        every = [line for text in kept for line in text.split("\n")]
        assert len(set(every)) == len(every) - (len(base.split("\n")) - len(set(base.split("\n"))))
    assert open_corpus(tmp_path / "out").pipeline == {
        "name": "none", "language": None, "dedup": dedup, "bad_words": None, "tasks": 2,
    }  # fmt: skip


def test_language_and_bad_words_come_last(tmp_path: Path) -> None:
    pytest.importorskip("langdetect", reason="langdetect is in the extra `data`")
    german = "Der Fluss liegt hinter der alten Kirche im Dorf. Niemand wei\u00df, warum er dort liegt. Er bleibt da."
    source = write(tmp_path / "a.jsonl", [page(1), german, page(2) + "\nSome darn thing is on this page."])
    settings = Settings(bad_words=("darn",), dedup="none")
    corpus = build([source], BYTES, tmp_path / "out", cleaning=settings)
    assert texts_of(tmp_path / "out") == [page(1)]
    assert dropped(tmp_path / "out")["language is not en"]["documents"] == 1
    assert dropped(tmp_path / "out")["bad words"]["documents"] == 1
    assert corpus.pipeline is not None
    assert len(corpus.pipeline["bad_words"]) == 64
    with pytest.raises(UserError, match="and a list of bad words"):
        build([source], BYTES, tmp_path / "out", cleaning=Settings(dedup="none"))


def test_a_mistake_in_a_task_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(UserError, match=r"a\.jsonl:2 is not valid JSON"):
        build([source], BYTES, tmp_path / "out", cleaning=Settings(language=None, dedup="none"))
    write(source, ["Menu", "Home"])
    with pytest.raises(UserError, match="left none of 2 documents"):
        build([source], BYTES, tmp_path / "out", cleaning=Settings(language=None, dedup="none"))
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("settings", "execution", "message"),
    [
        (Settings(pipeline="c5"), Execution(), "no pipeline named c5"),
        (Settings(dedup="sentence"), Execution(), "did you mean sentences"),
        (Settings(), Execution("locale"), "did you mean local"),
        (Settings(), Execution(workers=0), "at least 1, not 0"),
        (Settings(language="english"), Execution(), "knows no language 'english'"),
    ],
)
def test_wrong_names(tmp_path: Path, settings: Settings, execution: Execution, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(["nowhere.txt"], BYTES, tmp_path / "out", cleaning=settings, execution=execution)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 100])
def test_groups_hold_every_source_once_and_in_order(tasks: int) -> None:
    for seed in range(20):
        draw = random.Random(seed)
        sizes = [draw.choice([None, 0, 1, 10, 1000]) for _ in range(draw.randint(1, 30))]
        groups = groups_of(sizes, tasks)
        assert [number for group in groups for number in group] == list(range(len(sizes)))
        assert all(groups)
        assert len(groups) == min(tasks, len(sizes))
        assert groups_of(sizes, len(groups)) == groups


CHILD = """
import sys
from deepnarrow.text.building import build
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.cleaning import Settings
from deepnarrow.text.pipeline import Execution

if __name__ == "__main__":
    build(
        sys.argv[2:], ByteTokenizer(), sys.argv[1], cleaning=Settings(language=None), tasks=3, shard_tokens=1000,
        held_out=0.1, execution=Execution(workers=2),
    )
"""


def test_killed_in_the_second_stage_equals_never_killed(tmp_path: Path, sources: list[Path]) -> None:
    out, command = tmp_path / "killed", child_command(tmp_path)
    child = subprocess.Popen([*command, str(out), *map(str, sources)])
    while not any(out.glob(f"{WORK}/2-sign/*")):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="unfinished; run the same"):
        open_corpus(out)
    done = {file: file.stat().st_mtime_ns for file in out.glob(f"{WORK}/1-clean/completions/*")}
    assert len(done) == 3
    child = subprocess.Popen([*command, str(out), *map(str, sources)])
    while not any(out.glob(f"{WORK}/3-*/*")):
        assert child.poll() is None
        time.sleep(0.01)
    assert {file: file.stat().st_mtime_ns for file in done} == done, "what was finished is not done again"
    assert child.wait() == 0
    settings = Settings(language=None)
    build(sources, BYTES, tmp_path / "whole", cleaning=settings, tasks=3, shard_tokens=1000, held_out=0.1)
    assert contents(out) == contents(tmp_path / "whole")


def child_command(folder: Path) -> list[str]:
    script = folder / "child.py"
    script.write_text(CHILD)
    return [sys.executable, str(script)]


@pytest.mark.slow
def test_killed_at_random_moments_equals_never_killed(tmp_path: Path, sources: list[Path]) -> None:
    """From its first files on: in every stage, and between them."""
    command = child_command(tmp_path)
    child = subprocess.Popen([*command, str(tmp_path / "whole"), *map(str, sources)])
    began = wait_for(tmp_path / "whole", child)
    assert child.wait() == 0
    whole, took = contents(tmp_path / "whole"), time.monotonic() - began
    out = tmp_path / "killed"
    draw = random.Random(15)
    done = 0
    while True:
        child = subprocess.Popen([*command, str(out), *map(str, sources)])
        if done < 15:
            wait_for(out, child)
            time.sleep(draw.uniform(0, took))
            child.send_signal(signal.SIGKILL)
        code = child.wait()
        if code == 0 and done < 3:  # sooner than the first time, on a machine that others use too: too few kills
            shutil.rmtree(out)
            took /= 2
            continue
        if code == 0:
            break
        assert code == -signal.SIGKILL
        done += 1
        if not (out / MANIFEST).exists():  # it is there if the last thing missing was the end of the process
            with pytest.raises(UserError):
                open_corpus(out)  # never half a corpus
    assert contents(out) == whole


def wait_for(folder: Path, child: subprocess.Popen) -> float:
    """When a child, still running, has made its folder."""
    while not folder.exists():
        assert child.poll() is None
        time.sleep(0.01)
    return time.monotonic()


FAKE = {  # a Slurm of one machine: sbatch runs the array's tasks at once, one after another
    "sbatch": r"""#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
grep -E '^#SBATCH' "$script" >> "$FAKE_SLURM/directives"
for argument in "$@"; do case "$argument" in --export=ALL,*) export "${argument#--export=ALL,}";; esac; done
if [ -n "$last" ] && ! grep -q merge_stats "$script"; then
  for task in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=7 SLURM_NODELIST=here bash "$script" >> "$FAKE_SLURM/log" 2>&1
  done
fi
echo "Submitted batch job 7"
""",
    "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"\n',
    "scontrol": '#!/bin/bash\necho "${@: -1}"\n',
    "squeue": "#!/bin/bash\nexit 0\n",
}


def test_slurm_runs_the_same_tasks(tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """datatrove's real executor and the script it writes, with commands in Slurm's place that run it here."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, script in FAKE.items():
        (bin / name).write_text(script)
        (bin / name).chmod((bin / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setattr(pipeline_executors, "POLL", 0.1)
    settings = Settings(language=None, dedup="none")
    build(sources, BYTES, tmp_path / "local", cleaning=settings, tasks=2)
    execution = Execution("slurm", workers=4, slurm={"partition": "night", "account": "us"})
    build(sources, BYTES, tmp_path / "slurm", cleaning=settings, tasks=2, execution=execution)
    assert contents(tmp_path / "local") == contents(tmp_path / "slurm")
    directives = (tmp_path / "directives").read_text()
    for line in (
        "--partition=night",
        "--account=us",
        "--time=24:00:00",
        "--array=0-1%4",
        "--job-name=deepnarrow-1-clean",
    ):
        assert f"#SBATCH {line}\n" in directives

    sources[0].write_text("no JSON\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1 is not valid JSON"):
        build(sources, BYTES, tmp_path / "wrong", cleaning=settings, tasks=2, execution=execution)


def test_without_slurm(tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="is sbatch on this machine"):
        build(sources, BYTES, tmp_path / "out", cleaning=Settings(language=None), execution=Execution("slurm"))


@pytest.mark.slow
def test_ray_equals_local(tmp_path: Path, sources: list[Path]) -> None:
    pytest.importorskip("ray", reason="Ray is in the extra `data`")
    settings = Settings(language=None)
    for name in ("local", "ray"):
        execution = Execution(name, workers=2)
        build(sources, BYTES, tmp_path / name, cleaning=settings, tasks=3, shard_tokens=1000, execution=execution)
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


@pytest.mark.slow
def test_ray_failures_are_one_line(tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster without a CPU is given up; on one that works, a task's mistake is told as everywhere."""
    ray = pytest.importorskip("ray", reason="Ray is in the extra `data`")
    settings, execution = Settings(language=None, dedup="none"), Execution("ray", workers=1)
    sources[0].write_text("no JSON\n")
    for processors, patience, message in (
        (0, 3.0, r"no room for a task .* within 3 seconds \(it has 0 CPUs"),
        (1, 120.0, r"a\.jsonl:1 is not valid JSON"),
    ):
        monkeypatch.setattr(pipeline_executors, "RAY_PATIENCE", patience)
        ray.init(num_cpus=processors, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            with pytest.raises(UserError, match=message):
                build(sources, BYTES, tmp_path / "out", cleaning=settings, tasks=2, execution=execution)
        finally:
            ray.shutdown()
