"""The published T5 family: 174 checkpoints with their facts, and every name that stands for a shape.

The facts are one JSON object a line in `data/catalog.jsonl`; `data/README.md` names each field and its source. They are
read on first use. Names such as `google/flan-t5-base` or `t5-3b` become shapes by a rule, without reading the file.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from deepnarrow.errors import UserError, nearest
from deepnarrow.shapes.shape import BASES, Shape, canonical, parse

DATA = Path(__file__).with_name("data") / "catalog.jsonl"

# `Entry.golden` is the log-likelihood Mesh TensorFlow gave this pair, both sides with EOS; a conversion was accepted
# when it came within the tolerance (t5-mtf-to-hf-converter).
GOLDEN_INPUT = "Hello there this is an example input"
GOLDEN_TARGET = "Hi I am the possible output of the input"
GOLDEN_TOLERANCE = 0.01


class Card(NamedTuple):
    """Sizes as the model card prints them. They are file sizes: parameters are megabytes / 4."""

    parameters_millions: float
    fp32_mb: float
    half_mb: float


class Stage(NamedTuple):
    """One stage of training; a model's stages stand in order."""

    objective: str
    datasets: tuple[str, ...]
    steps: int
    note: str | None


class Score(NamedTuple):
    """A published score; ours never stand here."""

    task: str
    split: str
    metric: str
    value: float
    source: str


class Defect(NamedTuple):
    """Something wrong at the source, e.g. ("incomplete checkpoint", "the original checkpoint is incomplete")."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published checkpoint. None, or an empty tuple, is a fact we do not have."""

    id: str
    name: str  # the id without its owner
    family: str  # t5-efficient, closed-book, lm-adapt
    shape: str | None  # canonical; None where the structure is not settled
    shape_note: str | None  # why there is no shape
    reading: str | None  # the shape we take it for where `shape` is None
    parameters: int | None
    card: Card | None
    stages: tuple[Stage, ...]
    licence: str | None
    tags: tuple[str, ...]
    arxiv: tuple[str, ...]
    created: str | None
    scores: tuple[Score, ...]
    peers: Mapping[str, float] = field(hash=False)  # the same score of sister models, from the same card
    on_hub: bool
    defects: tuple[Defect, ...]
    golden: float | None
    sources: Mapping[str, str] = field(hash=False)  # field, or fields -> where they were read

    @property
    def size(self) -> str:
        """The base of its shape: `small` of `small-el16-dl2`, `v1_1-base` of T5 1.1."""
        name = self.shape or self.reading or ""
        return next(base for base in sorted(BASES, key=len, reverse=True) if name.startswith(base))

    @property
    def objective(self) -> str:
        return ", ".join(stage.objective for stage in self.stages)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for stage in self.stages for name in stage.datasets))

    def record(self) -> dict[str, Any]:
        """The entry as JSON has it, one key for each field."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return dict(value) if isinstance(value, Mapping) else value


@cache
def entries() -> tuple[Entry, ...]:
    """Every entry, in the order of publication: by size, then by what was varied."""
    with DATA.open(encoding="utf-8") as lines:
        return tuple(_entry(json.loads(line)) for line in lines)


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        **row
        | {
            "card": Card(**row["card"]) if row["card"] else None,
            "stages": tuple(Stage(**stage | {"datasets": tuple(stage["datasets"])}) for stage in row["stages"]),
            "scores": tuple(Score(**score) for score in row["scores"]),
            "tags": tuple(row["tags"]),
            "arxiv": tuple(row["arxiv"]),
            "defects": tuple(Defect(**defect) for defect in row["defects"]),
            "peers": MappingProxyType(row["peers"]),
            "sources": MappingProxyType(row["sources"]),
        }
    )


def find(name: str) -> Entry:
    """The entry of a hub id, of a name without its owner, or of one without `t5-efficient-` too.

    >>> find("small-el16-dl2").id
    'google/t5-efficient-small-el16-dl2'
    """
    entry = _lookup(name)
    if entry is None:
        bare = _bare(name)
        close = _close(bare if bare.startswith(FAMILY_PREFIXES) else f"t5-efficient-{bare}", _by_name())
        raise UserError(f"{name!r} is not in the catalogue; {close or 'deepnarrow catalog list shows what is'}")
    return entry


def _lookup(name: str) -> Entry | None:
    wanted = name.strip().lower().removeprefix("google/")
    known = _by_name()
    return known.get(wanted) or known.get(f"t5-efficient-{wanted}")


@cache
def _by_name() -> dict[str, Entry]:
    return {entry.name: entry for entry in entries()}


def search(
    text: str = "",
    *,
    family: str | None = None,
    min_parameters: int | None = None,
    max_parameters: int | None = None,
    objective: str | None = None,
    tag: str | None = None,
    on_hub: bool | None = None,
) -> list[Entry]:
    """Entries that meet every condition, in the catalogue's order.

    text            words that must all appear, in any case, among names, objectives, data sets, tags and defects
    family          t5-efficient, closed-book or lm-adapt; or a size: tiny, mini, small, base, large, xl, xxl, v1_1-base
    min/max         both ends included; an entry whose parameters are unknown meets neither
    objective, tag  part of an objective's name; a tag in full

    >>> [entry.shape for entry in search("small", max_parameters=31_000_000)]
    ['small-dm128', 'small-dm256']
    """
    families = list(dict.fromkeys(value for entry in entries() for value in (entry.family, entry.size)))
    if family is not None and family not in families:
        raise UserError(f"unknown family {family!r}; {nearest(family, families)}")
    words = text.lower().split()
    return [
        entry
        for entry in entries()
        if (family is None or family in (entry.family, entry.size))
        and (min_parameters is None or (entry.parameters is not None and entry.parameters >= min_parameters))
        and (max_parameters is None or (entry.parameters is not None and entry.parameters <= max_parameters))
        and (objective is None or objective.lower() in entry.objective)
        and (tag is None or tag in entry.tags)
        and (on_hub is None or on_hub == entry.on_hub)
        and all(word in _haystack(entry) for word in words)
    ]


def _haystack(entry: Entry) -> str:
    parts = (
        entry.id,
        entry.family,
        entry.shape or "",
        entry.objective,
        *entry.datasets,
        *entry.tags,
        *(defect.text for defect in entry.defects),
    )
    return " ".join(parts).lower()


def published(shape: Shape) -> list[Entry]:
    """The entries of exactly this shape.

    >>> [entry.id for entry in published(parse("base-dl2"))]
    ['google/t5-efficient-base-dl2']
    """
    name = canonical(shape)
    return [entry for entry in entries() if entry.shape == name]


def shape_of(name: str) -> Shape:
    """The shape a name stands for: a shape string, or a published checkpoint of the T5 family.

    Shape strings             small-el16-dl2
    T5-Efficient              google/t5-efficient-small-el16-dl2, t5-efficient-small-el16-dl2; only names that exist
    T5                        google-t5/t5-small, t5-small; base, large, 3b, 11b
    T5 1.1 and descendants    google/t5-v1_1-base, google/flan-t5-base, google/t5-base-lm-adapt; small to xxl
    closed-book               google/t5-3b-ssm, -ssm-nq, -ssm-nqo, -ssm-wq, ...; small, large, xl, xxl, 3b, 11b
    mT5, ByT5                 google/mt5-small, google/byt5-small; small to xxl

    Owners `google/` and `google-t5/` may be left out. The released `sh` checkpoints get our reading (docs/shapes.md).

    >>> str(shape_of("google/flan-t5-base")), str(shape_of("t5-3b"))
    ('v1_1-base', 'xl')
    """
    wanted = name.strip().lower()
    owner, _, bare = wanted.rpartition("/")
    if owner in ("", "google", "google-t5") and bare in KNOWN:
        return parse(KNOWN[bare])
    if bare.startswith("t5-efficient-") and owner in ("", "google"):
        entry = _lookup(bare)
        if entry is None:
            close = _close(bare, _by_name()) or "deepnarrow catalog list shows what was"
            raise UserError(f"no checkpoint {name!r} was released; {close} {_as_shape(bare)}".rstrip())
        return parse(entry.shape or entry.reading or "")
    if owner or bare.startswith(FAMILY_PREFIXES):
        close = _close(bare, [*KNOWN, *_by_name()])
        raise UserError(f"no shape is known for {name!r}; {close or EXAMPLES}")
    return parse(name)


FAMILY_PREFIXES = ("t5-", "flan-", "mt5-", "byt5-")
EXAMPLES = (
    "write a shape such as small-el16-dl2 or a published name such as google/t5-efficient-small-el16-dl2, t5-3b or "
    "google/flan-t5-base"
)


def _bare(name: str) -> str:
    return name.strip().lower().rpartition("/")[2]


def _close(bare: str, known: Iterable[str]) -> str:
    """The end of an error's sentence, where some known name is close."""
    near = nearest(bare, known)
    return near if near.startswith("did you mean") else ""


