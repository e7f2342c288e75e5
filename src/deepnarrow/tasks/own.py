"""Your own data as a task, without code: a table and two templates.

    mytask.jsonl        {"input": "...", "target": "..."} on each line; also CSV, TSV, Parquet, all also .gz or .zst
    mytask/             train.jsonl, validation.jsonl (or dev, valid, val), test.jsonl, ...

A template is text with columns' names between braces ("question: {question} context: {passage}"). A target that is
one column holding a list accepts each text of it; the first is trained on.

One file alone is split by a hash of the input: 80 % train, 10 % validation, 10 % test. The same input is always on the
same side, however the file grows and whatever words a template puts around it, so no question that judges a model was
trained on. A folder without a validation part gives up 10 % of train for it in the same way.

What the task is follows from its rows. Few distinct, short, recurring targets are a closed set of labels, scored by
likelihood; otherwise answers are generated, and judged as short answers or, with more than eight words on average, as
texts. Lengths hold 99 % of the rows up to 512 and 128 tokens, at 3 bytes to the token (English in T5's vocabulary has
about 4.3). All this is found once: `spec` keeps it in a run, and `from_spec` makes the same task again, whatever the
file holds by then.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import UserError, nearest
from deepnarrow.tasks import SPLIT_FILE, Pair, Row, Source, Task, files, from_file, names, unpacked
from deepnarrow.tasks.baselines import COMMONEST_ANSWER, COMMONEST_LABEL, Baseline, first_sentences
from deepnarrow.tasks.metrics import Metric, accuracy, exact_match, macro_f1, rougeL, token_f1
from deepnarrow.text.records import TABLES, read_records
from deepnarrow.text.streams import COMPRESSED, suffix

VERSION = 1  # of what is found in the rows and how it is scored
LABELS, SHORT, LONG = "labels", "short answers", "texts"  # what the targets are
METRICS: dict[str, tuple[Metric, ...]] = {
    LABELS: (accuracy, macro_f1),
    SHORT: (exact_match, token_f1, rougeL),
    LONG: (rougeL, token_f1, exact_match),
}
SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
HELD_OUT = {"train": (0.0, 0.9), "validation": (0.9, 1.0)}
VALIDATION = ("validation", "valid", "val", "dev")
MOST_LABELS, LONGEST_LABEL = 50, 40  # distinct targets; characters
ROWS_PER_LABEL, LEAST_OF_A_LABEL = 5, 2  # on average; at least
SHORT_WORDS = 8  # mean words of a target that is still an answer rather than a text
BYTES_PER_TOKEN, LONGEST_INPUT, LONGEST_TARGET = 3, 512, 128
KEYS = {"name", "path", "inputs", "target", "kind", "labels", "input_tokens", "target_tokens", "version"}


class Part(NamedTuple):
    """One split: the rows of these files whose input's hash lies in [low, high)."""

    paths: tuple[Path, ...]
    low: float = 0.0
    high: float = 1.0


class Found(NamedTuple):
    """What the rows say the task is."""

    kind: str
    labels: tuple[str, ...] | None
    input_tokens: int
    target_tokens: int


def is_path(name: str) -> bool:
    """Whether a task's name means a user's file or folder.

    >>> is_path("some/mytask.jsonl"), is_path("mytask.csv.gz"), is_path("sst2")
    (True, True, False)
    """
    return suffix(Path(name)) in TABLES or Path(name).exists()


def own_task(
    path: str | Path,
    *,
    inputs: str = "{input}",
    target: str = "{target}",
    name: str | None = None,
    labels: Sequence[str] | None = None,
    input_tokens: int | None = None,
    target_tokens: int | None = None,
) -> Task:
    """The task of a file or folder. What is not given is found in its rows; no `labels` at all, `()`, is no closed set.

    The name is the file's, with "own-" before it where a task of that name exists. Raises `UserError` for a template
    with an unknown column, a file that is missing or broken, and rows without an answer.
    """
    where = Path(path).expanduser().resolve()
    parts = layout(where)
    read = [parts[split] for split in SHARES if split in parts] or list(parts.values())
    chosen = {file: None for part in read for file in part.paths}
    found = survey((pair for file in chosen for pair in pairs(file, inputs, target)), labels)
    if not found:
        raise UserError(f"no row of {where} has both an input and a target")
    return from_spec(
        {
            "name": given_name(name) if name is not None else free_name(where),
            "path": str(where),
            "inputs": inputs,
            "target": target,
            "kind": found.kind,
            "labels": None if found.labels is None else list(found.labels),
            "input_tokens": input_tokens or found.input_tokens,
            "target_tokens": target_tokens or found.target_tokens,
            "version": VERSION,
        }
    )


def spec(task: Task) -> dict[str, Any] | None:
    """What makes the task again, as JSON would have it; None for a task of this package."""
    return dict(task.made_from) if task.made_from is not None else None


