"""Whatever the model, what comes out keeps to the form: labels, regular expressions, JSON schemas."""

import json
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.model.engine import TorchEngine
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime import likelihood
from deepnarrow.runtime.constrain import choices, escaped, json_schema, label_ids, regex, surfaces
from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.masks import Constraint, allows, ids_of
from deepnarrow.runtime.search import Beam, Greedy, Sample, generate
from deepnarrow.shapes import parse
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.sentencepiece_tokenizer import SentencePieceTokenizer
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.text.tokenizer_json import JsonTokenizer
from deepnarrow.text.train_tokenizer import train

SEARCHES = [Greedy(), Sample(temperature=3.0, seed=4, num_return=2), Beam(3, num_return=3)]
BYTES = 416  # rows of the model of bytes, as below
LABELS = ["yes", "no", "not sure", "no, never", "No"]


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """Bytes; pieces without and with byte fallback, read by both libraries. The words cover JSON's own characters."""
    if kind == "bytes":
        return ByteTokenizer()
    words = ["yes", "no", "not sure", "No, never", "red", "blue", "green apples", "the answer", "true", "false", "null"]
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(words, 12)) + ' a b c d e 0 1 2 3 4 5 6 7 8 9 [ ] " , . - : x y z q' for _ in range(300)
    ]
    pieces = train(texts, vocab=326 if "fallback" in kind else 70, sentinels=20, byte_fallback="fallback" in kind)
    return JsonTokenizer(json.dumps(pieces.layout).encode()) if "json" in kind else pieces


KINDS = ["bytes", "pieces", "pieces json", "pieces fallback", "pieces fallback json"]


