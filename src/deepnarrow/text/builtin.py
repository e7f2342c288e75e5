"""Real English prose that is on any machine with Python: what the standard library says about itself.

Sources, in this order: the language reference's topics (pydoc_data), then module by module the docstrings and the block
comments of three lines and more. Nothing is imported but the topics; the rest is read with `ast`. Tests, vendored
wheels and generated tables are left out. Text is cleaned into paragraphs: doctests, code, tables and most reST markup
go, and a paragraph that was seen before is not given again. CPython 3.11 yields 2.0 MB. The order is fixed; the text
depends on the Python version alone, which a run records.

Reading takes seconds, so what was read is kept: in $DEEPNARROW_CACHE/builtin, or ~/.cache/deepnarrow/builtin, one file
for each standard library, with what it was made of (this Python, this file, and the size and time of every source).
Where one of these has changed, it is read anew.
"""

import ast
import gc
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import sha256
from inspect import cleandoc
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

from deepnarrow.errors import UserError
from deepnarrow.files import cache_folder, read_json, write_text

LEFT_OUT = {
    "test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "turtledemo", "_bundled", "encodings",
    "pydoc_data", "__pycache__", "__phello__",
}  # fmt: skip
SHARES = {"train": 70, "validation": 15, "test": 15}  # percent of the items
COMMENT_LINES = 3  # shorter comments speak of the line below them
COMMON_WORDS = (
    "a about after all also an and any are as at be been before between both but by can could do does each either else "
    "for from given has have if in into is it its may more most must no not of on one only or other same should since "
    "so some such than that the their them then there these they this to until used using was we were what when where "
    "whether which while who will with without would you your"
)
COMMON = frozenset(COMMON_WORDS.split())
WORD = re.compile(r"""["'(\[]*[A-Za-z][a-z]*(?:['-][A-Za-z]+)*[.,;:!?)\]"']*""")
MARKUP = (  # reST and epydoc, lightly: what is said stays, how it is set goes
    (re.compile(r":[a-z:]+:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`]+)`_?"), r"\1"),
    (re.compile(r"(?<![\w*])\*{1,2}([A-Za-z][^*\n]*?)\*{1,2}(?![\w*])"), r"\1"),
    (re.compile(r"[ \t]+"), " "),
)
DIRECTIVE = re.compile(r"\.\. |:[a-z]+:|@[a-z]+\b")
RULE = re.compile(r"[\W_]*")  # a line without a letter or digit
ITEM = re.compile(r"(?:[-*+o]|\d+[.)]|\(\w\))\s+")
LEGAL = re.compile(r"copyright|licen[sc]e|all rights reserved|permission is hereby|warrant", re.I)


class Spoken(NamedTuple):
    """One docstring or comment as written. `name` is the qualified name, empty for a module; a comment has its line."""

    module: str
    name: str
    kind: str  # "topic", "module", "class", "method", "function" or "comment"
    text: str


class Prose(NamedTuple):
    """All that is drawn from the library. A document is its text and its source ("json.decoder:JSONDecoder")."""

    documents: list[tuple[str, str]]
    training: list[tuple[str, str]]
    records: list[dict[str, str]]


def documents() -> Iterator[tuple[str, str]]:
    """Cleaned text and source, in a fixed order, no paragraph twice."""
    yield from prose().documents


def training_documents() -> Iterator[tuple[str, str]]:
    """The same for a model that will be judged on `validation` or `test`: without what falls to them, and without a
    paragraph that they share with a text of `train`, as the functions of one family often do.
    """
    yield from prose().training


def key(paragraph: str) -> str:
    """What makes two paragraphs the same."""
    return " ".join(paragraph.lower().split())


def source(spoken: Spoken) -> str:
    return f"{spoken.module}:{spoken.name}".rstrip(":")


def split_of(name: str) -> str:
    """The split that an item belongs to, by its qualified name alone: one added or removed moves no other.

    >>> split_of("json.decoder:JSONDecoder"), split_of("textwrap:dedent")
    ('test', 'validation')
    """
    place = int(digest(name)[-8:], 16) % 100
    ends = zip(SHARES, accumulate(SHARES.values()), strict=True)
    return next(split for split, end in ends if place < end)