def from_spec(made: Mapping[str, Any]) -> Task:
    """The task that `spec` described: the same text, labels, metrics and lengths, whatever the file holds by now.

    The file may be gone: then the task serves to judge other data.
    """
    if set(made) != KEYS or made["kind"] not in METRICS:
        wrong = sorted(KEYS.symmetric_difference(made)) or [f"kind {made['kind']!r}"]
        raise UserError(f"this does not describe a task of own data (wrong: {', '.join(wrong)})")
    if made["version"] != VERSION:
        raise UserError(f"own data of version {made['version']} cannot be read; this is version {VERSION}")
    path, inputs, target = Path(made["path"]), str(made["inputs"]), str(made["target"])
    labels = None if made["labels"] is None else tuple(made["labels"])

    def to_pair(row: Row) -> Pair | None:
        return pair_of(row, inputs, target, labels)

    return Task(
        name=made["name"],
        version=VERSION,
        about=f"{made['kind']} from {path.name}",
        sources=sources(path, inputs, to_pair),
        to_pair=to_pair,
        metrics=METRICS[made["kind"]],
        baseline={LABELS: COMMONEST_LABEL, SHORT: COMMONEST_ANSWER}.get(made["kind"]) or first_sentence_of(inputs),
        input_tokens=made["input_tokens"],
        target_tokens=made["target_tokens"],
        labels=labels,
        made_from=dict(made),
    )


def first_sentence_of(template: str) -> Baseline:
    """The first sentence after the template's leading words, which are the same in every input."""
    literal, _ = pieces(template)[0]
    return Baseline("first sentence", first_sentences(1, prefix=literal.lstrip()))


def given_name(name: str) -> str:
    if name in names():
        raise UserError(f"{name} is the name of another task; give yours one of its own")
    return name


def free_name(path: Path) -> str:
    """The file's name without its endings, marked where a task of that name exists: records must not mix them."""
    inner = path.with_suffix("") if path.suffix in COMPRESSED else path
    plain = path.name if path.is_dir() else inner.stem
    return f"own-{plain}" if plain in names() else plain


def layout(path: Path) -> dict[str, Part]:
    """The splits of a file or folder, and where their rows are."""
    if path.is_file():
        return {split: Part((path,), *share) for split, share in SHARES.items()}
    if not path.is_dir():
        raise UserError(f"no such file or folder: {path}")
    shown = (entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    there = sorted({match["split"] for name in shown if (match := SPLIT_FILE.fullmatch(name))})
    if not there:
        raise UserError(f"{path} holds no table named after its split, such as train.jsonl or validation.csv")
    parts = {split: Part(tuple(files(path, split))) for split in there}
    held_out = next((split for split in VALIDATION if split in parts), None)
    if held_out:
        parts["validation"] = parts.pop(held_out)
    elif "train" in parts:
        parts |= {split: Part(parts["train"].paths, *share) for split, share in HELD_OUT.items()}
    return parts


def sources(path: Path, inputs: str, to_pair: Callable[[Row], Pair | None]) -> dict[str, Source]:
    if not path.exists():
        return {split: absent(path) for split in SHARES}
    return {split: source(split, part, inputs, to_pair) for split, part in layout(path).items()}


def absent(path: Path) -> Source:
    def rows() -> Iterator[Row]:
        raise UserError(f"{path}, which this task was made from, is gone; give other rows for it")
        yield

    return Source(str(path), rows, lambda: str(path))


def source(split: str, part: Part, inputs: str, to_pair: Callable[[Row], Pair | None]) -> Source:
    whole = (part.low, part.high) == (0.0, 1.0)
    share = "" if whole else f"[{split}: inputs whose hash is from {part.low:g} to {part.high:g}]"

    def rows() -> Iterator[Row]:
        for path in part.paths:
            for record in read_records(path):
                try:
                    chosen = whole or part.low <= place(own_words(inputs, record.fields)) < part.high
                    if chosen:
                        to_pair(record.fields)  # a mistake is told here, where the row's number is known
                except UserError as error:
                    raise UserError(f"{path}, row {record.number}: {error}") from None
                if chosen:
                    yield record.fields

    def origin() -> str:
        return ", ".join(from_file(path).origin() for path in part.paths) + share

    return Source(", ".join(map(str, part.paths)) + share, rows, origin)


def own_words(template: str, row: Row) -> str:
    """What a row brings into a template, spaces evened out; the template's own words left out.

    >>> own_words("question: {question} context: {passage}", {"question": "Who? ", "passage": "Ada  did."})
    'Who? Ada did.'
    """
    brought = (written(value_of(row, column, template), column) for _, column in pieces(template) if column is not None)
    return " ".join(" ".join(brought).split())


def place(text: str) -> float:
    """Where a text falls in [0, 1), by a hash. Salted: rows may have been drawn by a plain hash before."""
    return int.from_bytes(sha256(b"split\n" + text.encode()).digest()[:6]) / 2**48


def pairs(path: Path, inputs: str, target: str) -> Iterator[Pair | None]:
    for record in read_records(path):
        try:
            yield pair_of(record.fields, inputs, target, None)
        except UserError as error:
            raise UserError(f"{path}, row {record.number}: {error}") from None


def pair_of(row: Row, inputs: str, target: str, labels: Sequence[str] | None) -> Pair | None:
    """The pair of a row; None where the input or every target is blank.

    >>> row = {"question": "Who?", "passage": "Ada did.", "answers": ["Ada", "Ada L."]}
    >>> pair_of(row, "question: {question} context: {passage}", "{answers}", None)
    Pair(inputs='question: Who? context: Ada did.', accepted=['Ada', 'Ada L.'])
    """
    said = filled(inputs, row).strip()
    accepted = accepted_of(target, row)
    strange = [answer for answer in accepted if labels is not None and answer not in labels]
    if strange:
        raise UserError(f"target {strange[0]!r} is none of this task's labels; {nearest(strange[0], labels or ())}")
    return Pair(said, accepted) if said and accepted else None


def accepted_of(template: str, row: Row) -> list[str]:
    parts = pieces(template)
    if len(parts) == 1 and not parts[0][0] and parts[0][1] is not None:  # one column and nothing else
        value = unpacked(value_of(row, parts[0][1], template))
        if isinstance(value, list):
            return [text for one in value if (text := written(one, parts[0][1]).strip())]
    return [text] if (text := filled(template, row).strip()) else []


def filled(template: str, row: Row) -> str:
    """
    >>> filled("{premise} => {hypothesis} {{sic}}", {"premise": "It rains.", "hypothesis": 1})
    'It rains. => 1 {sic}'
    """
    found = []
    for literal, column in pieces(template):
        found.append(literal)
        if column is not None:
            found.append(written(value_of(row, column, template), column))
    return "".join(found)


@lru_cache(maxsize=16)
def pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """The literal texts of a template, each with the column that follows it; at least one column."""
    how = "write a column's name between braces, as in '{question}', and a brace itself twice"
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"cannot read the template {template!r} ({error}); {how}") from None
    if any(column == "" or form or conversion for _, column, form, conversion in parsed):
        raise UserError(f"cannot read the template {template!r}; {how}")
    if all(column is None for _, column, _, _ in parsed):
        raise UserError(f"the template {template!r} names no column; {how}")
    return tuple((literal, column) for literal, column, _, _ in parsed)


