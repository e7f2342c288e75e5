"""Objectives: one contract for every file of the folder, a new one included; then what each promises besides."""

import doctest
import json
import re
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module
from inspect import Parameter, signature
from itertools import permutations
from pathlib import Path
from timeit import repeat
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from deepnarrow.errors import UserError
from deepnarrow.text import objectives
from deepnarrow.text.objectives import Ids, Sentinels, bert, deshuffle, iid, lm, prefix_lm, span, ul2
from deepnarrow.text.objectives._rows import below, chance, words

T5 = Sentinels(first=32099, count=100, eos=1)
NAMES = objectives.names()
UNLIKELY = 1e-4  # the chance of an alarm where all is well; seeds are fixed, so that it rings always or never


class Case(NamedTuple):
    """What the contract is held to: an objective as it is, or as a mixture uses it."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def cases() -> list[Case]:
    found = {}
    for name in NAMES:
        objective = objectives.get(name)
        for part in objective.parts() if objective.parts else [objectives.Part(name)]:
            usual = objectives.options_of(objectives.get(part.objective))
            case = Case(part.objective, {key: value for key, value in part.options.items() if value != usual[key]})
            found[str(case)] = case
    return list(found.values())


def noise(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64), counter=index << 128))


def of_rows(name: str) -> bool:
    return objectives.get(name).kind == "rows"


def module(name: str) -> Any:
    return import_module(f"deepnarrow.text.objectives.{name}")


def bounds(case: Case, inputs_length: int) -> tuple[int, int, int]:
    """The longest text of one example, the longest inputs, the longest targets."""
    objective = objectives.get(case.name)
    if objective.lengths is not None:
        raw, targets_length = objective.lengths(inputs_length, **case.options)
        return raw, inputs_length, targets_length
    assert objective.piece_length is not None
    piece = objective.piece_length(inputs_length, **case.options)
    return piece or inputs_length // 2, inputs_length, inputs_length  # None: documents are stored whole


def examples(
    case: Case, texts: np.ndarray, generators: list[np.random.Generator], sentinels: Sentinels
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both sides of each text [B, n], without padding."""
    objective = objectives.get(case.name)
    if objective.corrupt is not None:
        both = objective.corrupt(texts, generators, sentinels, **case.options)
        return [(bare(one), bare(other)) for one, other in zip(*both, strict=True)]
    assert objective.example is not None
    stored = objective.stored or (lambda text, sentinels: text)
    return [
        objective.example(stored(text, sentinels), generator, sentinels, **case.options)
        for text, generator in zip(texts, generators, strict=True)
    ]


def bare(row: np.ndarray) -> np.ndarray:
    """A row without what stands behind its first 0, which must be 0 to the end."""
    length = int(np.argmax(row == 0)) if (row == 0).any() else len(row)
    assert not row[length:].any()
    return row[:length]


def some_text(shape: tuple[int, int], pieces: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 3 + pieces, shape, dtype=np.int32)


# The contract


@pytest.mark.parametrize("name", NAMES)
def test_a_file_defines_its_kind_and_nothing_else(name: str) -> None:
    objective = objectives.get(name)
    needed = {
        "rows": {"lengths", "corrupt", "restore"},
        "documents": {"piece_length", "example", "restore"},
        "mixture": {"parts"},
    }[objective.kind]
    optional = {"stored"} if objective.kind == "documents" else set()
    assert {field for field in objective._fields[2:] if getattr(objective, field) is not None} - optional == needed


@pytest.mark.parametrize("name", NAMES)
def test_a_file_shows_an_example_and_its_source(name: str) -> None:
    text = module(name).__doc__
    assert ">>> " in text
    assert "arXiv:" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_function_takes_the_same_options(name: str) -> None:
    objective = objectives.get(name)
    for field in objective._fields[2:]:
        function = getattr(objective, field)
        if function is not None and field != "stored":
            options = [each for each in signature(function).parameters.values() if each.kind is Parameter.KEYWORD_ONLY]
            assert {each.name: each.default for each in options} == objectives.options_of(objective), field
            assert all(each.default is not Parameter.empty for each in options), "an option needs a default"


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_one_clear_line(name: str) -> None:
    objective = objectives.get(name)
    with pytest.raises(UserError, match=f"'{name}' has no option 'colour'; (its options: |it takes none)") as caught:
        objectives.check_options(objective, {"colour": 1})
    for option in objectives.options_of(objective):
        assert option in str(caught.value)
        objectives.check_options(objective, {option: None})