def digest(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def records() -> Iterator[dict[str, str]]:
    """Docstrings with a summary line and a body, as PEP 257 sets them: the line, a blank line, the rest.

    `package` is the top-level package ("json" for json.decoder), `kind` one of module, class, method, function. The
    body is cleaned prose, does not repeat the summary, and no summary or body comes twice.

        {"module": "textwrap", "package": "textwrap", "name": "dedent", "kind": "function",
         "summary": "Remove any common leading whitespace from every line in text.",
         "body": "This can be used to make triple-quoted strings line up with the left edge of the display, ..."}
    """
    yield from ({**record} for record in prose().records)


@cache
def prose() -> Prose:
    """What the library yields: from the cache, if it was made of the same, else read and kept there."""
    root = library()
    made_from = state_of(root)
    file = cache_folder() / "builtin" / f"{digest(str(root))[:16]}.json"
    with suppress(UserError, OSError, KeyError, TypeError, ValueError):  # absent, or not as it was written
        held = read_json(file)
        if held["made_from"] == made_from:
            documents, training = ([(text, name) for text, name in held[which]] for which in ("documents", "training"))
            return Prose(documents, training, held["records"])
    found = read(root)
    with suppress(OSError):  # a cache that cannot be written costs time alone
        write_text(file, json.dumps({"made_from": made_from, **found._asdict()}))
    return found


def library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def state_of(root: Path) -> str:
    """A digest of all that the prose depends on."""
    named = [(path, path.relative_to(root).as_posix()) for path in (*modules(root), root / "pydoc_data" / "topics.py")]
    known = [(name, (found := path.stat()).st_size, found.st_mtime_ns) for path, name in named if path.is_file()]
    return digest(json.dumps([sys.version, digest(Path(__file__).read_text("utf-8")), known]))


def read(root: Path) -> Prose:
    """Everything anew. The paragraphs of each text are found once, for all three of its uses."""
    library = [(spoken, paragraphs(spoken.text)) for spoken in spoken_library(root)]
    judged = {key(one) for spoken, found in library if split_of(source(spoken)) != "train" for one in found}
    seen: set[str] = set()
    documents, training = [], []
    for spoken, found in library:
        fresh = []
        for paragraph in found:
            if key(paragraph) not in seen:
                seen.add(key(paragraph))
                fresh.append(paragraph)
        if fresh:
            documents.append(("\n\n".join(fresh), source(spoken)))
            kept = [paragraph for paragraph in fresh if key(paragraph) not in judged]
            if kept and split_of(source(spoken)) == "train":
                training.append(("\n\n".join(kept), source(spoken)))
    return Prose(documents, training, summarised(spoken for spoken, _ in library))


def summarised(library: Iterable[Spoken]) -> list[dict[str, str]]:
    """The `records` among what is said."""
    seen: set[str] = set()
    found = []
    for spoken in library:
        if spoken.kind in ("topic", "comment"):
            continue
        first, blank, rest = (*spoken.text.split("\n", 2), "", "")[:3]
        summary = unmarked(first.strip())
        if blank.strip() or not 4 <= len(summary.split()) <= 30:
            continue
        if not summary[0].isalpha() or not is_prose(summary, least=4):
            continue
        body = "\n\n".join(paragraphs(rest))
        if len(body.split()) < 12 or summary in body or {summary.lower(), body.lower()} & seen:
            continue
        seen |= {summary.lower(), body.lower()}
        package = spoken.module.split(".")[0]
        found.append({"module": spoken.module, "package": package, "name": spoken.name, "kind": spoken.kind})
        found[-1] |= {"summary": summary, "body": body}
    return found


def spoken_library(root: Path) -> list[Spoken]:
    """Everything the standard library says, as written."""
    found = list(topics())
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are many small objects without cycles: collecting them takes most of the time
    try:
        for path in modules(root):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found += file_says(path, name.removesuffix(".__init__"))
    finally:
        if collecting:
            gc.enable()
    if len(found) < 1000:
        raise UserError(
            f"builtin:python finds no standard library with sources under {root} (Python {sys.version.split()[0]}); "
            "give a text file or folder instead"
        )
    return found


def modules(root: Path) -> list[Path]:
    """The library's own files, in the order of their paths' parts. Folders that are left out are not entered."""
    found = []
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if name not in LEFT_OUT]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    named = sorted((path.relative_to(root).parts, path) for path in found)
    return [path for parts, path in named if not parts[0].startswith(("config-", "_sysconfigdata"))]


