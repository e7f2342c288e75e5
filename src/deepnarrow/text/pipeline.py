"""From sources to clean parts, in stages that datatrove runs: clean, sign, search, finish. No stage begins before the
one before it is whole, and a task that is done is never done again.

What the parts hold is decided by the sources, the settings and the number of tasks. Neither the executor nor the
number of workers leaves a trace, since tasks share nothing and a task reads its sources in order.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import UserError, nearest
from deepnarrow.files import read_json
from deepnarrow.text.cleaning import Settings
from deepnarrow.text.records import read_records
from deepnarrow.text.sources import Spec

if TYPE_CHECKING:
    from deepnarrow.text.pipeline_executors import Runner

EXECUTORS = ("local", "ray", "slurm")
DEDUP = ("sentences", "lines", "exact", "minhash", "none")
TASK_BYTES = 2**26  # of source files; one file is never shared between tasks
PARTS, COUNTS = "kept", "counts"


@dataclass(frozen=True)
class Execution:
    """Where the tasks run. Nothing here changes a byte of the result."""

    executor: str = "local"
    workers: int = 1
    slurm: Mapping[str, str] = field(default_factory=dict)  # options of sbatch


def check(settings: Settings, execution: Execution) -> None:
    """Refuse names that do not exist before anything is read."""
    settings.before()
    if settings.dedup not in DEDUP:
        raise UserError(f"no deduplication named {settings.dedup}; {nearest(settings.dedup, DEDUP)}")
    if execution.executor not in EXECUTORS:
        raise UserError(f"no executor named {execution.executor}; {nearest(execution.executor, EXECUTORS)}")
    if execution.workers < 1:
        raise UserError(f"workers is how many tasks run at once; it must be at least 1, not {execution.workers}")
    try:
        import datatrove  # noqa: F401
    except ImportError:
        raise UserError("a pipeline needs datatrove: pip install 'deepnarrow[data]'") from None
    settings.after()


def groups_of(sizes: Sequence[int | None], tasks: int | None) -> list[list[int]]:
    """Which sources go to which task: neighbours together, in order, so that the order of the corpus is theirs.

    Without a number of tasks, as many as give each some 64 MB.

    >>> groups_of([10, 10, 10, 30], 2)
    [[0, 1, 2], [3]]
    >>> groups_of([10, None], None)
    [[0, 1]]
    """
    known = [size or 0 for size in sizes]
    wanted = min(len(known), tasks or max(1, sum(known) // TASK_BYTES))
    groups: list[list[int]] = [[]]
    share, done = sum(known) / wanted, 0
    for number, size in enumerate(known):
        left = len(known) - number
        full = done + size / 2 > share * len(groups)
        if groups[-1] and len(groups) < wanted and (full or left <= wanted - len(groups)):
            groups.append([])
        groups[-1].append(number)
        done += size
    return groups


def run(
    sources: Sequence[Spec], groups: Sequence[Sequence[int]], text_field: str, settings: Settings, execution: Execution,
    work: Path,
) -> dict[str, Any]:  # fmt: skip
    """Clean `sources` into parts below `work`, one for each; return what each rule did. Goes on where it was."""
    from deepnarrow.text import deduplication
    from deepnarrow.text.pipeline_steps import Clean, ReadParts, ReadSources, Tally, WriteParts

    numbered = [[(number, sources[number]) for number in group] for group in groups]
    empty = [[(number, "") for number in group] for group in groups]
    tasks, counts = len(groups), work / COUNTS
    before, after = settings.before(), settings.after()
    first = work / "1-clean"
    with runner(execution, work) as start:
        read = [
            ReadSources(numbered, text_field, first / "failures"),
            Tally(counts / "read"),
            Clean(before, counts / "before"),
            Tally(counts / "cleaned"),
        ]
        last = [Clean(after, counts / "after"), Tally(counts / "kept"), WriteParts(empty, work / PARTS)]
        if settings.dedup == "none":
            start([*read, *last], tasks, first)
        else:
            steps = deduplication.KINDS[settings.dedup](work / "dedup")
            start([*read, WriteParts(empty, work / "cleaned")], tasks, first)
            start([ReadParts(empty, work / "cleaned"), steps.signature], tasks, work / "2-sign")
            for number, search in enumerate(steps.searches, start=3):
                start([search.step], search.tasks, work / f"{number}-{search.name}")
            again = [ReadParts(empty, work / "cleaned"), steps.filter, Tally(counts / "unique")]
            start([*again, *last], tasks, work / f"{3 + len(steps.searches)}-finish")
    return report(settings, tasks, counts)


def runner(execution: Execution, work: Path) -> "AbstractContextManager[Runner]":
    from deepnarrow.text import pipeline_executors as executors

    if execution.executor == "slurm":
        return executors.slurm(execution.workers, work, execution.slurm)
    return (executors.ray if execution.executor == "ray" else executors.local)(execution.workers, work)


def report(settings: Settings, tasks: int, counts: Path) -> dict[str, Any]:
    """What each rule dropped, in the order of the rules, for the manifest."""
    found: dict[str, Any] = {"read": added(counts / "read", tasks)}
    rules = []
    for stage, chosen in (("before", settings.before()), ("after", settings.after())):
        said = added(counts / stage, tasks)
        rules += [
            {"rule": rule.name, "source": rule.source, "by": "deepnarrow", **said.get(rule.name, {})} for rule in chosen
        ]
        if stage == "before" and settings.dedup != "none":
            there, here = added(counts / "cleaned", tasks), added(counts / "unique", tasks)
            lost = {key: there[key] - here[key] for key in ("documents", "characters")}
            rules.append(
                {"rule": f"duplicate {settings.dedup}", "source": SOURCES[settings.dedup], "by": "datatrove", **lost}
            )
    return {**found, "kept": added(counts / "kept", tasks), "rules": rules}


SOURCES = {
    "sentences": "Raffel et al. 2020, section 2.2",
    "lines": "tensorflow_datasets c4_utils.remove_duplicate_text",
    "exact": "Lee et al. 2022, arXiv:2107.06499",
    "minhash": "Broder 1997; settings of datatrove",
}


def added(folder: Path, tasks: int) -> dict[str, Any]:
    """The sum of the counts of every task."""
    total: dict[str, Any] = {}
    for rank in range(tasks):
        add(total, read_json(folder / f"{rank:05d}.json"))
    return total


def add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    for key, value in counts.items():
        if isinstance(value, int):
            total[key] = total.get(key, 0) + value
        else:
            add(total.setdefault(key, {}), value)


def texts(work: Path, number: int) -> Iterator[str]:
    """What is left of one source, in order."""
    for record in read_records(work / PARTS / f"{number:06d}.jsonl.zst"):
        yield record.fields["text"]