@pytest.mark.parametrize("name", [name for name in NAMES if objectives.get(name).kind == "mixture"])
def test_parts_of_a_mixture_exist(name: str) -> None:
    parts = objectives.get(name).parts
    assert parts is not None
    assert len(parts()) > 1
    for part in parts():
        assert part.weight > 0
        objective = objectives.get(part.objective)
        assert objective.kind != "mixture"
        objectives.check_options(objective, part.options)


@pytest.mark.parametrize("case", cases(), ids=str)
@settings(max_examples=60, deadline=None)
@given(
    inputs_length=st.integers(4, 200),
    batch=st.integers(1, 4),
    pieces=st.integers(1, 40_000),
    count=st.integers(1, 400) | st.just(400),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
)
def test_contract(case: Case, inputs_length: int, batch: int, pieces: int, count: int, seed: int, share: float) -> None:
    """Text is rebuilt; lengths are as promised; EOS ends both sides; every id is one of the vocabulary."""
    sentinels = Sentinels(first=3 + pieces + count - 1, count=count, eos=1)
    most, inputs_most, targets_most = bounds(case, inputs_length)
    # Rows always have their full length; a document's piece has any from 2.
    length = most if of_rows(case.name) else 2 + int(share * (most - 2))
    texts = some_text((batch, length), pieces, seed)
    before = texts.copy()
    try:
        found = examples(case, texts, [noise(seed, index) for index in range(batch)], sentinels)
    except UserError as error:
        if "sentinels" not in str(error):  # the one thing that may be wrong with these
            raise
        reject()
    assert np.array_equal(texts, before), "the text itself was changed"
    restore = objectives.get(case.name).restore
    assert restore is not None
    for text, (inputs, targets) in zip(texts, found, strict=True):
        assert inputs.dtype == targets.dtype == np.int32
        assert 1 <= len(inputs) <= inputs_most
        assert 2 <= len(targets) <= targets_most
        for side in (inputs, targets):
            assert side[-1] == 1
            assert side[:-1].min(initial=3) >= 3
            assert side.max() <= sentinels.first
        assert restore(inputs, targets, sentinels, **case.options).tolist() == text.tolist()


@pytest.mark.parametrize("case", cases(), ids=str)
def test_noise_is_a_function_of_seed_and_index(case: Case) -> None:
    length, _, _ = bounds(case, 2048)  # long enough for several spans of 64 tokens: a single one is always the end
    text, many = some_text((1, length), 30_000, 0), Sentinels(first=32_099, count=1000, eos=1)

    def once(seed: int, index: int) -> tuple[bytes, bool]:
        generator = noise(seed, index)
        ((inputs, targets),) = examples(case, text, [generator], many)
        untouched = str(generator.bit_generator.state) == str(noise(seed, index).bit_generator.state)
        return inputs.tobytes() + b"|" + targets.tobytes(), untouched

    assert once(5, 7) == once(5, 7)
    draws_nothing = once(5, 7)[1]
    by_index, by_seed = {once(5, index) for index in range(8)}, {once(seed, 7) for seed in range(8)}
    assert (len(by_index) == 1) == (len(by_seed) == 1) == draws_nothing
    if not draws_nothing:
        assert len(by_index) > 4


@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_row_does_not_depend_on_its_neighbours(case: Case) -> None:
    length, _, _ = bounds(case, 128)
    texts = some_text((6, length), 30_000, 1)
    together = examples(case, texts, [noise(3, index) for index in range(6)], T5)
    for b in (5, 0, 3):
        ((inputs, targets),) = examples(case, texts[b : b + 1], [noise(3, b)], T5)
        assert np.array_equal(inputs, together[b][0])
        assert np.array_equal(targets, together[b][1])


