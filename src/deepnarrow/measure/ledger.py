"""The ledger: one JSON line for every number this project ever claims.

A score or a timing without its machine, versions, commit, seed and date does not exist; tables, cards and plots are
made from these lines and never typed. A ledger is only added to: a number measured again is a new line, and `current`
keeps the newest of each.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deepnarrow import machine
from deepnarrow.errors import UserError, nearest
from deepnarrow.files import append_json, read_json_lines

FILE = "ledger.jsonl"  # its name inside a study folder
KINDS = ("score", "timing", "training")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured number.

    `value` is None where the measurement ended without one; `extra["outcome"]` then says how, such as "OOM".
    `low` and `high` are a 95 % interval for a score, the quartiles over repeats for a timing. `n` counts test items,
    or repeats. What a timing depends on beside the shape (lengths, batch, dtype, threads) is `extra["conditions"]`.
    """

    kind: str
    shape: str
    model: str  # the run folder or hub id; the shape again where there were only random weights
    metric: str
    value: float | None
    unit: str
    task: str | None = None
    task_version: int | None = None
    split: str | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seed: int | None = None
    parameters: int | None = None
    commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown kind of record {self.kind!r}; {nearest(self.kind, KINDS)}")
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
                raise UserError(f"{name} of a record must be a number or null, not {number!r}")

    @property
    def conditions(self) -> Mapping[str, Any]:
        """What a timing depends on beside the shape; empty for a score."""
        found = self.extra.get("conditions", {})
        return found if isinstance(found, Mapping) else {}


NAMES = tuple(item.name for item in fields(Record))


def record(*, kind: str, shape: str, model: str, metric: str, value: float | None, unit: str, **rest: Any) -> Record:
    """A record of something measured here and now: commit, versions, machine and date are filled in.

    A number that is not finite (a diverged loss) is kept as an outcome, since JSON has no NaN.

    >>> one = record(kind="score", shape="tiny", model="runs/a", metric="exact_match", value=float("nan"), unit="%")
    >>> one.value, one.extra["outcome"]
    (None, 'nan')
    """
    extra = dict(rest.pop("extra", {}))
    if value is not None and not math.isfinite(value):
        extra.setdefault("outcome", str(value))
        value = None
    here = {"commit": machine.commit(), "versions": machine.versions(), "machine": machine.describe()}
    filled = {**here, "date": machine.today(), **{key: finite(item) for key, item in rest.items()}, "extra": extra}
    return Record(kind=kind, shape=shape, model=model, metric=metric, value=value, unit=unit, **filled)


def finite(item: Any) -> Any:
    return None if isinstance(item, float) and not math.isfinite(item) else item


def append(path: Path, records: Record | Iterable[Record]) -> None:
    """Add records to the ledger, each one whole line or nothing."""
    for one in [records] if isinstance(records, Record) else records:
        append_json(path, asdict(one))


def read(path: Path) -> list[Record]:
    """Every record of a ledger in the order of writing; a last line torn by a power cut is left out.

    Raises `UserError` where there is no ledger, and for a line with a key this version does not know: it comes from
    another version, and a number read by half is worse than none.
    """
    if not path.is_file():
        raise UserError(
            f"no ledger at {path}; a study writes one, or `deepnarrow evaluate` and `deepnarrow bench` with --ledger"
        )
    records = []
    for number, row in enumerate(read_json_lines(path), start=1):
        try:
            records.append(from_row(row))
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from None
    return records


def from_row(row: Any) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"a record is a JSON object, not {json.dumps(row)[:40]}")
    for key in row:
        if key not in NAMES:
            raise UserError(f"unknown key {key!r}, {nearest(key, NAMES)} a newer deepnarrow may have written this line")
    missing = [name for name in ("kind", "shape", "model", "metric", "value", "unit") if name not in row]
    if missing:
        raise UserError(f"a record needs {', '.join(missing)}")
    return Record(**row)


def select(records: Iterable[Record], **equals: Any) -> list[Record]:
    """The records whose fields equal what is asked; a set, list or tuple means "one of".

    >>> one = Record(kind="score", shape="tiny", model="m", metric="f1", value=1.0, unit="%", seed=3)
    >>> select([one], kind="score", seed=(3, 4)) == [one], select([one], shape="mini")
    (True, [])
    """
    for name in equals:
        if name not in NAMES:
            raise UserError(f"a record has no field {name!r}; {nearest(name, NAMES)}")

    def fits(one: Record) -> bool:
        return all(
            getattr(one, name) in wanted if isinstance(wanted, set | frozenset | list | tuple)
            else getattr(one, name) == wanted
            for name, wanted in equals.items()
        )  # fmt: skip

    return [one for one in records if fits(one)]


def latest(records: Iterable[Record], **equals: Any) -> Record | None:
    """The newest record that `select` finds, or None. Of two with one date the later line is the newer."""
    found = select(records, **equals)
    return max(enumerate(found), key=lambda pair: (pair[1].date, pair[0]))[1] if found else None


def current(records: Sequence[Record]) -> list[Record]:
    """The newest record of each measurement, in the order the measurements first appeared."""
    newest: dict[str, Record] = {}
    for one in records:
        key = identity(one)
        if key not in newest or one.date >= newest[key].date:
            newest[key] = one
    return list(newest.values())


def identity(one: Record) -> str:
    """What makes two records measurements of the same thing."""
    same = (one.kind, one.shape, one.model, one.task, one.task_version, one.split, one.metric, one.seed)
    where = one.machine if one.kind == "timing" else {}
    return json.dumps([*same, dict(one.conditions), dict(where)], sort_keys=True)
