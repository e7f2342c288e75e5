"""Evaluations that are kept, so that they can be looked into, compared, and need not be made twice.

RUN/evaluations/squad.validation/
    scores.json         scores with intervals, baseline, protocol, model, data, versions, machine, date, commit
    predictions.jsonl   every item: inputs, accepted answers, the prediction, its score, its probabilities

What differs from the plain evaluation stands in the folder's name: squad.validation.limit-100.t5. A model that is no
run has its own folder under ./evaluations. A folder is whole or absent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepnarrow import machine
from deepnarrow.errors import UserError
from deepnarrow.files import read_json, read_json_lines, whole_folder, write_json
from deepnarrow.measure.evaluate import Evaluation, Prediction
from deepnarrow.tasks.significance import Interval

FORMAT = 1
SCORES, PREDICTIONS = "scores.json", "predictions.jsonl"


@dataclass(frozen=True)
class Kept:
    """An evaluation and what it was made with.

    `identity` is what must agree for it to stand for another one: task, split, items, protocol, weights. `about` is
    what a reader wants to know besides: model, data, versions, machine, commit, date.
    """

    folder: Path
    evaluation: Evaluation
    identity: Mapping[str, Any]
    about: Mapping[str, Any]

    @property
    def items(self) -> str:
        """The fingerprint of the items that were scored."""
        return str(self.identity["items"])


def folder_name(task: str, split: str, differences: Sequence[str]) -> str:
    """
    >>> folder_name("squad", "validation", ["limit-100", "t5"])
    'squad.validation.limit-100.t5'
    """
    return ".".join(re.sub(r"[^\w+-]+", "-", part) for part in (task, split, *differences))


def keep(folder: Path, found: Evaluation, identity: Mapping[str, Any], about: Mapping[str, Any]) -> Kept:
    """Write an evaluation, in place of what the folder held before."""
    if folder.exists() and not is_kept(folder):
        raise UserError(f"{folder} is no kept evaluation, so nothing is written over it; choose another --out")
    said = {
        **about,
        "versions": machine.versions(),
        "machine": machine.describe(),
        "commit": machine.commit(),
        "date": machine.today(),
    }
    with whole_folder(folder) as temporary:
        found.write_predictions(temporary / PREDICTIONS)
        write_json(temporary / SCORES, {"format": FORMAT, **scores_json(found), "identity": dict(identity), **said})
    return Kept(folder, found, identity, said)


def scores_json(found: Evaluation) -> dict[str, Any]:
    """Everything of an evaluation but its predictions."""
    names = ("task", "task_version", "n", "truncated", "search", "seconds", "baseline_name")
    scores = {
        name: {"value": one.value, "low": one.low, "high": one.high, "n": one.n, "baseline": found.baseline[name]}
        | ({"signature": found.signatures[name]} if name in found.signatures else {})
        for name, one in found.scores.items()
    }
    more = {
        name: {"value": one.value, "low": one.low, "high": one.high, "n": one.n} for name, one in found.more.items()
    }
    return {name: getattr(found, name) for name in names} | {"scores": scores} | ({"more": more} if more else {})


def is_kept(folder: Path) -> bool:
    return (folder / SCORES).is_file() and (folder / PREDICTIONS).is_file()


def identity_in(folder: Path) -> dict[str, Any]:
    """What a kept evaluation is of, without its predictions; empty where there is none."""
    found = read_json(folder / SCORES) if is_kept(folder) else {}
    identity = found.get("identity", {}) if isinstance(found, dict) else {}
    return identity if isinstance(identity, dict) else {}


def read(folder: Path) -> Kept:
    """A kept evaluation; a broken one, or one of another format, is a `UserError`."""
    found = read_json(folder / SCORES)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{folder} is no evaluation of format {FORMAT}; was it written by another version?")
    try:
        predictions = [Prediction(**row) for row in with_defaults(read_json_lines(folder / PREDICTIONS))]
        rows = found["scores"]
        evaluation = Evaluation(
            **{name: found[name] for name in ("task", "task_version", "n", "truncated", "search", "seconds")},
            baseline_name=found["baseline_name"],
            scores={name: interval_of(row) for name, row in rows.items()},
            baseline={name: row["baseline"] for name, row in rows.items()},
            signatures={name: row["signature"] for name, row in rows.items() if "signature" in row},
            more={name: interval_of(row) for name, row in found.get("more", {}).items()},
            predictions=predictions,
        )
        identity = found["identity"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged ({type(error).__name__}: {error}); evaluate with --again") from None
    if len(predictions) != evaluation.n:
        raise UserError(
            f"{folder / PREDICTIONS} holds {len(predictions)} of {evaluation.n} items; evaluate with --again"
        )
    told = set(scores_json(evaluation)) | {"format", "identity", "more"}
    return Kept(folder, evaluation, identity, {name: value for name, value in found.items() if name not in told})


def with_defaults(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"log_probability": None, **row} for row in rows]


def interval_of(row: Mapping[str, Any]) -> Interval:
    return Interval(row["value"], row["low"], row["high"], row["n"])
