"""Model cards: what a run is, how it was made, what it scores and what it costs.

The published T5-Efficient cards leave "downstream performance" and "computational complexity" to be written later. Here
every number comes from the ledger, from `run.json`, or is counted from the shape; what nobody measured says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError
from deepnarrow.files import write_text
from deepnarrow.hub.card_sections import (
    complexity,
    interval,
    introduction,
    limitations,
    origin,
    performance,
    provenance,
    shape_table,
    training,
    usage,
)
from deepnarrow.hub.front_matter import front_matter
from deepnarrow.measure import ledger as ledgers
from deepnarrow.measure.ledger import Record, current, select
from deepnarrow.measure.numbers import MISSING
from deepnarrow.shapes import Shape, parse
from deepnarrow.train.run_folder import FILE as RUN
from deepnarrow.train.run_folder import read_run

FILE = "README.md"
MADE = "<!-- made by `deepnarrow card`; change the ledger, not the numbers -->"
TAGS = ("t5", "deep-narrow", "text2text-generation")
TASK_TYPE = "text2text-generation"


def card(
    run: Path,
    records: Iterable[Record],
    *,
    ledger: Path | None = None,
    name: str | None = None,
    license_name: str | None = None,
) -> str:
    """The card of a run folder as Markdown with a YAML head.

    records       of any models; those of this run, and timings of its shape, are picked out
    ledger        the file they come from: records may name a run by its path from there
    license_name  as the hub spells it; left out unless given, since only the owner of the weights can choose

    Raises `UserError` for a folder that is not a run.
    """
    about = read_run(run)
    shape = parse(str(about["shape"]))
    found = current(list(records))
    own = [one for one in found if belongs(one, run, ledger)]
    scores = [one for one in own if one.kind == "score"]
    tuned = [one for one in select(found, kind="score", shape=str(shape)) if descends(one, run, ledger)]
    timings = pick_timings(select(found, kind="timing", shape=str(shape)), own)
    title = name or title_of(about, shape)
    parts = [
        front_matter(head(about, scores, title, license_name)),
        MADE,
        f"# {title}",
        introduction(about, shape),
        "## Shape",
        shape_table(shape),
        "## Training",
        training(about, own, run),
        "## Downstream performance",
        performance(scores, tuned),
        "## Computational complexity",
        complexity(shape, timings),
        "## How to use",
        usage(title),
        "## Limitations",
        limitations(about, [*scores, *tuned]),
        "## Where the numbers come from",
        provenance(about, [*own, *tuned, *(one for one in timings if one not in own)]),
    ]
    return "\n\n".join(parts) + "\n"


def write_card(
    run: Path,
    *,
    ledger: Path | None = None,
    out: Path | None = None,
    name: str | None = None,
    license_name: str | None = None,
) -> Path:
    """Write a run's card, by default to its README.md. A file there that no card verb wrote is not overwritten.

    Without `ledger` the nearest one is read, in the run's folder or in one above it; without any, nothing was measured.
    """
    path = out or run / FILE
    where = ledger or nearest_ledger(run)
    records = ledgers.read(where) if where is not None else []
    text = card(run, records, ledger=where, name=name, license_name=license_name)
    if path.exists() and MADE not in path.read_text("utf-8", errors="replace"):
        raise UserError(f"{path} was written by someone else; give another file with --out")
    write_text(path, text)
    return path


def write_cards(study: Path, *, out: Path | None = None) -> list[Path]:
    """Write a card for every run of a study into its folder `cards`, each named by the run's path."""
    ledger = study / ledgers.FILE
    records = ledgers.read(ledger)
    written = []
    for path in sorted((study / "runs").rglob(RUN)):
        run = path.parent
        name = "-".join(run.relative_to(study / "runs").parts)
        written.append((out or study / "cards") / f"{name}.md")
        write_text(written[-1], card(run, records, ledger=ledger))
    return written


