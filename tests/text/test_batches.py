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
    with pytest.raises(UserError, match="mean_span"):
        make(corpus, objective="bert", options={"mean_span": 3.0})


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
    batches = PairBatches(sources=[PAIRS], seed=0, batch=8)
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
    batches = PairBatches(sources=[PAIRS], seed=0, batch=10)
    names = np.concatenate([batches(n).targets[:, 0] for n in range(10)]).reshape(2, 50)
    assert (np.sort(names, axis=1) == np.arange(3, 53)).all()
    assert (names[0] != names[1]).any()
    assert equal(PairBatches(sources=[PAIRS], seed=0, batch=10)(7), batches(7))
    assert not equal(PairBatches(sources=[PAIRS], seed=1, batch=10)(7), batches(7))


def test_fewer_pairs_than_the_batch() -> None:
    assert PairBatches(sources=[PAIRS[:3]], seed=0, batch=8)(0).inputs.shape == (8, 8)


def test_no_pairs() -> None:
    with pytest.raises(UserError, match="no examples"):
        PairBatches(sources=[[]], seed=0, batch=8)


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


# Pieces of documents, several corpora, mixtures of objectives


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """3,000 documents of 0 to 99 characters, the same letter throughout one, so that a piece tells its document."""
    folder = tmp_path_factory.mktemp("documents")
    texts = [chr(97 + n % 26) * (n * 37 % 100) for n in range(3000)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return build([folder / "a.jsonl"], BYTES, folder / "corpus", shard_tokens=10_000)


def test_pieces_cover_each_document_and_never_cross_one(documents: Corpus) -> None:
    batches = make(documents, objective="prefix_lm", input_length=33, batch=50)
    (source,) = batches.sources
    origins = [source.origin(number) for number in range(source.size)]
    by_document: dict[int, list[tuple[int, int]]] = {}
    for origin in origins:
        assert len(origin.documents) == 1
        by_document.setdefault(origin.documents[0], []).append((origin.start, origin.tokens))
    for number in range(documents.documents):
        size, start = len(documents.document(number)), int(documents.starts[number])
        found = by_document.get(number, [])
        assert [place for place, _ in found] == [start + 32 * k for k in range(len(found))]
        assert size - sum(tokens for _, tokens in found) in ((0, 1) if size else (0,))
        assert all(tokens == 32 for _, tokens in found[:-1])
    assert len(by_document) > 2000


def test_a_prefix_lm_batch_is_pieces_of_single_documents(documents: Corpus) -> None:
    batches = make(documents, objective="prefix_lm", input_length=33, batch=50)
    for n in range(5):
        batch = batches(n)
        for inputs, targets, origin in zip(batch.inputs, batch.targets, batches.origins(n), strict=True):
            one, other = inputs[inputs != 0], targets[targets != 0]
            assert one[-1] == other[-1] == BYTES.eos
            both = np.concatenate([one[:-1], other[:-1]])
            assert (both == documents.span(origin.start, origin.tokens)).all()
            assert len(set(both.tolist())) == 1


@pytest.mark.parametrize("batching", ["padded", "bucketed", "packed"])
def test_document_batches_depend_on_their_number_alone(documents: Corpus, batching: str) -> None:
    options = {"objective": "prefix_lm", "input_length": 64, "batch": 16, "batching": batching}
    batches = make(documents, **options)
    in_order = [batches(n) for n in range(12)]
    fresh = pickle.loads(pickle.dumps(make(documents, **options)))
    for n in (11, 2, 7):
        for one, other in zip(fresh(n), in_order[n], strict=True):
            assert (one is None and other is None) or np.array_equal(one, other)


def test_packed_rows_have_room_for_the_longest(documents: Corpus) -> None:
    packed = make(documents, objective="prefix_lm", input_length=64, batch=64, batching="packed")(0)
    plain = make(documents, objective="prefix_lm", input_length=64, batch=64)(0)
    assert packed.tokens == plain.tokens
    assert packed.inputs.shape[1] <= 64
    assert packed.places < 0.8 * plain.places


def test_several_corpora_keep_their_shares(corpus: Corpus, documents: Corpus) -> None:
    batches = make([corpus, documents], input_length=64, batch=64, mixture="0.25,0.75")
    folders = [origin.corpus.folder for n in range(64) for origin in batches.origins(n)]
    assert folders.count(corpus.folder) == 1024
    first = [rows for n in range(4) for rows in batches.origins(n) if rows.corpus.folder == corpus.folder]
    once = make(corpus, input_length=64, batch=len(first)).origins(0)
    assert [origin.start for origin in first] == [origin.start for origin in once]
    by_size = make([corpus, documents], input_length=64, batch=64)
    assert [len(source.corpus.shards) for source in by_size.sources] == [14, len(documents.shards)]


def test_corpora_of_two_tokenizers_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("some other text\n" * 100)
    other = build([tmp_path / "b.txt"], ByteTokenizer(sentinels=50), tmp_path / "other")
    with pytest.raises(UserError, match="different tokenizers"):
        make([corpus, other])
    with pytest.raises(UserError, match="2 sources"):
        make([corpus, corpus], mixture="0.5")
    with pytest.raises(UserError, match="at least one corpus"):
        make([])


def test_ul2_deals_its_seven_denoisers(corpus: Corpus) -> None:
    batches = make(corpus, objective="ul2", input_length=120, batch=70)
    assert len(batches.sources) == 7
    marks = [tuple(row[: row.tolist().index(ord("]") + 3) + 1].tolist()) for row in batches(0).inputs]
    texts = {BYTES.decode(list(mark)) for mark in marks}
    assert texts == {"[NLU]", "[NLG]", "[S2S]"}
    assert batches(0).inputs.shape[1] <= 120
    assert equal(batches(3), make(corpus, objective="ul2", input_length=120, batch=70)(3))


def test_fixed_batches_of_pieces_and_mixtures(corpus: Corpus, documents: Corpus) -> None:
    for options in ({"objective": "prefix_lm"}, {"objective": "ul2"}):
        whole = fixed_batches([corpus, documents], batch=8, input_length=120, limit=20, **options)
        assert [len(batch.inputs) for batch in whole] == [8, 8, 4]
        again = fixed_batches([corpus, documents], batch=8, input_length=120, limit=20, **options)
        assert all(equal(one, other) for one, other in zip(whole, again, strict=True))
