"""The grammar: every legal shape has one name that reads back, every mistake teaches."""

import re
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.shapes import BASES, Shape, canonical, parse
from deepnarrow.shapes.shape import FEED_FORWARDS, LARGEST, NUMBERS, SIZES, WORDS

# Sizes meet the borders of the grammar: thousands, their binary readings, ordinary numbers, the largest.
size = st.one_of(st.integers(1, 9000), st.sampled_from([1000, 1024, 2000, 2048, 3072, 12288, 128000, 131072, LARGEST]))


@st.composite
def legal_shapes(draw: st.DrawFn) -> Shape:
    heads = draw(st.integers(1, 64))
    layers = draw(st.integers(1, 64))
    share = draw(st.booleans())
    buckets = draw(st.integers(4, 128))
    base = draw(st.sampled_from([None, *BASES.values()]))
    changes = {
        "d_model": draw(size),
        "d_ff": draw(size),
        "num_heads": heads,
        "kv_heads": draw(st.sampled_from([None, *(n for n in range(1, heads + 1) if heads % n == 0)])),
        "encoder_layers": layers,
        "decoder_layers": layers if share else draw(st.integers(0, 64)),
        "d_kv": draw(size),
        "tie_kv": draw(st.booleans()),
        "share_encoder_decoder": share,
        "feed_forward": draw(st.sampled_from(FEED_FORWARDS)),
        "tied": draw(st.booleans()),
        "vocab": draw(size),
        "relative_buckets": buckets,
        "relative_distance": draw(st.integers(buckets // 2 + 1, 4096)),
    }
    if base is None:
        return Shape(**changes)
    depths, positions, heads_of = (
        {"encoder_layers", "decoder_layers", "share_encoder_decoder"},
        {"relative_buckets", "relative_distance"},
        {"num_heads", "kv_heads"},
    )
    chosen = draw(st.sets(st.sampled_from(sorted(changes)), max_size=4))
    for group in (depths, positions, heads_of):  # what must agree changes together
        if chosen & group:
            chosen |= group
    return replace(base, **{name: changes[name] for name in chosen})


@settings(max_examples=500, deadline=None)
@given(legal_shapes())
def test_every_shape_has_a_name_that_reads_back(shape: Shape) -> None:
    assert parse(str(shape)) == shape
    assert str(parse(str(shape))) == str(shape)


@settings(max_examples=200, deadline=None)
@given(legal_shapes(), st.randoms(use_true_random=False))
def test_edits_may_stand_in_any_order(shape: Shape, random: object) -> None:
    name = str(shape)
    head = next(base for base in sorted(BASES, key=len, reverse=True) if name.startswith(base))
    edits = name[len(head) :].split("-")[1:]
    if not any(edit.startswith("nl") for edit in edits):  # nl sets what el and dl set, so there the order counts
        random.shuffle(edits)  # type: ignore[attr-defined]
    assert parse("-".join([head, *edits])) == shape


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abdefghiklmnqrstuvwy0123456789-_=./ ", max_size=24))
def test_any_text_is_a_shape_or_a_user_error(text: str) -> None:
    for given_text in (text, f"small-{text}"):
        try:
            shape = parse(given_text)
        except UserError:
            continue
        assert parse(str(shape)) == shape


@pytest.mark.parametrize("base", BASES)
def test_a_base_is_named_by_itself(base: str) -> None:
    assert str(parse(base)) == base


def test_every_field_can_be_written() -> None:
    written = {name for names in NUMBERS.values() for name in names} | {
        name for sets in WORDS.values() for name in sets
    }
    assert written == {field.name for field in fields(Shape)}


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("tiny-ff1000", "d_ff", 1024),
        ("tiny-ff12000", "d_ff", 12288),
        ("base-dm2000", "d_model", 2048),
        ("base-dm2000", "d_kv", 64),
        ("tiny-ff=1000", "d_ff", 1000),
        ("base-nh24", "inner", 24 * 64),
        ("small-kv16", "inner", 8 * 16),
        ("small-kh1", "kv_inner", 64),
        ("small-kh8", "kv_heads", None),
        ("small-kh4-nh4", "kv_heads", None),
        ("small-nl8-dl2", "encoder_layers", 8),
        ("small-el4-el6", "encoder_layers", 6),
        ("v1_1-base", "feed_forward", "gated-gelu"),
        ("v1_1-base-tied", "tied", True),
        ("small-dl0", "decoder_layers", 0),
        ("base-sh", "share_encoder_decoder", True),
        ("base-sh", "tie_kv", False),
        ("base-skv", "tie_kv", True),
        ("small-shkv", "tie_kv", True),
        (" Small-EL16 ", "encoder_layers", 16),
    ],
)
def test_reading(text: str, field: str, value: object) -> None:
    assert getattr(parse(text), field) == value


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("small-dl2-el16", "small-el16-dl2"),
        ("small-el8-dl8", "small-nl8"),
        ("small-dl0", "small-dl0"),
        ("small-nl24", "small-nl24"),
        ("large-nl12-dm768-ff3072-nh12", "base"),
        ("small-sh-skv", "small-shkv"),
        ("small-dm=1000", "small-dm=1000"),
        ("small-geglu-untied-nl8-ff1000-nh6", "v1_1-small"),
    ],
)
def test_printing(text: str, name: str) -> None:
    assert str(parse(text)) == name
    assert canonical(parse(text)) == name