@cache
def model_for(kind: str, seed: int = 1) -> T5:
    """At random, with more rows than the tokenizer has ids, as published models have."""
    vocab = -(-(tokenizer_of(kind).size + 5) // 32) * 32
    model = T5(parse(f"tiny-nl1-dm32-ff64-kv8-v{vocab}"))
    initialise(model, seed=seed)
    return model.eval()


@cache
def torch_engine(kind: str, seed: int = 1) -> Engine:
    return TorchEngine(model_for(kind, seed), vocab_limit=tokenizer_of(kind).size)


def written(kind: str, constraint: Constraint, max_tokens: int = 60, engine: Engine | None = None) -> list[str | None]:
    """The texts of all searches, None where `max_tokens` cut one short."""
    tokenizer = tokenizer_of(kind)
    inputs = [[5, 6, 7, 1], [9, 1]]
    found = []
    for search in SEARCHES:
        for outputs in generate(
            engine or torch_engine(kind), inputs, search, max_tokens=max_tokens, constraints=[constraint] * 2
        ):
            assert outputs
            found += [tokenizer.decode(output.ids) if output.whole else None for output in outputs]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_surfaces_are_what_decoding_gives(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    said = surfaces(tokenizer)
    assert len(said) == tokenizer.size
    texts = [id for id, surface in enumerate(said) if surface is not None and surface.isascii()]
    special = {0, 1, 2, *map(tokenizer.sentinel, range(tokenizer.sentinels))}
    assert not special & set(texts)
    rng = np.random.default_rng(1)
    for _ in range(200):
        ids = rng.choice(texts, 7).tolist()
        whole = b"".join(said[id] for id in ids).decode()
        assert tokenizer.decode(ids) == (whole.removeprefix(" ") if kind != "bytes" else whole)


@pytest.mark.parametrize("kind", KINDS)
def test_only_labels_come_out(kind: str) -> None:
    constraint = choices(tokenizer_of(kind), LABELS, model_for(kind).shape.vocab)
    found = written(kind, constraint)
    assert set(found) <= set(LABELS)
    assert len(set(found)) > 1
    few = written(kind, constraint, max_tokens=len(tokenizer_of(kind).encode("not sure")) + 1)
    assert None not in few


def test_a_label_that_does_not_fit_is_not_begun() -> None:
    constraint = choices(ByteTokenizer(), ["no", "nonsense", "yes"], BYTES)
    assert set(written("bytes", constraint, max_tokens=4)) == {"no", "yes"}
    assert set(written("bytes", constraint, max_tokens=3)) == {"no"}
    [[nothing]] = generate(torch_engine("bytes"), [[5, 1]], Greedy(), max_tokens=2, constraints=[constraint])
    assert (nothing.ids, nothing.whole) == ([], False)


def test_labels_rank_with_exact_probabilities(engine_of: Callable[..., Engine]) -> None:
    """Over all texts of a model that can only write these labels, the probabilities add up to one."""
    engine, tokenizer = engine_of(model_for("bytes")), ByteTokenizer()
    ids = label_ids(tokenizer, LABELS)
    logs = likelihood.rank(engine, [[5, 6, 7, 1], [9, 1]], ids)
    shares = likelihood.probabilities(logs)
    np.testing.assert_allclose(shares.sum(-1), 1.0)
    for row, source in enumerate([[5, 6, 7, 1], [9, 1]]):
        alone = likelihood.score(engine, [source] * len(ids), ids)
        np.testing.assert_allclose(logs[row], alone, rtol=1e-4)
        np.testing.assert_allclose(np.log(shares[row]) - np.log(shares[row][0]), np.array(alone) - alone[0], atol=1e-4)
    wide = Beam(len(LABELS), length_penalty=0.0, early_stopping="never", num_return=len(LABELS))
    constraint = choices(tokenizer, LABELS, BYTES)
    for row, outputs in enumerate(generate(engine, [[5, 6, 7, 1], [9, 1]], wide, constraints=[constraint] * 2)):
        assert [tokenizer.decode(output.ids) for output in outputs] == [LABELS[i] for i in np.argsort(-logs[row])]
        np.testing.assert_allclose([output.score for output in outputs], np.sort(logs[row])[::-1], rtol=1e-4)


def test_labels_that_cannot_be() -> None:
    for labels, message in [
        ([], "at least one choice"),
        (["a", " "], "a choice is empty"),
        (["red", "r\u00e9d\u4f60"], r"cannot write '\u00e9' '\u4f60', which the choice"),
        (["red  apples", "red apples"], "the same to the model"),
    ]:
        with pytest.raises(UserError, match=message):
            choices(tokenizer_of("pieces"), labels, 96)


@st.composite
def patterns(draw: st.DrawFn, depth: int = 2) -> str:
    """Regular expressions that Python and Rust read alike."""
    if depth == 0:
        return draw(st.sampled_from(["a", "b", "[a-d]", "[0-9]", "yes", "no", " ", "x", ",", "\\.", "[^a-w ]", "the"]))
    parts = [draw(patterns(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    kind = draw(st.sampled_from(["row", "or", "star", "times", "maybe"]))
    if kind == "row":
        return "".join(parts)
    if kind == "or":
        return f"(?:{'|'.join(parts)})"
    return f"(?:{''.join(parts)})" + {"star": "*", "maybe": "?", "times": "{1,3}"}[kind]


def check_regex(kind: str, pattern: str) -> None:
    constraint = regex(tokenizer_of(kind), pattern, model_for(kind).shape.vocab)
    for text in written(kind, constraint, max_tokens=30):
        assert text is None or re.fullmatch(pattern, text), (pattern, text)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=4)
@given(pattern=patterns())
def test_what_comes_out_matches_the_regular_expression(kind: str, pattern: str) -> None:
    check_regex(kind, pattern)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(pattern=patterns(3))
def test_what_comes_out_matches_many_regular_expressions(kind: str, pattern: str) -> None:
    check_regex(kind, pattern)


@pytest.mark.parametrize(
    ("pattern", "some"),
    [
        (r"(yes|no)(, (yes|no)){0,2}", "yes"),
        (r"[0-9]{3}/[0-9]{2}", "123/45"),
        (r"[0-9]{3}\/[0-9]{2}", "123/45"),
        (r"a\\b", "a\\b"),
        ("a\nb", "a\nb"),
        (r"(?i)yes", "YeS"),
        (r"\p{Greek}{2}", "\u03b1\u03b2"),
        (r"a?", ""),
        (r" a", " a"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "pieces fallback", "pieces fallback json"])
def test_regular_expressions_one_might_trip_over(kind: str, pattern: str, some: str) -> None:
    tokenizer = tokenizer_of(kind)
    constraint = regex(tokenizer, pattern, model_for(kind).shape.vocab)
    found = written(kind, constraint)
    assert None not in found
    for text in found:
        assert re.fullmatch(
            pattern.replace(r"\p{Greek}", "[\u0370-\u03ff\u1f00-\u1fff\u2126\U00010140-\U0001d245\uab65\u1d00-\u1dbf]"),
            text,
        )
    for id in tokenizer.encode(some) if kind == "bytes" else []:
        assert allows(constraint.mask(9), id)
        constraint = constraint.after(id)
    assert kind != "bytes" or constraint.fulfilled


@pytest.mark.parametrize("kind", ["pieces", "pieces json"])
def test_the_tokenizers_own_cut_of_a_text_is_allowed(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    state: Constraint = regex(tokenizer, r"[a-z ,]+", model_for(kind).shape.vocab)
    for id in tokenizer.encode("the answer, not sure"):
        assert allows(state.mask(9), id)
        state = state.after(id)
    assert state.fulfilled
    assert allows(state.mask(9), tokenizer.eos)
    assert ids_of(state.mask(1)).tolist() == [tokenizer.eos], "the last token is the end where it may be"


def test_what_a_vocabulary_cannot_write_is_not_begun() -> None:
    tokenizer = tokenizer_of("pieces")
    vocab = model_for("pieces").shape.vocab
    found = written("pieces", regex(tokenizer, r"(red\{|blue)+!?", vocab))
    assert {text for text in found if text} <= {"blue" * n for n in range(1, 60)}
    assert set(found) != {None}
    with pytest.raises(UserError, match=r"cannot write '\{' '~', which the regular expression .* needs"):
        regex(tokenizer, r"\{[0-9]{2}~", vocab)
    with pytest.raises(UserError, match="no text that this vocabulary can write"):
        regex(tokenizer, r"[\u{4e00}-\u{9fff}]", vocab)
    with pytest.raises(UserError, match=r"cannot write '\{' '\}', which the JSON schema needs"):
        json_schema(tokenizer, {"type": "object"}, vocab)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "unclosed group"), (r"(?=a)b", "look-ahead"), (r"a\b", "lookarounds not supported"), ("[z-a]", "invalid")],
)
def test_regular_expressions_that_cannot_be_read(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=f"cannot be read: .*{message}") as caught:
        regex(ByteTokenizer(), pattern, BYTES)
    assert "\n" not in str(caught.value)


values = st.sampled_from(
    [
        {"type": "integer", "minimum": -3, "maximum": 120},
        {"type": "number", "minimum": 0, "exclusiveMaximum": 5},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", "blue", 3, None]},
        {"const": "the answer"},
        {"type": "string", "maxLength": 3},
        {"type": "string", "pattern": "^[a-c]{1,2}$"},
        {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "boolean"}]},
    ]
)


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict:
    kind = draw(st.sampled_from(["value", "array", "object"])) if depth else "value"
    if kind == "value":
        return draw(values)
    if kind == "array":
        least = draw(st.integers(0, 2))
        return {"type": "array", "items": draw(schemas(depth - 1)), "minItems": least, "maxItems": least + 1}
    names = draw(st.lists(st.sampled_from(["a", "b c", "d/e", "\u00e9", "0"]), unique=True, max_size=3))
    required = [name for name in names if draw(st.booleans())]
    properties = {name: draw(schemas(depth - 1)) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def check_schema(kind: str, schema: dict) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="validates what came out")
    constraint = json_schema(tokenizer_of(kind), schema, model_for(kind).shape.vocab)
    found = written(kind, constraint, max_tokens=150)
    assert set(found) != {None}
    for text in found:
        if text is not None:
            jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("kind", ["bytes", "pieces fallback json"])
@settings(deadline=None, max_examples=4)
@given(schema=schemas())
def test_what_comes_out_is_json_that_the_schema_accepts(kind: str, schema: dict) -> None:
    check_schema(kind, schema)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bytes", "pieces fallback", "pieces fallback json"])
@settings(deadline=None, max_examples=60)
@given(schema=schemas())
def test_what_comes_out_is_json_that_many_schemas_accept(kind: str, schema: dict) -> None:
    check_schema(kind, schema)


def test_json_without_braces_needs_none() -> None:
    """What T5's vocabulary can write of JSON it may write: numbers, strings, lists."""
    schema = {"type": "array", "items": {"enum": ["red", "blue", "the answer", 12]}, "minItems": 2, "maxItems": 3}
    constraint = json_schema(tokenizer_of("pieces"), json.dumps(schema), model_for("pieces").shape.vocab)
    for text in written("pieces", constraint):
        assert set(json.loads(text)) <= {"red", "blue", "the answer", 12}
        assert 2 <= len(json.loads(text)) <= 3


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is an object"),
        ({"type": "strong"}, "cannot be held"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "cannot be held"),
    ],
)
def test_schemas_that_cannot_be_held(schema: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        json_schema(ByteTokenizer(), schema, BYTES)
    assert "\n" not in str(caught.value)


def test_an_early_end_is_put_off_but_not_beyond_the_form() -> None:
    constraint = regex(ByteTokenizer(), "a{1,3}", BYTES)
    [[output]] = generate(
        torch_engine("bytes"), [[5, 1]], Sample(seed=3, temperature=5.0), min_tokens=2, constraints=[constraint]
    )
    assert output.ids in ([100] * 2, [100] * 3)
    [[output]] = generate(torch_engine("bytes"), [[5, 1]], Greedy(), min_tokens=9, constraints=[constraint])
    assert output.ids == [100] * 3


def test_an_answer_cut_short_says_so() -> None:
    constraint = regex(ByteTokenizer(), "[a-z]{20}", BYTES)
    for search in (Greedy(), Beam(2)):
        [[output]] = generate(torch_engine("bytes"), [[5, 1]], search, max_tokens=9, constraints=[constraint])
        assert not output.whole
        [[output]] = generate(torch_engine("bytes"), [[5, 1]], search, max_tokens=21, constraints=[constraint])
        assert output.whole


def test_slashes_are_escaped_once() -> None:
    assert escaped("a/b") == "a\\/b"
    assert escaped("a\\/b") == "a\\/b"
    assert escaped("\\\\/") == "\\\\\\/"


def test_the_published_vocabulary(shared) -> None:
    """T5's own: no braces, a text begins with a space that decoding drops."""
    from deepnarrow.text.tokenizer import load

    for name in ("tokenizer.json", "spiece.model"):
        path = shared / "data" / "t5_tokenizer" / name
        if not path.is_file():
            pytest.skip(f"no {name} there")
        tokenizer = load(path)
        state: Constraint = regex(tokenizer, r"[A-Za-z ,.']+", 32128)
        for id in tokenizer.encode("It's a fine day, and Vietnam plays."):
            assert allows(state.mask(9), id)
            state = state.after(id)
        assert state.fulfilled
        with pytest.raises(UserError, match=r"cannot write '\{' '\}', which the JSON schema needs"):
            json_schema(tokenizer, {"type": "object"}, 32128)
        assert isinstance(tokenizer, JsonTokenizer | SentencePieceTokenizer)