def _as_shape(bare: str) -> str:
    """A hint that the shape may be asked for although no checkpoint has it, where it can be read."""
    text = bare.removeprefix("t5-efficient-")
    try:
        parse(text)
    except UserError:
        return ""
    return f"For the shape alone write {text}."


def _known() -> dict[str, str]:
    """Names outside T5-Efficient -> shape strings.

    T5 1.1's shapes serve its descendants. mT5 changes the vocabulary only. ByT5 has 256 bytes, 3 special and 125 extra
    ids, and an encoder three times as deep as its decoder (Xue et al. 2022, arXiv:2105.13626, and its gin files).
    """
    sizes = ("small", "base", "large", "xl", "xxl")
    original = {"small": "small", "base": "base", "large": "large", "3b": "xl", "11b": "xxl"}
    known = {f"t5-{size}": shape for size, shape in original.items()}
    for size in sizes:
        known[f"t5-v1_1-{size}"] = known[f"flan-t5-{size}"] = known[f"t5-{size}-lm-adapt"] = f"v1_1-{size}"
        known[f"mt5-{size}"] = f"v1_1-{size}-v250112"
    known |= {
        "byt5-small": "v1_1-small-dm1472-ff3584-el12-dl4-v384",
        "byt5-base": "v1_1-base-dm1536-ff3968-el18-dl6-v384",
        "byt5-large": "v1_1-large-dm1536-ff3840-el36-dl12-v384",
        "byt5-xl": "v1_1-xl-dm2560-ff6720-el36-dl12-v384",
        "byt5-xxl": "v1_1-xxl-dm4672-ff12352-el36-dl12-v384",
    }
    # In this series `large`, `3b`, `11b` are T5's own shapes and `small`, `xl`, `xxl` are those of T5 1.1, as the sizes
    # of the released files show (`t5-large-ssm-nq` has d_ff 4096 and relu; `t5-small-ssm-nq` is 77M parameters).
    closed_book = {
        "small": "v1_1-small",
        "large": "large",
        "xl": "v1_1-xl",
        "xxl": "v1_1-xxl",
        "3b": "xl",
        "11b": "xxl",
    }
    for size, shape in closed_book.items():
        for suffix in ("", "-nq", "-nqo", "-wq", "-wqo", "-tqa", "-tqao"):
            known[f"t5-{size}-ssm{suffix}"] = shape
    return known


KNOWN = _known()