@pytest.mark.parametrize("base", ["tiny", "small", "v1_1-base"])
@pytest.mark.parametrize("key", [key for key in (*NUMBERS, *WORDS) if len(key) > 2])
def test_a_misspelt_edit_is_told_the_right_one(base: str, key: str) -> None:
    number = "2" if key in NUMBERS else ""
    for wrong in (key[0] + key[2] + key[1] + key[3:], key + "e", key[:-1]):
        if wrong in WORDS or wrong in NUMBERS or wrong == key:
            continue
        with pytest.raises(UserError, match=rf"cannot read '{wrong}{number}'.*\b{key}\b"):
            parse(f"{base}-{wrong}{number}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("smal", "unknown base 'smal'.*did you mean small"),
        ("bsae-el2", "unknown base 'bsae'.*did you mean base"),
        ("v1_1-bse", "unknown base.*v1_1-base"),
        ("", "unknown base ''.*choose from: tiny"),
        ("small-xx3", "cannot read 'xx3' in shape 'small-xx3'; write one of dm, ff"),
        ("small-skb", "did you mean skv"),
        ("small-el", "el takes one whole number of at most ten digits, as in el2"),
        ("small-16el", "el takes one whole number"),
        ("small-el1.5", "el takes one whole number"),
        ("small-el-4", "cannot read 'el'"),
        ("small-el04", "el takes one whole number"),
        ("small-nl" + "9" * 5000, "nl takes one whole number"),
        ("small-nl9999999999", "encoder_layers must be a whole number from 1 to"),
        ("small-el0", "encoder_layers must be a whole number from 1"),
        ("small-dm0", "d_model must be a whole number from 1"),
        ("small-kh3", "3 key/value heads cannot serve 8 heads"),
        ("small-kh0", "kv_heads must be a whole number from 1 to num_heads"),
        ("small-el4-sh", "sharing encoder and decoder needs equal depths, not 4 and 6"),
        ("small-rb2", "relative_buckets must be at least 4"),
        ("small-rd16", "relative_distance must exceed half of relative_buckets: 16 is not above 16"),
        ("small--dl2", "cannot read ''"),
    ],
)
def test_mistakes_teach(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    if len(text) < 50:
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "512", None, LARGEST + 1])
@pytest.mark.parametrize("field", SIZES)
def test_sizes_are_whole_numbers(field: str, value: object) -> None:
    if field == "decoder_layers" and value == 0 and value is not False:
        return
    with pytest.raises(UserError, match=f"{field} must be a whole number"):
        replace(BASES["small"], **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -2, 2.0, "2", True])
def test_key_value_heads_are_whole_numbers(value: object) -> None:
    with pytest.raises(UserError, match="kv_heads must be"):
        replace(BASES["small"], kv_heads=value)  # type: ignore[arg-type]


def test_an_unknown_feed_forward_is_told_the_right_one() -> None:
    with pytest.raises(UserError, match="did you mean gated-gelu"):
        replace(BASES["small"], feed_forward="gated-gelu_new")


def test_a_shape_can_be_a_key_and_cannot_change() -> None:
    assert {parse("small-dl2"): 1}[parse("small-dl2")] == 1
    with pytest.raises(AttributeError):
        parse("small").d_model = 3  # type: ignore[misc]
    assert re.fullmatch(r"[a-z0-9_=-]+", str(parse("v1_1-small-dm=1000-skv")))
