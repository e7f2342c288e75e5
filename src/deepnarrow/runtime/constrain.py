"""Answers that keep to a form: one of some labels, a regular expression, a JSON schema.

A constraint says at each step which ids may follow (masks.py), so that what comes out keeps to the form whatever the
model is, under every search. Only `max_tokens` can cut it short: then the output's `whole` is False.

    constraint = regex(tokenizer, r"[0-9]{4}-[0-9]{2}-[0-9]{2}", engine.shape.vocab)
    [[output]] = generate(engine, [ids], Greedy(), constraints=[constraint])
    tokenizer.decode(output.ids)

Labels are walked as a trie of the ids that the tokenizer gives them. Regular expressions (the syntax of Rust's regex
crate: no look-around, matched as a whole) and JSON schemas are kept by llguidance, an optional package (`pip install
"deepnarrow[constrain]"`), which is asked about texts: any cut of a text into pieces will do.

What T5's vocabulary brings with it. A text begins with U+2581, the space that decoding takes away, so the form is held
behind one. There is no piece for some characters, in the published vocabulary for `{`, `}`, `<`, `~`, a backslash and
line breaks: alternatives of a regular expression that need them are not begun, and where nothing is left, or a schema
cannot do without them, a `UserError` names them. Vocabularies of bytes or with byte fallback can write everything.
Padding, the unknown id and sentinels are never allowed.

Shape key   V vocabulary   W words of a mask, ceil(V / 32)
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.masks import BITS, only
from deepnarrow.runtime.trie import Trie
from deepnarrow.text.vocabulary import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SPACE = "\u2581"  # how a piece writes a space
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
QUANTIFIER = re.compile(r"\{\d*,?\d*\}")
# At most one space where JSON allows white space, so that both common ways to write it can come, but no endless blanks.
WHITESPACE = {"whitespace_pattern": " ?"}
NO_FORCING = '%llguidance {"no_forcing": true}\n'  # a forced text may be cut into pieces in any way, as all others


class Choices:
    """One of some sequences of ids: a place in their trie."""

    def __init__(self, node: Trie, vocab: int, eos: int) -> None:
        self._node, self._vocab, self._eos = node, vocab, eos

    @property
    def fulfilled(self) -> bool:
        return self._eos in self._node.next

    def mask(self, left: int) -> np.ndarray:
        """Only what can be finished in time: a choice that is too long for `max_tokens` is not begun."""
        return only((id for id, below in self._node.next.items() if below.shortest < left), self._vocab)

    def after(self, id: int) -> "Choices":
        return Choices(self._node.next[id], self._vocab, self._eos)


def choices(tokenizer: Tokenizer, labels: Sequence[str], vocab: int) -> Choices:
    """One of these texts and nothing else. `vocab` is the model's, which may be larger than the tokenizer's.

    Greedy decoding under it takes the likeliest next token each time, which need not lead to the likeliest label;
    `likelihood.rank` of `label_ids` finds that one, with exact probabilities.

    >>> from deepnarrow.text.byte_tokenizer import ByteTokenizer
    >>> from deepnarrow.runtime.masks import ids_of
    >>> ids_of(choices(ByteTokenizer(), ["no", "not"], 384).mask(9)).tolist() == [ord("n") + 3]
    True
    """
    return Choices(Trie.of(label_ids(tokenizer, labels)), vocab, tokenizer.eos)


def label_ids(tokenizer: Tokenizer, labels: Sequence[str]) -> list[list[int]]:
    """Each label's ids, EOS included. Labels that are empty, there twice, or cannot be written are a `UserError`."""
    if not labels:
        raise UserError("there is nothing to choose from: give at least one choice")
    if "" in (label.strip() for label in labels):
        raise UserError("a choice is empty; leave out the comma or the line that makes it")
    found = [[*ids, tokenizer.eos] for ids in tokenizer.encode_batch(list(labels))]
    seen: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, found, strict=True):
        if tokenizer.unk in ids:
            raise cannot_write(unwritable(tokenizer, label), f"the choice {label!r} needs")
        if tuple(ids) in seen:
            raise UserError(f"the choices {seen[tuple(ids)]!r} and {label!r} are the same to the model; leave one out")
        seen[tuple(ids)] = label
    return found


class Grammar:
    """What a regular expression or a schema still allows."""

    def __init__(self, matcher: "LLMatcher", vocabulary: "Vocabulary", *, empty: bool = False) -> None:
        self._matcher, self._vocabulary, self._empty = matcher, vocabulary, empty

    @property
    def fulfilled(self) -> bool:
        return self._empty or self._matcher.is_accepting()

    def mask(self, left: int) -> np.ndarray:
        """What may follow; with one token left and nothing missing, the end."""
        if left <= 1 and self.fulfilled:
            return self._vocabulary.end_W
        return self._mask_W

    @cached_property
    def _mask_W(self) -> np.ndarray:
        vocabulary = self._vocabulary
        found_W = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(vocabulary.end_W)]
        return found_W & vocabulary.text_W | (vocabulary.end_W if self.fulfilled else vocabulary.nothing_W)

    def after(self, id: int) -> "Grammar":
        matcher = self._matcher.deep_copy()  # a few microseconds
        matcher.consume_token(id)
        return Grammar(matcher, self._vocabulary)


