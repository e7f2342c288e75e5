"""Span corruption: T5's lengths, its mask's law, its sentinels, and that nothing is lost."""

import json
from collections import Counter
from math import comb
from pathlib import Path
from timeit import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from deepnarrow.errors import UserError
from deepnarrow.text import objectives
from deepnarrow.text.objectives import span
from deepnarrow.text.objectives.span import Sentinels

T5 = Sentinels(first=32099, count=100, eos=1)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "data" / "golden" / "t5_golden_facts.json").read_text())


def philox(*seeds: int) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(seed)) for seed in seeds]


def unfold(inputs: list[int], targets: list[int], sentinels: Sentinels) -> list[int]:
    """The text that inputs and targets came from: each sentinel of the inputs replaced by its span of the targets."""
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token > sentinels.first - sentinels.count:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [token for given in inputs[:-1] for token in spans.pop(given, [given])]


# Lengths


@pytest.mark.parametrize(
    ("inputs", "density", "mean_span", "expected"),
    [
        (512, 0.15, 3.0, (568, 114)),  # T5's pretraining: en_mix.gin
        (1024, 0.15, 3.0, (1137, 229)),  # mT5's
        (256, 0.15, 3.0, (284, 58)),
        (128, 0.15, 3.0, (141, 29)),
        (2048, 0.15, 3.0, (2274, 456)),
        (512, 0.15, 8.0, (588, 100)),  # UL2's denoisers
        (512, 0.5, 3.0, (766, 512)),
        (512, 0.5, 8.0, (908, 512)),
        (512, 0.15, 64.0, (600, 92)),
        (512, 0.5, 64.0, (1006, 512)),
    ],
)
def test_lengths(inputs: int, density: float, mean_span: float, expected: tuple[int, int]) -> None:
    assert span.lengths(inputs, density=density, mean_span=mean_span) == expected


def test_golden_lengths(golden: dict) -> None:
    for case in golden["random_spans_helper"]:
        found = span.lengths(
            case["inputs_length"], density=case["noise_density"], mean_span=case["mean_noise_span_length"]
        )
        assert found == (case["tokens_length"], case["targets_length"])


@settings(deadline=None)
@given(st.integers(3, 700), st.floats(0.05, 0.5), st.floats(1.0, 20.0))
def test_lengths_are_what_corrupt_returns(inputs_length: int, density: float, mean_span: float) -> None:
    raw, targets_length = span.lengths(inputs_length, density=density, mean_span=mean_span)
    many = Sentinels(first=10**6, count=10**5, eos=1)
    found = span.corrupt(np.full((1, raw), 7), philox(1), many, density=density, mean_span=mean_span)
    assert found.targets.shape == (1, targets_length)
    # One short at most: in T5's special case, or where spans are as dense as visible tokens allow.
    short = density == 0.5 or density / mean_span > 0.9 * (1 - density)
    assert found.inputs.shape[1] in ({inputs_length, inputs_length - 1} if short else {inputs_length})


# The mask


def test_golden_counts(golden: dict) -> None:
    case = golden["random_spans_noise_mask"]
    counts = span.counts(case["length"], density=case["noise_density"], mean_span=case["mean_noise_span_length"])
    assert counts == (case["num_noise_tokens"], case["num_noise_spans"])
    mask = span.masks(philox(1, 2, 3), case["length"], *counts)
    assert mask.sum(axis=1).tolist() == [case["num_noise_tokens"]] * 3
    assert mask[:, 0].any() == case["starts_with_noise"]
    assert mask[:, -1].all() == case["ends_with_noise"]


@pytest.mark.parametrize(
    ("length", "density", "mean_span", "expected"),
    [
        (10, 0.25, 1.0, (2, 2)),  # 2.5 rounds to 2: half to even
        (14, 0.25, 1.0, (4, 4)),  # 3.5 rounds to 4
        (100, 0.15, 6.0, (15, 2)),  # 2.5 spans round to 2
        (5, 0.01, 3.0, (1, 1)),  # never nothing
        (5, 0.99, 3.0, (4, 1)),  # never everything
        (3, 0.5, 1.0, (2, 1)),  # no more spans than visible tokens to part them
    ],
)
def test_counts(length: int, density: float, mean_span: float, expected: tuple[int, int]) -> None:
    assert span.counts(length, density=density, mean_span=mean_span) == expected