def topics() -> Iterator[Spoken]:
    try:
        from pydoc_data.topics import topics as known
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(known):
        yield Spoken("pydoc_data.topics", name, "topic", known[name])


def file_says(path: Path, module: str) -> Iterator[Spoken]:
    """The docstrings and block comments of one source file; nothing for a file this Python cannot read."""
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
        return
    if text := ast.get_docstring(tree):
        yield Spoken(module, "", "module", text)
    yield from docstrings(tree.body, module, "")
    yield from comments(source, module)


def docstrings(body: Iterable[ast.stmt], module: str, inside: str) -> Iterator[Spoken]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{inside}.{node.name}" if inside else node.name
            kind = "class" if isinstance(node, ast.ClassDef) else "method" if inside else "function"
            if text := ast.get_docstring(node):
                yield Spoken(module, name, kind, text)
            if isinstance(node, ast.ClassDef):
                yield from docstrings(node.body, module, name)


def comments(source: str, module: str) -> Iterator[Spoken]:
    """Runs of comment lines. The name is the number of the first."""
    numbered = enumerate((line.strip() for line in source.split("\n")), start=1)
    for is_comment, group in groupby(numbered, key=lambda pair: pair[1].startswith("#")):
        lines = list(group) if is_comment else []
        if len(lines) >= COMMENT_LINES:
            text = "\n".join(line.lstrip("#") for _, line in lines)
            if not LEGAL.search(text):
                yield Spoken(module, str(lines[0][0]), "comment", cleandoc("\n" + text))


def paragraphs(text: str) -> list[str]:
    """The prose in a docstring or comment, one paragraph a string, its lines joined.

    >>> paragraphs("Add the numbers that are given, and return what they come to.\\n\\n    >>> add(1, 2)\\n    3\\n")
    ['Add the numbers that are given, and return what they come to.']
    """
    found = []
    literal: int | None = None  # indentation of the paragraph that announced a block of code with `::`
    for lines in blocks(text):
        indent = min(len(line) - len(line.lstrip()) for line in lines)
        if literal is not None and indent > literal:
            continue
        literal = indent if lines[-1].rstrip().endswith("::") else None
        for item in items(lines):
            joined = unmarked(" ".join(item))
            if joined.endswith("::"):
                joined = joined[:-1]
            if is_prose(joined):
                found.append(joined)
    return found


def blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines between blank ones, without rules, directives and doctests with their output."""
    doctest = False
    kept: list[str] = []
    for line in [*text.expandtabs().split("\n"), ""]:
        bare = line.strip()
        if not bare:
            if kept:
                yield kept
            kept, doctest = [], False
        elif bare.startswith(">>>"):
            doctest = True
        elif not doctest and not RULE.fullmatch(bare) and not DIRECTIVE.match(bare):
            kept.append(line)


def items(lines: list[str]) -> Iterator[list[str]]:
    """A block's lines as one paragraph, or as one for each item of a list."""
    item: list[str] = []
    for line in lines:
        bare = line.strip()
        if (mark := ITEM.match(bare)) and len(bare) > mark.end():
            if item:
                yield item
            item, bare = [], bare[mark.end() :]
        item.append(bare)
    if item:
        yield item


def unmarked(text: str) -> str:
    """Without inline markup.

    >>> unmarked("See :class:`~os.PathLike` and ``open()``, *not* `file`.")
    'See os.PathLike and open(), not file.'
    """
    for pattern, plain in MARKUP:
        text = pattern.sub(plain, text)
    return text.strip()


def is_prose(text: str, *, least: int = 6) -> bool:
    """Whether a paragraph is English sentences: mostly plain words, a good share of them the commonest ones.

    >>> is_prose("The second argument is used when the first one has no value of its own.")
    True
    >>> is_prose("self.x = getattr(self, 'x', None) or default[0] + 1  # 42")
    False
    """
    tokens = text.split()
    if len(tokens) < least:
        return False
    plain = [token for token in tokens if WORD.fullmatch(token)]
    common = sum(token.lower().strip("\"'()[].,;:!?") in COMMON for token in plain)
    return len(plain) >= 0.75 * len(tokens) and common >= 0.18 * len(tokens)