@pytest.mark.parametrize("case", [case for case in cases() if of_rows(case.name)], ids=str)
def test_padding_is_as_wide_as_the_longest(case: Case) -> None:
    length, _, _ = bounds(case, 128)
    corrupt = objectives.get(case.name).corrupt
    assert corrupt is not None
    for side in corrupt(
        some_text((16, length), 30_000, 2), [noise(2, index) for index in range(16)], T5, **case.options
    ):
        assert side[:, -1].any()


# The same over versions: a resumed run must see the noise that the first part saw


@pytest.mark.parametrize(
    ("case", "digest"),
    [
        (Case("span", {}), "2e595db2884f6338"),
        (Case("span", {"density": 0.5, "mean_span": 64.0}), "4bf4d4a194c9e8cb"),
        (Case("iid", {}), "112583ebb94dcecf"),
        (Case("iid", {"style": "drop"}), "e6be8cd95560c91c"),
        (Case("bert", {}), "e21933f336cc4c8c"),
        (Case("deshuffle", {}), "e48d8c94dec84551"),
        (Case("prefix_lm", {}), "b8c7b31bbc0fd42d"),
        (Case("lm", {}), "043c923476aec6ff"),
    ],
    ids=str,
)
def test_noise_stays_the_same(case: Case, digest: str) -> None:
    length, _, _ = bounds(case, 64)
    texts = np.tile(np.arange(3, 3 + length, dtype="<i4"), (8, 1))
    found = examples(case, texts, [noise(11, index) for index in range(8)], T5)
    written = b"".join(side.astype("<i4").tobytes() for both in found for side in both)
    assert sha256(written).hexdigest()[:16] == digest


# Words to choices


def test_chance_and_below_are_uniform() -> None:
    drawn = words([noise(0, 0)], 200_000)[0]
    assert binomtest(int(chance(drawn, 0.15).sum()), len(drawn), 0.15).pvalue > UNLIKELY
    assert chance(drawn, 1.0).all()
    assert not chance(drawn, 0.0).any()
    assert chisquare(np.bincount(below(drawn, 97), minlength=97)).pvalue > UNLIKELY
    assert below(np.array([0, 2**64 - 1], np.uint64), 32_000).tolist() == [0, 31_999]


# Independent noise


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "data" / "golden" / "t5_golden_facts.json").read_text())


def hidden_by(inputs: np.ndarray, length: int) -> np.ndarray:
    """The mask [B, length] behind inputs of rows of the ids 3, 4, 5, ...: what is missing was hidden."""
    hidden = np.ones((len(inputs), length), bool)
    b, place = np.nonzero((inputs >= 3) & (inputs < 3 + length))
    hidden[b, inputs[b, place] - 3] = False
    return hidden


def counting(batch: int, length: int) -> np.ndarray:
    return np.tile(np.arange(3, 3 + length, dtype=np.int32), (batch, 1))


@pytest.mark.parametrize("density", [0.15, 0.4])
@pytest.mark.parametrize("style", iid.STYLES)
def test_iid_hides_each_token_by_itself(density: float, style: str) -> None:
    many = Sentinels(first=32_099, count=1000, eos=1)
    drawn = [noise(1, index) for index in range(1000)]
    inputs, targets = iid.corrupt(counting(1000, 511), drawn, many, density=density, style=style)
    hidden = hidden_by(inputs, 511)
    assert np.array_equal(hidden, ~hidden_by(targets, 511))
    assert binomtest(int(hidden.sum()), hidden.size, density).pvalue > UNLIKELY
    both = hidden[:, 1:] & hidden[:, :-1]  # neighbours are as often both hidden as independence says
    assert both.mean() == pytest.approx(density**2, rel=0.03)
    assert hidden.mean(axis=0).std() < 1.3 * (density * (1 - density) / 1000) ** 0.5  # and every place as often