def regex(tokenizer: Tokenizer, pattern: str, vocab: int) -> Grammar:
    """A text that a regular expression matches as a whole. `vocab` is the model's."""
    vocabulary = Vocabulary.of(tokenizer, vocab)
    wanted = f"(?:{escaped(pattern)})"
    found = vocabulary.matcher(f"start: TEXT\nTEXT: /{vocabulary.front}{wanted}/{vocabulary.kept}")
    problem = complaint(found)
    if problem:
        raise UserError(f"the regular expression {pattern!r} cannot be read: {problem}")
    alone = vocabulary.matcher(f"start: TEXT\nTEXT: /{wanted}/{vocabulary.kept}")
    grammar = Grammar(found, vocabulary, empty=bool(vocabulary.front) and not complaint(alone) and alone.is_accepting())
    if not grammar.mask(2).any():
        missing = sorted(set(literals(pattern)) - vocabulary.writable) if vocabulary.writable is not None else []
        if not missing:
            raise UserError(f"no text that this vocabulary can write matches the regular expression {pattern!r}")
        raise cannot_write(missing, f"the regular expression {pattern!r} needs")
    return grammar


def json_schema(tokenizer: Tokenizer, schema: Mapping[str, Any] | bool | str, vocab: int) -> Grammar:
    """JSON that a schema (a mapping, or its text) accepts. `vocab` is the model's.

    Properties come in the schema's order. Anything in the schema that cannot be held is a `UserError`; `format` is held
    for the formats that llguidance knows. At most one space stands where JSON allows white space; a member
    "x-guidance" of the schema sets that otherwise (llguidance's documentation).
    """
    vocabulary = Vocabulary.of(tokenizer, vocab)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise UserError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, (Mapping, bool)):
        raise UserError(f"a JSON schema is an object, not {json.dumps(schema)[:60]}")
    known: Mapping[str, Any] = schema if isinstance(schema, Mapping) else {} if schema else {"not": {}}
    missing = vocabulary.missing("".join(needed(known)))
    if missing:
        raise cannot_write(missing, "the JSON schema needs")
    with_spaces = {**known, "x-guidance": {**WHITESPACE, **known.get("x-guidance", {})}}
    front = '" " ' if vocabulary.front else ""
    found = vocabulary.matcher(f"start: {front}value\nvalue: %json {json.dumps(with_spaces)}")
    problem = complaint(found)
    if problem:
        raise UserError(f"the JSON schema cannot be held: {problem}")
    return Grammar(found, vocabulary)