@settings(deadline=None)
@given(st.integers(2, 300), st.floats(0.01, 0.99), st.floats(1.0, 30.0), st.integers(0, 2**32))
def test_masks_start_visible_end_hidden_and_count(length: int, density: float, mean_span: float, seed: int) -> None:
    hidden, spans = span.counts(length, density=density, mean_span=mean_span)
    mask = span.masks(philox(seed), length, hidden, spans)[0].astype(int)
    assert mask.sum() == hidden
    assert (np.diff(mask) == 1).sum() == spans
    assert mask[0] == 0
    assert mask[-1] == 1


def test_every_mask_is_equally_likely() -> None:
    length, hidden, spans = 12, 6, 3
    draws = 20_000
    masks = span.masks(philox(*range(draws)), length, hidden, spans)
    seen = Counter(mask.tobytes() for mask in masks)
    kinds = comb(hidden - 1, spans - 1) * comb(length - hidden - 1, spans - 1)  # compositions of both parts
    assert len(seen) == kinds == 100
    assert chisquare(list(seen.values())).pvalue > 1e-3


def test_mean_density_over_many_lengths(golden: dict) -> None:
    case = golden["random_spans_noise_mask"]["roll_mean_density"]
    density = [
        span.masks(philox(i), n, *span.counts(n, density=0.15, mean_span=3)).mean()
        for i, n in enumerate(16 + i % 3 for i in range(case["samples"]))
    ]
    assert np.mean(density) == pytest.approx(case["noise_density"], abs=case["atol"])


def test_a_row_depends_on_its_own_generator_only() -> None:
    rows = np.random.default_rng(0).integers(3, 32000, (5, 568))
    together = span.corrupt(rows, philox(1, 2, 3, 4, 5), T5)
    alone = [span.corrupt(rows[b : b + 1], philox(b + 1), T5) for b in range(5)]
    assert np.array_equal(together.inputs, np.concatenate([one.inputs for one in alone]))
    assert np.array_equal(together.targets, np.concatenate([one.targets for one in alone]))
    assert not np.array_equal(together.inputs[0] > 32000, together.inputs[1] > 32000)


def test_noise_stays_the_same_over_versions() -> None:
    """A resumed run must see the noise that the first part saw, whatever NumPy or this package was updated to."""
    inputs, targets = span.corrupt(np.arange(10, 40)[None], philox(7), T5, mean_span=1.5)
    assert inputs[0].tolist() == [*range(10, 24), 32099, 26, 27, 32098, *range(29, 39), 32097, 1]
    assert targets[0].tolist() == [32099, 24, 25, 32098, 28, 32097, 39, 1]


# Sentinels


def test_golden_sentinels(golden: dict) -> None:
    case = golden["sentinel_functions"]
    tokens, mask = np.array([case["tokens"]]), np.array([case["noise_mask"]], bool)
    sentinels = Sentinels(first=case["vocab_size"] - 1, count=100, eos=1)

    folded = span.fold(tokens, mask, sentinels)[0]
    assert folded.tolist() == case["noise_span_to_unique_sentinel"]
    assert np.where(folded > 900, 999, folded).tolist() == case["noise_span_to_sentinel"]
    assert folded[folded < 900].tolist() == case["drop_noise_tokens"]

    folded = span.fold(tokens, ~mask, sentinels)[0]
    assert np.where(folded > 900, 999, folded).tolist() == case["nonnoise_span_to_sentinel"]
    assert folded[folded < 900].tolist() == case["drop_nonnoise_tokens"]