def test_iid_writes_what_t5_writes(golden: dict) -> None:
    """T5's example, drawn by one of the first seeds: its mask starts hidden and ends visible."""
    case = golden["sentinel_functions"]
    rows, sentinels = np.array([case["tokens"]]), Sentinels(first=case["vocab_size"] - 1, count=100, eos=1)
    whole, dropped = [
        [iid.corrupt(rows, [noise(seed, 0)], sentinels, density=0.4, style=style) for seed in range(200)]
        for style in iid.STYLES
    ]
    found = [
        seed for seed in range(200) if whole[seed].inputs[0].tolist() == [*case["noise_span_to_unique_sentinel"], 1]
    ]
    assert found
    first, second = 999, 998
    places = iter((first, second))
    targets = [next(places) if token == first else token for token in case["nonnoise_span_to_sentinel"]]
    for seed in found:
        assert whole[seed].targets[0].tolist() == [*targets, 1] == [10, 11, 999, 14, 998, 1]
        assert dropped[seed].inputs[0].tolist() == [*case["drop_noise_tokens"], 1]
        assert dropped[seed].targets[0].tolist() == [*case["drop_nonnoise_tokens"], 1]


def test_iid_with_nothing_hidden_is_t5s(golden: dict) -> None:
    case = golden["denoise"]
    rows, sentinels = np.array([case["tokens"]]), Sentinels(first=25, count=20, eos=1)
    found = [iid.corrupt(rows, [noise(seed, 0)], sentinels, density=0.01) for seed in range(50)]
    none = [targets for inputs, targets in found if inputs[0].tolist() == [*case["no_corruption"]["inputs"], 1]]
    assert len(none) == pytest.approx(50 * 0.99**19, abs=10)
    assert {tuple(targets[0].tolist()) for targets in none} == {(*case["no_corruption"]["targets"], 1)}


@pytest.mark.parametrize(("length", "density"), [(127, 0.15), (511, 0.15), (511, 0.5), (60, 0.8), (5, 0.3)])
def test_iid_sentinels_suffice(length: int, density: float) -> None:
    """The bound is passed by next to no row, and is not much too wide either."""
    hidden = chance(words([noise(2, 0)] * 20_000, length), density)
    runs = [  # `prepend=0` counts a run in the first place too
        np.count_nonzero(np.diff(mask.astype(np.int8), axis=1, prepend=0) == 1, axis=1) for mask in (hidden, ~hidden)
    ]
    needed = np.maximum(*runs)
    enough = iid.sentinels_needed(length, density)
    assert (needed > enough).mean() < 3e-4
    assert enough <= needed.max() + 0.1 * length + 1


def test_iid_never_passes_the_last_sentinel() -> None:
    few = Sentinels(first=1000, count=iid.sentinels_needed(127, 0.15), eos=1)
    mask = np.tile(np.array([False, True]), (1, 63))  # as many runs as there can be
    inputs, targets = span.split(counting(1, 126), iid.capped(mask, few.count - 1), few)
    assert inputs[inputs > 200].min() == few.first - few.count + 2
    assert targets[targets > 200].min() == few.first - few.count + 1
    assert span.restore(inputs[0], targets[0], few).tolist() == list(range(3, 129))
    with pytest.raises(
        UserError, match=rf"make up to {few.count} runs, but the vocabulary has {few.count - 1} sentinels"
    ):
        iid.corrupt(counting(1, 127), [noise(0, 0)], Sentinels(first=1000, count=few.count - 1, eos=1))


def test_iid_leaves_visible_what_no_sentinel_is_left_for() -> None:
    """Among many short rows a few have too many runs; they too stay inside the vocabulary and lose nothing."""
    few = Sentinels(first=1000, count=iid.sentinels_needed(20, 0.02), eos=1)
    rows = counting(20_000, 20)
    runs = np.diff(chance(words([noise(3, 0)] * len(rows), 20), 0.02).astype(np.int8), axis=1, prepend=0) == 1
    assert runs.sum(axis=1).max() > few.count - 1, "no row needs the rule that is tested here"
    inputs, targets = iid.corrupt(rows, [noise(3, 0)] * len(rows), few, density=0.02)
    assert min(side[side > 100].min() for side in (inputs, targets)) == few.first - few.count + 1
    for b in np.flatnonzero(runs.sum(axis=1) >= few.count - 1):
        assert iid.restore(bare(inputs[b]), bare(targets[b]), few).tolist() == rows[b].tolist()