def value_of(row: Row, column: str, template: str) -> Any:
    if column not in row:
        raise UserError(
            f"the template {template!r} asks for a column {column!r}; {nearest(column, map(str, row))} "
            "(--input-template and --target-template name the columns)"
        )
    return row[column]


def written(value: Any, column: str) -> str:
    """A column's value as text: texts and numbers as they are, nothing for null, a list's texts joined by spaces."""
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    raise UserError(f"column {column!r} holds a {type(value).__name__}, which is no text")


def survey(pairs: Iterable[Pair | None], labels: Sequence[str] | None) -> Found | None:
    """What the rows are: labels, short answers or texts, and how long. None where there is no pair."""
    counts: Counter[str] | None = Counter() if labels is None else None
    input_bytes, target_bytes, target_words = [], [], []
    for pair in pairs:
        if pair is None:
            continue
        input_bytes.append(len(pair.inputs.encode()))
        target_bytes.append(len(pair.accepted[0].encode()))
        target_words.append(len(pair.accepted[0].split()))
        if counts is not None:
            counts[pair.accepted[0]] += 1
            if len(pair.accepted) > 1 or len(counts) > MOST_LABELS:
                counts = None
    if not input_bytes:
        return None
    inputs = tokens(float(np.quantile(input_bytes, 0.99)), step=16, most=LONGEST_INPUT)
    closed = tuple(labels or ()) or closed_set(counts or Counter())
    if closed:
        longest = max(len(label.encode()) for label in closed)
        return Found(LABELS, closed, inputs, tokens(1.5 * longest, step=8, most=LONGEST_TARGET))  # never cut a label
    kind = SHORT if np.mean(target_words) <= SHORT_WORDS else LONG
    return Found(kind, None, inputs, tokens(float(np.quantile(target_bytes, 0.99)), step=8, most=LONGEST_TARGET))


def closed_set(counts: Counter[str]) -> tuple[str, ...] | None:
    """The labels, in the order of the alphabet, where these targets are a closed set.

    >>> closed_set(Counter(yes=7, no=5)), closed_set(Counter(yes=7, no=1)), closed_set(Counter(yes=9))
    (('no', 'yes'), None, None)
    """
    enough = counts.total() >= ROWS_PER_LABEL * len(counts) and min(counts.values(), default=0) >= LEAST_OF_A_LABEL
    short = all(len(label) <= LONGEST_LABEL and "\n" not in label for label in counts)
    return tuple(sorted(counts)) if len(counts) > 1 and enough and short else None


def tokens(size: float, *, step: int, most: int) -> int:
    """A bound on the tokens of so many bytes, EOS included: a multiple of `step`, at most `most`."""
    return min(step * int(np.ceil((size / BYTES_PER_TOKEN + 1) / step)), most)