def nearest_ledger(run: Path) -> Path | None:
    for folder in (run.resolve(), *run.resolve().parents):
        if (folder / ledgers.FILE).is_file():
            return folder / ledgers.FILE
    return None


def belongs(one: Record, run: Path, ledger: Path | None) -> bool:
    """Whether a record is about this run or one of its checkpoints."""
    return any(within(path, run) for path in places(one.model, ledger))


def descends(one: Record, run: Path, ledger: Path | None) -> bool:
    """Whether a record is about a run that started from this one: what a pretrained model is good for."""
    for path in places(one.model, ledger):
        if (path / RUN).is_file() and not within(path, run):
            start = origin(read_run(path)).get("model")
            if isinstance(start, str) and any(within(place, run) for place in places(start, ledger)):
                return True
    return False


def places(name: str, ledger: Path | None) -> list[Path]:
    """Where a path in a record may point: from here, or from the ledger's folder."""
    starts = [Path.cwd(), *([ledger.resolve().parent] if ledger else [])]
    return [(start / name).resolve() for start in starts]


def within(path: Path, run: Path) -> bool:
    here = run.resolve()
    return path == here or here in path.parents


def pick_timings(timings: Sequence[Record], own: Sequence[Record]) -> list[Record]:
    """The newest timing's records, of this run where it was timed, else of its shape; one set of conditions only."""
    mine = [one for one in own if one.kind == "timing"] or list(timings)
    if not mine:
        return []
    newest = max(mine, key=lambda one: one.date)
    return [
        one
        for one in mine
        if (one.model, one.conditions, one.machine) == (newest.model, newest.conditions, newest.machine)
    ]


def title_of(about: Mapping[str, Any], shape: Shape) -> str:
    task = origin(about).get("task")
    return f"deepnarrow-{shape}" + (f"-{task}" if task else "")


def head(about: Mapping[str, Any], scores: Sequence[Record], title: str, license_name: str | None) -> dict[str, Any]:
    return {
        "license": license_name,
        "library_name": "transformers",
        "pipeline_tag": TASK_TYPE,
        "tags": list(TAGS),
        "datasets": datasets(about, scores),
        "base_model": base_model(about),
        "model-index": [{"name": title, "results": results(scores)}] if scores else None,
    }


def datasets(about: Mapping[str, Any], scores: Sequence[Record]) -> list[str]:
    """Hub names among the sources of training and judging; files of one's own have none."""
    sources = origin(about).get("sources")
    told = [*(sources if isinstance(sources, list) else []), *(one.extra.get("data") for one in scores)]
    names = [
        text.removeprefix("hub:").split(":")[0].split("@")[0] for text in map(str, told) if text.startswith("hub:")
    ]
    return list(dict.fromkeys(names))


def base_model(about: Mapping[str, Any]) -> str | None:
    """The hub model a run started from."""
    start = str(origin(about).get("model") or origin(about).get("initial") or "")
    owner, _, rest = start.partition("/")
    return start.split("@")[0] if owner and rest and "/" not in rest and "@" in rest else None


def results(scores: Sequence[Record]) -> list[dict[str, Any]]:
    """The hub's `model-index`, one entry for each task and split."""
    groups: dict[tuple[str, str | None], list[Record]] = {}
    for one in scores:
        if one.value is not None:
            groups.setdefault((one.task or "", one.split), []).append(one)
    return [
        {
            "task": {"type": TASK_TYPE, "name": task},
            "dataset": {"name": task, "type": task, "split": split},
            "metrics": [
                {"type": one.metric, "value": round(float(one.value or 0.0), 2), "name": metric_name(one)}
                for one in ones
            ],
        }
        for (task, split), ones in groups.items()
    ]


def metric_name(one: Record) -> str:
    name = one.metric.replace("_", " ")
    between = interval(one)
    return f"{name} (95 % interval {between}, {one.n} items)" if between != MISSING and one.n else name