def test_iid_drop_keeps_every_token_and_no_place() -> None:
    inputs, targets = iid.corrupt(counting(1, 300), [noise(4, 0)], T5, style="drop")
    assert sorted(inputs[0].tolist() + targets[0].tolist()) == [1, 1, *range(3, 303)]
    assert max(inputs.max(), targets.max()) < 303, "no sentinel"
    with pytest.raises(ValueError, match="no trace"):
        iid.restore(inputs[0], targets[0], T5, style="drop")


# BERT


def test_bert_replaces_nine_in_ten_by_the_sentinel() -> None:
    small = Sentinels(first=99, count=10, eos=1)  # pieces 3 .. 89
    rows = np.full((1000, 511), 50, np.int32)
    inputs, targets = bert.corrupt(rows, [noise(5, index) for index in range(1000)], small)
    assert np.array_equal(targets[:, :-1], rows)
    assert inputs.shape == targets.shape == (1000, 512)
    masked, changed = inputs == small.first, (inputs != 50)[:, :-1]
    assert binomtest(int(masked.sum()), rows.size, 0.15 * 0.9).pvalue > UNLIKELY
    # One random piece in 87 is the token itself.
    assert binomtest(int((changed & ~masked[:, :-1]).sum()), rows.size, 0.15 * 0.1 * 86 / 87).pvalue > UNLIKELY
    others = Counter(inputs[:, :-1][changed & ~masked[:, :-1]].tolist())
    assert set(others) == set(range(3, 90)) - {50}
    assert chisquare(list(others.values())).pvalue > UNLIKELY


def test_bert_without_random_words_is_t5s_mass_style(golden: dict) -> None:
    case = golden["sentinel_functions"]
    rows, sentinels = np.array([case["tokens"]]), Sentinels(first=case["vocab_size"] - 1, count=100, eos=1)
    found = [
        bert.corrupt(rows, [noise(seed, 0)], sentinels, density=0.4, random_share=0).inputs[0].tolist()
        for seed in range(200)
    ]
    assert [*case["noise_token_to_sentinel"], 1] in found
    assert {token for row in found for token in row} == {*case["tokens"], sentinels.first, 1}


def test_bert_with_random_words_alone() -> None:
    inputs, _ = bert.corrupt(counting(4, 511), [noise(6, index) for index in range(4)], T5, random_share=1)
    assert not (inputs == T5.first).any()
    assert (inputs[:, :-1] != counting(4, 511)).mean() == pytest.approx(0.15, abs=0.04)


# Deshuffling


def test_every_order_is_equally_likely() -> None:
    rows = counting(24_000, 4)
    inputs, targets = deshuffle.corrupt(rows, [noise(7, 0)] * len(rows), T5)
    seen = Counter(map(tuple, inputs[:, :-1].tolist()))
    assert set(seen) == set(permutations(range(3, 7)))
    assert chisquare(list(seen.values())).pvalue > UNLIKELY
    assert np.array_equal(targets[:, :-1], rows)


def test_deshuffling_keeps_every_token() -> None:
    rows = some_text((8, 511), 200, 8)
    inputs, _ = deshuffle.corrupt(rows, [noise(8, index) for index in range(8)], T5)
    assert np.array_equal(np.sort(inputs[:, :-1], axis=1), np.sort(rows, axis=1))
    stayed = (inputs[:, :-1] == rows).mean()
    assert stayed < 0.02  # 1 in 511 stays, and 1 in 200 is replaced by its like


# Prefix language modelling