class Vocabulary:
    """What the ids of a tokenizer write, for a model of `vocab` ids."""

    _last: "tuple[tuple[str, int], Vocabulary] | None" = None

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self.vocab, self.eos = vocab, tokenizer.eos
        self.surfaces = [*surfaces(tokenizer), *[None] * (vocab - tokenizer.size)][:vocab]
        texts = [text for text in self.surfaces if text is not None]
        self.front = " " if drops_space(tokenizer) else ""
        self.writable: set[str] | None = None  # characters; None: all, byte by byte
        if sum(len(text) == 1 for text in texts) < 255:  # a byte each, the space perhaps not among them
            self.writable = {text.decode() for text in texts if len(text.decode()) == 1}
        self.text_W = only((id for id, text in enumerate(self.surfaces) if text), vocab)
        self.end_W = only([self.eos], vocab)
        self.nothing_W = np.zeros(-(-vocab // BITS), np.uint32)

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab: int) -> "Vocabulary":
        """The last one is kept: it takes tens of milliseconds to build, and a process has one tokenizer as a rule."""
        key = (tokenizer.fingerprint, vocab)
        if cls._last is None or cls._last[0] != key:
            cls._last = key, cls(tokenizer, vocab)
        return cls._last[1]

    @cached_property
    def guide(self) -> "LLTokenizer":
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise UserError(
                "regular expressions and JSON schemas need the package llguidance; install it with "
                "`pip install 'deepnarrow[constrain]'`"
            ) from None
        return LLTokenizer(TokenizerWrapper(Described(self)), n_vocab=self.vocab, eos_token=self.eos)

    def matcher(self, grammar: str) -> "LLMatcher":
        from llguidance import LLMatcher

        return LLMatcher(self.guide, LLMatcher.grammar_from_lark(NO_FORCING + grammar), log_level=0)

    @property
    def kept(self) -> str:
        """What a terminal is cut with, so that it never begins what the vocabulary cannot finish."""
        if self.writable is None:
            return ""
        listed = "".join(rf"\x{{{ord(character):x}}}" for character in sorted(self.writable))
        return f" & /[{listed}]*/"

    def missing(self, text: str) -> list[str]:
        return [] if self.writable is None else sorted(set(text) - self.writable)


class Described:
    """A vocabulary as llguidance wants it: bytes for each id, those of special ids behind 0xFF."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos
        self.tokens = [b"\xff<%d>" % id if text is None else text for id, text in enumerate(vocabulary.surfaces)]
        self.special_token_ids = [id for id, text in enumerate(vocabulary.surfaces) if text is None]

    def __call__(self, text: str) -> list[int]:
        return []  # asked only where a text is forced, and none is


def surfaces(tokenizer: Tokenizer) -> list[bytes | None]:
    """What each id adds to a text, U+2581 as a space; None for those that are no text.

    >>> from deepnarrow.text.byte_tokenizer import ByteTokenizer
    >>> surfaces(ByteTokenizer())[:5], surfaces(ByteTokenizer())[-1]
    ([None, None, None, b'\\x00', b'\\x01'], None)
    """
    hidden = {tokenizer.pad, tokenizer.eos, tokenizer.unk, *map(tokenizer.sentinel, range(tokenizer.sentinels))}
    if tokenizer.kind == "bytes":
        return [None if id in hidden else bytes([id - 3]) for id in range(tokenizer.size)]
    found: list[bytes | None] = []
    for id in range(tokenizer.size):
        try:
            piece = tokenizer.piece(id)
        except ValueError:  # a hole in a tokenizer.json
            found.append(None)
            continue
        byte = BYTE.fullmatch(piece)
        if byte and tokenizer.decode([id]) != piece:
            # a space as a byte is never what a tokenizer writes, and decoders differ on it at a text's beginning
            found.append(None if byte[1] == "20" else bytes([int(byte[1], 16)]))
        else:
            found.append(None if id in hidden else piece.replace(SPACE, " ").encode())
    return found


def drops_space(tokenizer: Tokenizer) -> bool:
    """Whether decoding takes away the space that a text begins with."""
    if tokenizer.kind == "bytes":
        return False
    spaced = next((id for id in range(3, tokenizer.size) if re.fullmatch(f"{SPACE}\\w+", tokenizer.piece(id))), None)
    return spaced is not None and not tokenizer.decode([spaced]).startswith(" ")


def unwritable(tokenizer: Tokenizer, text: str) -> list[str]:
    return sorted({character for character in text if tokenizer.unk in tokenizer.encode(character)})


def cannot_write(characters: Iterable[str], what: str) -> UserError:
    shown = " ".join(repr(character) for character in characters) or "some characters"
    return UserError(
        f"the model's vocabulary cannot write {shown}, which {what}; use a model of bytes (ByT5) or train a vocabulary "
        "with `deepnarrow tokenizer train --byte-fallback`"
    )


def escaped(pattern: str) -> str:
    r"""A regular expression as it stands between slashes on one line.

    >>> print(escaped(r"a/b\/c\\/d"))
    a\/b\/c\\\/d
    """
    pieces = re.findall(r"\\.|[^\\]|\\$", pattern, re.DOTALL)
    return "".join({"/": "\\/", "\n": "\\n", "\r": "\\r", "\\\n": "\\n"}.get(piece, piece) for piece in pieces)


def literals(pattern: str) -> list[str]:
    r"""The characters that a regular expression names, more or less: for an error's text.

    >>> literals(r"\{[0-9]{2}\}~")
    ['{', '0', '9', '}', '~']
    """
    found = []
    for piece in re.findall(r"\\[uUxpP]\{[^}]*\}|\\.|\{\d*,?\d*\}|[^\\]", pattern, re.DOTALL):
        if piece.startswith("\\"):
            if not piece[1].isalnum():
                found.append(piece[1])
        elif not QUANTIFIER.fullmatch(piece) and piece not in "[]()|?*+.^$-":
            found.append(piece)
    return found


def complaint(matcher: "LLMatcher") -> str:
    """What is wrong with a grammar, in one line; nothing where it is right."""
    text = matcher.get_error() if matcher.is_error() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if named or not lines:
        return named[0] if named else ""
    first = lines[0].rsplit("(in regex): ", 1)[-1]
    return re.sub(r" in regex /.*|^at \d+\(\d+\): ", "", first)


def needed(schema: object) -> Iterator[str]:
    """Text that no answer to a schema can do without, or that some of its alternatives need.

    >>> sorted(set("".join(needed({"type": "object", "properties": {"a": {"enum": [1, "b"]}}, "required": ["a"]}))))
    ['"', '1', ':', 'a', 'b', '{', '}']
    """
    if isinstance(schema, list):
        for one in schema:
            yield from needed(one)
    if not isinstance(schema, Mapping):
        return
    kind = schema.get("type")
    if kind == "object":
        yield "{}"
    if kind == "array":
        yield "[]"
    if kind == "string" and not {"enum", "const"} & schema.keys():
        yield '"'
    if isinstance(schema.get("properties"), Mapping):
        for name, value in schema["properties"].items():
            yield f"{json.dumps(name, ensure_ascii=False)}:"
            yield from needed(value)
    for name in ("enum", "const"):
        if name in schema:
            values = schema[name] if name == "enum" and isinstance(schema[name], list) else [schema[name]]
            yield from (json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values)
    for name in ("items", "prefixItems", "anyOf", "oneOf", "allOf"):
        yield from needed(schema.get(name))
    for name in ("$defs", "definitions"):
        if isinstance(schema.get(name), Mapping):
            yield from needed(list(schema[name].values()))