def test_golden_denoise(golden: dict) -> None:
    case = golden["denoise"]
    tokens = np.array([case["tokens"]])
    sentinels = Sentinels(first=25, count=2, eos=1)
    for part in (case["corrupted"], case["no_corruption"]):
        mask = np.array([part.get("noise_mask", [0] * tokens.size)], bool)
        found = span.split(tokens, mask, sentinels)
        assert found.inputs[0].tolist() == [*part["inputs"], 1]  # the golden case stops before EOS is added
        assert found.targets[0].tolist() == [*part["targets"], 1]


def test_sentinels_run_downward_and_none_closes() -> None:
    inputs, targets = span.corrupt(np.full((1, 568), 5), philox(3), T5)
    expected = list(range(32099, 32099 - 28, -1))
    assert inputs[inputs > 5].tolist() == expected
    assert targets[targets > 5].tolist() == expected
    assert targets[0, 0] == 32099
    assert targets[0, -2:].tolist() == [5, 1]
    assert inputs[0, -2:].tolist() == [32099 - 27, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(1, 4), st.floats(0.05, 0.9), st.floats(1.0, 10.0), st.integers(0, 2**32))
def test_inputs_and_targets_rebuild_the_text(
    length: int, batch: int, density: float, mean_span: float, seed: int
) -> None:
    sentinels = Sentinels(first=999, count=200, eos=1)
    rows = np.random.default_rng(seed).integers(3, 700, (batch, length))
    generators = philox(*range(seed, seed + batch))
    inputs, targets = span.corrupt(rows, generators, sentinels, density=density, mean_span=mean_span)
    assert (inputs[:, -1] == 1).all()
    assert (targets[:, -1] == 1).all()
    for row, one, other in zip(rows.tolist(), inputs.tolist(), targets.tolist(), strict=True):
        assert unfold(one, other, sentinels) == row
        assert span.restore(np.array(one), np.array(other), sentinels).tolist() == row


def test_restore_reads_golden_sides(golden: dict) -> None:
    """T5's two examples: one whose mask starts hidden and ends visible, one that starts visible and ends hidden."""
    case = golden["sentinel_functions"]
    rows, mask = np.array([case["tokens"]]), np.array([case["noise_mask"]], bool)
    sentinels = Sentinels(first=case["vocab_size"] - 1, count=100, eos=1)
    for hidden in (mask, ~mask):
        inputs, targets = span.split(rows, hidden, sentinels)
        assert span.restore(inputs[0], targets[0], sentinels).tolist() == case["tokens"]
    case = golden["denoise"]["corrupted"]
    found = span.restore(np.array([*case["inputs"], 1]), np.array([*case["targets"], 1]), Sentinels(25, 2, 1))
    assert found.tolist() == golden["denoise"]["tokens"]


# Mistakes


def test_more_spans_than_sentinels() -> None:
    with pytest.raises(UserError, match=r"114 spans, but the vocabulary has 100 sentinels.*mean_span"):
        span.corrupt(np.zeros((1, 2274), int), philox(1), T5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density"),
        ({"density": 1.0}, "density"),
        ({"mean_span": 0.5}, "mean_span"),
    ],
)
def test_impossible_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        span.lengths(512, **options)


def test_inputs_too_short() -> None:
    with pytest.raises(UserError, match="at least 3"):
        span.lengths(2)


def test_unknown_objective() -> None:
    assert "span" in objectives.names()
    with pytest.raises(UserError, match="did you mean span"):
        objectives.get("spans")


# Speed: a ratio of two loops on one machine, so that the machine does not matter


def test_a_batch_is_five_times_as_fast_as_its_rows() -> None:
    rows = np.random.default_rng(0).integers(3, 32000, (128, 568), dtype=np.int32)
    generators = philox(*range(128))

    def together() -> None:
        span.corrupt(rows, generators, T5)

    def row_by_row() -> None:
        for b in range(len(rows)):
            span.corrupt(rows[b : b + 1], generators[b : b + 1], T5)

    assert min(repeat(row_by_row, number=1, repeat=7)) > 5 * min(repeat(together, number=1, repeat=7))