@pytest.mark.parametrize(
    ("length", "density", "least"),
    [(41, 0.5, 1), (41, 0.25, 20), (42, 0.25, 20), (41, 0.4, 8), (2, 0.5, 1), (3, 0.01, 2), (2, 0.01, 1)],
)
def test_prefix_lengths_follow_t5s_law(length: int, density: float, least: int) -> None:
    """Uniform from max(1, round((1 - 2 density) (n - 1))) to n - 1; 20.5 rounds to 20, half to even."""
    ids = np.arange(3, 3 + length, dtype=np.int32)
    drawn = [prefix_lm.example(ids, noise(9, index), T5, density=density) for index in range(4000)]
    seen = Counter(len(inputs) - 1 for inputs, _ in drawn)
    assert set(seen) == set(range(least, length))
    assert len(seen) == 1 or chisquare(list(seen.values())).pvalue > UNLIKELY
    assert all(len(inputs) + len(targets) == length + 2 for inputs, targets in drawn)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
def test_density_is_the_mean_share_of_the_targets(density: float) -> None:
    least, most = prefix_lm.prefix_bounds(511, density)
    assert 1 - (least + most) / 2 / 511 == pytest.approx(density, abs=2e-3)


def test_pieces_fit_on_both_sides() -> None:
    for inputs_length in (2, 3, 128, 512):
        piece = prefix_lm.piece_length(inputs_length)
        longest = max(prefix_lm.prefix_bounds(piece)[1], piece - prefix_lm.prefix_bounds(piece)[0]) + 1
        assert longest <= inputs_length
    assert prefix_lm.piece_length(512) == 511


# Plain language modelling


def test_lm_reads_nothing() -> None:
    inputs, targets = lm.corrupt(counting(3, 7), [], T5)
    assert inputs.tolist() == [[1]] * 3
    assert targets.tolist() == [[*range(3, 10), 1]] * 3


# UL2


def test_ul2_has_the_papers_seven_denoisers() -> None:
    """Table 1 of arXiv:2205.05131."""
    found = ul2.parts()
    assert [(part.prefix, part.options.get("mean_span"), part.options["density"]) for part in found] == [
        ("[NLU]", 3, 0.15),
        ("[NLU]", 8, 0.15),
        ("[NLG]", 3, 0.5),
        ("[NLG]", 8, 0.5),
        ("[NLG]", 64, 0.15),
        ("[NLG]", 64, 0.5),
        ("[S2S]", None, 0.5),
    ]
    assert [part.objective for part in found] == ["span"] * 6 + ["prefix_lm"]
    assert {part.weight for part in found} == {1.0}


def test_ul2_options() -> None:
    found = ul2.parts(denoisers=[("[R]", 3.0, 0.15)], prefix_density=0.25, weights=(3, 1))
    assert found == (
        objectives.Part("span", {"mean_span": 3.0, "density": 0.15}, 3.0, "[R]"),
        objectives.Part("prefix_lm", {"density": 0.25}, 1.0, "[S2S]"),
    )


# Mistakes


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (iid.lengths, {"density": 0.0}, "density is the share of tokens to hide; .* between 0 and 1, not 0.0"),
        (iid.lengths, {"density": float("nan")}, "density"),
        (iid.lengths, {"style": "drops"}, "unknown style 'drops'; did you mean drop"),
        (bert.lengths, {"density": 1.0}, "density"),
        (bert.lengths, {"random_share": 1.5}, "random_share .* from 0 to 1, not 1.5"),
        (prefix_lm.piece_length, {"density": 0.6}, "up to 0.5, not 0.6"),
        (prefix_lm.piece_length, {"density": 0.0}, "density"),
    ],
)
def test_impossible_options(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        function(512, **options)


@pytest.mark.parametrize(
    "function", [iid.lengths, bert.lengths, deshuffle.lengths, lm.lengths, prefix_lm.piece_length, span.lengths]
)
def test_inputs_too_short_for_anything(function: Any) -> None:
    with pytest.raises(UserError, match=r"inputs of 1 token.* use at least"):
        function(1)


def test_mistakes_in_a_mixture() -> None:
    with pytest.raises(UserError, match="need 7 weights, not 2"):
        ul2.parts(weights=(1, 2))
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="a weight must be a finite number above 0"):
            ul2.parts(weights=(1, 1, 1, 1, 1, 1, wrong))


