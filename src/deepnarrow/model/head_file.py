"""head.json: which head stands on an encoder, and how texts are read for it. Without torch; the head is in heads.py."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError, nearest
from deepnarrow.files import read_json

KINDS = ("classify", "tag", "embed")
FORMAT = 1
FILE = "head.json"


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands on the encoder, and how texts are read for it; head.json holds just this.

    >>> Head(kind="classify", labels=("no",))
    Traceback (most recent call last):
    deepnarrow.errors.UserError: a head that classifies needs two labels or more, not 1
    """

    kind: str  # one of KINDS
    labels: tuple[str, ...] = ()  # in the order of the logits; none for vectors
    normalise: bool = False  # vectors of length 1
    input_tokens: int = 512  # longest text, EOS included; longer ones are cut, tagged ones are read in parts
    task: str | None = None  # what it was trained on

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"unknown head {self.kind!r}; {nearest(self.kind, KINDS)}")
        if self.kind == "embed":
            if self.labels:
                raise UserError("a head that embeds has no labels")
        elif len(set(self.labels)) < 2 or len(set(self.labels)) != len(self.labels):
            raise UserError(
                f"a head that {'classifies' if self.kind == 'classify' else 'tags'} needs two labels or more, not "
                f"{len(set(self.labels))}"
            )
        if self.input_tokens < 2:
            raise UserError(f"input_tokens must be at least 2, a token and the end mark, not {self.input_tokens}")


def is_head(folder: Path) -> bool:
    return (folder / FILE).is_file()


def head_in(folder: Path) -> Head:
    """The head of a folder that has one."""
    return head_from_json(read_json(folder / FILE), where=str(folder / FILE))


def head_from_json(values: Any, *, where: str) -> Head:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{where} is not a head of format {FORMAT}; was it written by another version?")
    known = [field.name for field in fields(Head)]
    given = {name: value for name, value in values.items() if name != "format"}
    for name in given:
        if name not in known:
            raise UserError(f"{where} has the unknown key {name!r}; {nearest(name, known)}")
    if "kind" not in given or not isinstance(given.get("labels", []), list):
        raise UserError(f"{where} must name the head's kind and list its labels")
    return Head(**{**given, "labels": tuple(given.get("labels", []))})
