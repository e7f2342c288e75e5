"""Batches: each is a function of its number, an epoch holds every row once, and pretraining rows hold no padding."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from deepnarrow.errors import UserError
from deepnarrow.text.batches import (
    CorpusBatches,
    PairBatches,
    encode_pairs,
    fixed_batches,
    generator,
    shuffled,
)
from deepnarrow.text.building import build
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.corpus import Corpus
from deepnarrow.text.objectives import span
from deepnarrow.text.tokenizer import load

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """4,000 tokens; the byte at position p tells p."""
    folder = tmp_path_factory.mktemp("batches")
    text = "".join(f"{n:04d}" for n in range(1000))
    (folder / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    return build([folder / "a.jsonl"], BYTES, folder / "corpus", shard_tokens=300)


def make(corpus: Corpus, **changes: object) -> CorpusBatches:
    return CorpusBatches(**({"corpus": corpus, "seed": 0, "batch": 4, "input_length": 64} | changes))  # type: ignore[arg-type]


def rows_of(batches: CorpusBatches, n: int) -> np.ndarray:
    """Which rows of the corpus a batch reads."""
    return np.array([origin.start // origin.tokens for origin in batches.origins(n)])


def equal(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))


# Corpus batches


def test_shapes(corpus: Corpus) -> None:
    batches = make(corpus)
    raw_length, target_length = span.lengths(64)
    assert batches.longest_target == target_length
    assert batches.size == 4000 // raw_length
    inputs, targets = batches(0)[:2]
    assert (inputs.shape, targets.shape) == ((4, 64), (4, target_length))
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.all()
    assert targets.all()


def test_batch_n_depends_on_seed_and_n_alone(corpus: Corpus) -> None:
    batches = make(corpus)
    in_order = [batches(n) for n in range(30)]
    fresh = make(corpus)
    for n in (29, 3, 17, 3, 0):
        assert equal(fresh(n), in_order[n])
    assert equal(pickle.loads(pickle.dumps(batches))(5), in_order[5])
    assert not equal(make(corpus, seed=1)(0), in_order[0])
    assert not equal(in_order[0], in_order[1])


def test_the_batch_size_does_not_change_an_example(corpus: Corpus) -> None:
    four, twelve = make(corpus), make(corpus, batch=12)
    together = [np.concatenate(side) for side in zip(*(four(n)[:2] for n in (3, 4, 5)), strict=True)]
    assert equal(tuple(together), twelve(1))


def test_every_row_once_an_epoch_in_a_new_order(corpus: Corpus) -> None:
    batches = make(corpus, batch=7)
    rows = np.concatenate([rows_of(batches, n) for n in range(100)])
    epochs = rows[: len(rows) // batches.size * batches.size].reshape(-1, batches.size)
    assert len(epochs) > 5
    assert (np.sort(epochs, axis=1) == np.arange(batches.size)).all()
    assert len(np.unique(epochs, axis=0)) == len(epochs)


def test_a_row_gets_new_noise_each_epoch(corpus: Corpus) -> None:
    batches = make(corpus, batch=1)
    visits = [n for n in range(4 * batches.size) if rows_of(batches, n)[0] == 0]
    assert len(visits) == 4
    assert len({batches(n).inputs.tobytes() for n in visits}) == 4


def test_rows_are_the_corpus_rows(corpus: Corpus) -> None:
    batches = make(corpus)
    first_sentinel = BYTES.size - BYTES.sentinels
    inputs, targets = batches(2)[:2]
    for row, *sides in zip(rows_of(batches, 2).tolist(), inputs, targets, strict=True):
        both = np.concatenate(sides)
        kept = both[(both < first_sentinel) & (both != BYTES.eos)]
        assert sorted(kept.tolist()) == sorted(corpus.row(row, span.lengths(64)[0]).tolist())


def test_fewer_rows_than_the_batch(corpus: Corpus) -> None:
    batches = make(corpus, input_length=850, batch=10, options={"mean_span": 10.0})
    assert batches.size == 4
    rows = np.concatenate([rows_of(batches, n) for n in range(2)])
    assert (np.sort(rows.reshape(5, 4), axis=1) == np.arange(4)).all()
    assert batches(0).inputs.shape == (10, 850)


def test_too_little_text(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"holds 4,000 tokens, but one example needs 4,\d{3}"):
        make(corpus, input_length=4096, options={"mean_span": 64.0})


def test_too_few_sentinels_are_found_before_training(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"125 sentinels.*mean_span"):
        make(corpus, input_length=3000)


def test_other_mistakes(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="at least 1"):
        make(corpus, batch=0)
    with pytest.raises(UserError, match="no such objective"):
        make(corpus, objective="spam-and-eggs")
    with pytest.raises(UserError, match="density"):
        make(corpus, options={"density": 2.0})


def test_generators_do_not_overlap() -> None:
    seen = {
        generator(seed, use, example).bit_generator.random_raw()
        for seed in (0, 1, 2**64 - 1)
        for use in (0, 1)
        for example in range(100)
    }
    assert len(seen) == 600
    assert generator(-1, 0, 0).random() == generator(2**64 - 1, 0, 0).random()


def test_golden_order() -> None:
    """Stored runs resume by these."""
    assert shuffled(np.arange(12), 6, seed=1).tolist() == [5, 2, 3, 4, 1, 0, 1, 3, 0, 4, 2, 5]


# Held-out batches


def test_fixed_batches_cover_the_corpus_in_order(corpus: Corpus) -> None:
    batches = fixed_batches(corpus, batch=5, input_length=64)
    raw, target_length = span.lengths(64)
    assert [len(batch.inputs) for batch in batches[:-1]] == [5] * (len(batches) - 1)
    assert sum(len(batch.inputs) for batch in batches) == corpus.rows(raw)
    assert all(batch.targets.shape[1] == target_length for batch in batches)
    again = fixed_batches(corpus, batch=3, input_length=64)
    for side in (0, 1):
        assert np.array_equal(np.concatenate([b[side] for b in batches]), np.concatenate([b[side] for b in again]))
    limited = fixed_batches(corpus, batch=5, input_length=64, limit=7)
    assert [len(batch.inputs) for batch in limited] == [5, 2]
    assert equal(limited[0], batches[0])


def test_fixed_batches_of_too_little_text(corpus: Corpus) -> None:
    with pytest.raises(UserError, match="--held-out"):
        fixed_batches(corpus, batch=5, input_length=4096, options={"mean_span": 64.0})


# Pairs


PAIRS = [([n + 3] * (n % 9) + [1], [n + 3, 1]) for n in range(50)]


def test_pairs_are_padded_to_the_longest_rounded_up() -> None:
    batches = PairBatches(pairs=PAIRS, seed=0, batch=8)
    for n in range(20):
        inputs, targets = batches(n)[:2]
        assert inputs.dtype == targets.dtype == np.int64
        assert inputs.shape[1] % 8 == 0
        assert targets.shape == (8, 8)
        longest = (inputs != 0).sum(axis=1).max()
        assert longest <= inputs.shape[1] < longest + 8
        for row, target in zip(inputs, targets, strict=True):
            name = target[0] - 3
            assert row[: name % 9 + 1].tolist() == PAIRS[name][0]
            assert not row[name % 9 + 1 :].any()


def test_pairs_are_shuffled_each_epoch_and_repeatable() -> None:
    batches = PairBatches(pairs=PAIRS, seed=0, batch=10)
    names = np.concatenate([batches(n).targets[:, 0] for n in range(10)]).reshape(2, 50)
    assert (np.sort(names, axis=1) == np.arange(3, 53)).all()
    assert (names[0] != names[1]).any()
    assert equal(PairBatches(pairs=PAIRS, seed=0, batch=10)(7), batches(7))
    assert not equal(PairBatches(pairs=PAIRS, seed=1, batch=10)(7), batches(7))


def test_fewer_pairs_than_the_batch() -> None:
    assert PairBatches(pairs=PAIRS[:3], seed=0, batch=8)(0).inputs.shape == (8, 8)


def test_no_pairs() -> None:
    with pytest.raises(UserError, match="no examples"):
        PairBatches(pairs=[], seed=0, batch=8)


def test_encode_pairs_keeps_eos() -> None:
    found = encode_pairs([("abcdef", "xy"), ("", ""), ("abc", "wxyz")], BYTES, 4, 3)
    a, x = BYTES.encode("abc"), BYTES.encode("wxyz")
    assert found == [([*a, 1], [*x[1:3], 1]), ([1], [1]), ([*a, 1], [*x[:2], 1])]
    assert encode_pairs([], BYTES, 4, 3) == []


# Real text


def test_wikipedia_in_t5s_lengths(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "pretrain" / "wikipedia_articles.jsonl.gz"
    tokenizer = load(shared / "data" / "t5_tokenizer" / "spiece.model")
    corpus = build([source], tokenizer, tmp_path / "wiki", shard_tokens=2**19)
    assert corpus.documents == 536
    batches = CorpusBatches(corpus=corpus, seed=0, batch=128, input_length=512)
    assert batches.longest_target == 114
    assert batches.origins(0)[0].tokens == 568
    steps = -(-batches.size // 128)
    assert steps > 10
    for n in range(steps):
        inputs, targets = batches(n)[:2]
        assert inputs.shape == (128, 512)
        assert targets.shape == (128, 114)
        assert inputs.min() > 0
        assert targets.min() > 0
        assert max(inputs.max(), targets.max()) == 32099
        assert (inputs[:, -1] == 1).all()
        assert ((inputs == 1).sum(axis=1) == 1).all()
        assert ((inputs >= 32000).sum(axis=1) == 28).all()
        assert ((targets >= 32000).sum(axis=1) == 28).all()