def test_a_vocabulary_without_sentinels() -> None:
    none = Sentinels(first=383, count=0, eos=1)
    for corrupt in (iid.corrupt, bert.corrupt, span.corrupt):
        with pytest.raises(UserError, match="--sentinels"):
            corrupt(counting(1, 100), [noise(0, 0)], none)
    for corrupt in (deshuffle.corrupt, lm.corrupt):
        assert isinstance(corrupt(counting(1, 100), [noise(0, 0)], none), Ids)


# Speed: a ratio of two loops on one machine, so that the machine does not matter


@pytest.mark.parametrize("name", [name for name in NAMES if of_rows(name)])
def test_a_batch_is_much_faster_than_its_rows(name: str) -> None:
    corrupt, lengths = objectives.get(name).corrupt, objectives.get(name).lengths
    assert corrupt is not None
    assert lengths is not None
    rows = some_text((128, lengths(128)[0]), 30_000, 0)
    generators = [noise(0, index) for index in range(128)]

    def together() -> None:
        corrupt(rows, generators, T5)

    def row_by_row() -> None:
        for b in range(len(rows)):
            corrupt(rows[b : b + 1], generators[b : b + 1], T5)

    assert min(repeat(row_by_row, number=1, repeat=5)) > 3 * min(repeat(together, number=1, repeat=5))


# The guide


PAGE = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text("utf-8")


def test_the_guides_table_names_every_objective_and_option() -> None:
    rows = {line.split("|")[1].strip(): line for line in PAGE.split("## ")[0].splitlines() if line.startswith("| `")}
    assert set(rows) == {f"`{name}`" for name in NAMES}
    for name in NAMES:
        objective = objectives.get(name)
        assert rows[f"`{name}`"].split("|")[2].strip() == objective.kind
        for option, default in objectives.options_of(objective).items():
            assert f"`{option}`" in rows[f"`{name}`"]
            if isinstance(default, float):
                assert f"`{option}` ({default:g})" in rows[f"`{name}`"]


def test_the_guides_new_objective_is_one() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    new = ModuleType("rotate")
    exec(compile(code, "docs/objectives.md", "exec"), new.__dict__)
    assert doctest.testmod(new, raise_on_error=True).attempted == 2
    assert objectives.kind_of(new) == "rows"
    raw, _ = new.lengths(64)
    texts = some_text((20, raw), 500, 10)
    inputs, targets = new.corrupt(texts, [noise(0, index) for index in range(20)], T5)
    assert inputs.shape == (20, 64)
    for text, one, other in zip(texts, inputs, targets, strict=True):
        assert new.restore(one, other, T5).tolist() == text.tolist()
        assert text.tolist() in [np.roll(one[:-1], turn).tolist() for turn in range(raw)]


def test_the_guides_longest_inputs_for_t5s_sentinels() -> None:
    assert fits(span, 1809) and not fits(span, 1810)  # noqa: PT018
    assert fits(iid, 567) and not fits(iid, 568)  # noqa: PT018
    assert fits(span, 403, density=0.5) and not fits(span, 404, density=0.5)  # noqa: PT018


def fits(file: Any, inputs_length: int, **options: Any) -> bool:
    try:
        file.corrupt(counting(1, file.lengths(inputs_length, **options)[0]), [noise(0, 0)], T5, **options)
    except UserError:
        return False
    return True


def test_the_guide_knows_where_a_single_span_ends() -> None:
    """What the guide says of spans of 64 tokens: one of them up to inputs of 543, and that is always the row's end."""
    found = [span.counts(span.lengths(n, mean_span=64.0)[0], mean_span=64.0).spans for n in (128, 512, 543, 544)]
    assert found == [1, 1, 1, 2]
    assert span.masks([noise(0, index) for index in range(4)], 100, 15, 1)[:, -15:].all()
