"""Corpora: what goes in comes out, whatever interrupts the build; damage and mistakes are named."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deepnarrow.errors import UserError
from deepnarrow.text import building
from deepnarrow.text.building import Salient, build
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.corpus import open_corpus
from deepnarrow.text.objectives import salient
from deepnarrow.text.shards import Stream
from deepnarrow.text.sources import Document, Memory

BYTES = ByteTokenizer()
SHARD = 1000  # tokens


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Short and long, ASCII and not; one is longer than two shards."""
    draw = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "naive cafe", "na\u00efve caf\u00e9", "\u4e16\u754c", "1,234"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 60))) for _ in range(count)]
    texts[count // 2] = "long " * 500
    return texts


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return [
        write_jsonl(tmp_path / "one.jsonl", some_texts(60, 1)),
        write_jsonl(tmp_path / "two.jsonl", [*some_texts(40, 2), "", "", *some_texts(20, 3)]),
    ]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few documents, so that a small corpus has many checkpoints."""
    monkeypatch.setattr(building, "BATCH_DOCUMENTS", 4)


# What goes in comes out


def test_round_trip(tmp_path: Path, sources: list[Path]) -> None:
    corpus = build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    texts = some_texts(60, 1) + some_texts(40, 2) + some_texts(20, 3)
    ids = [BYTES.encode(text) for text in texts]
    stream = np.concatenate(ids)

    assert (corpus.tokens, corpus.documents) == (len(stream), 120)
    assert corpus.text_bytes == sum(len(text.encode()) for text in texts)
    assert corpus.dtype == np.uint16
    assert [shard.tokens for shard in corpus.shards[:-1]] == [SHARD] * (corpus.tokens // SHARD)
    assert len(corpus.shards) > 5
    for number in (0, 30, 119):
        assert corpus.document(number).tolist() == ids[number]
        assert BYTES.decode(corpus.document(number).tolist()) == texts[number]
    for position in (0, 1, SHARD, corpus.tokens - 1):
        number = corpus.document_at(position)
        assert corpus.starts[number] <= position < corpus.starts[number] + len(ids[number])
    assert [Path(str(corpus.source_of(number).file)).name for number in (0, 59, 60, 119)] == [
        "one.jsonl",
        "one.jsonl",
        "two.jsonl",
        "two.jsonl",
    ]
    assert corpus.tokenizer().fingerprint == corpus.fingerprint == BYTES.fingerprint
    corpus.verify()


@pytest.mark.parametrize("length", [1, 7, 568, SHARD, 3 * SHARD + 1])
def test_rows_may_span_shards(tmp_path: Path, sources: list[Path], length: int) -> None:
    corpus = build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    stream = np.concatenate([corpus.document(number) for number in range(corpus.documents)])
    rows = corpus.rows(length)
    assert rows == len(stream) // length
    expected = stream[: rows * length].reshape(rows, length)
    order = np.random.default_rng(0).permutation(rows)
    found = corpus.read(order, length)
    assert found.dtype == np.int32
    assert np.array_equal(found, expected[order])
    assert np.array_equal(corpus.row(rows - 1, length), expected[-1])
    assert corpus.read(np.array([], int), length).shape == (0, length)
    for outside in (-1, rows):
        with pytest.raises(IndexError, match=f"{rows} rows"):
            corpus.row(outside, length)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    large = ByteTokenizer(sentinels=70_000)
    corpus = build([write_jsonl(tmp_path / "a.jsonl", ["some text"])], large, tmp_path / "corpus")
    assert corpus.dtype == np.uint32
    assert corpus.document(0).tolist() == large.encode("some text")


def test_names_of_special_tokens_leave_no_special_ids(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["a<pad>b</s>c<extra_id_0>d<extra_id_99>", "</s>"])
    corpus = build([source], BYTES, tmp_path / "corpus")
    assert corpus.documents == 1
    assert corpus.document(0).tolist() == BYTES.encode("abcd")


def test_blank_documents_are_passed_over(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["", " \n", "one", "\t", "two\n"])
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder" / "blank.jsonl", ["", " "])
    shutil.move(source, tmp_path / "folder" / "text.jsonl")
    corpus = build([tmp_path / "folder"], BYTES, tmp_path / "corpus")
    assert [source.documents for source in corpus.sources] == [0, 2]
    assert corpus.source_of(0).file == str(tmp_path / "folder" / "text.jsonl")


def test_broken_unicode_is_mended(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "a\\ud800b"}\n')
    corpus = build([source], BYTES, tmp_path / "corpus")
    assert BYTES.decode(corpus.document(0).tolist()) == "a\ufffdb"


def test_sources_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(30)
    monkeypatch.setattr(building, "unchecked_documents", lambda spec, field: (Document(t, spec) for t in texts))
    corpus = build(["hub:owner/name"], BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    assert corpus.documents == 30
    assert (corpus.sources[0].source, corpus.sources[0].file) == ("hub:owner/name", None)
    with pytest.raises(UserError, match="hub:owner/name then, hub:owner/other now"):
        build(["hub:owner/other"], BYTES, tmp_path / "corpus", shard_tokens=SHARD)


def test_builtin_text(tmp_path: Path) -> None:
    corpus = build(["builtin:python"], BYTES, tmp_path / "corpus", held_out=0.05)
    held_out = corpus.held_out()
    assert held_out is not None
    assert corpus.tokens > 1_000_000
    assert 0.02 < held_out.documents / corpus.documents < 0.08
    assert corpus.sources[0].bytes == corpus.text_bytes + held_out.text_bytes


def test_the_corpus_survives_without_its_sources_and_in_another_place(tmp_path: Path, sources: list[Path]) -> None:
    corpus = build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    before = corpus.read(np.arange(5), 100)
    for source in sources:
        source.unlink()
    (tmp_path / "corpus").rename(tmp_path / "moved")
    moved = open_corpus(tmp_path / "moved")
    assert np.array_equal(moved.read(np.arange(5), 100), before)
    assert moved.tokenizer().encode("x") == BYTES.encode("x")


def test_pickle_carries_the_folder_and_no_tokens(tmp_path: Path, sources: list[Path]) -> None:
    corpus = build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    corpus.row(0, 100)
    carried = pickle.dumps(corpus)
    assert len(carried) < 500
    assert np.array_equal(pickle.loads(carried).row(3, 100), corpus.row(3, 100))


def test_many_shards_need_few_file_handles(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepnarrow.text.corpus.OPEN_SHARDS", 3)
    corpus = build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    assert len(corpus.shards) > 3
    found = corpus.read(np.arange(corpus.rows(1100)), 1100)  # rows over two and three shards
    assert not corpus._maps
    stream = np.concatenate([corpus.document(number) for number in range(corpus.documents)])
    assert np.array_equal(found.ravel(), stream[: found.size])


# Examples instead of texts

ARTICLES = ["Marie Curie moved to Paris in 1891.", "Nothing to hide is in this one.", "Zola died in Paris in 1902."]


@pytest.mark.parametrize("form", ["nem", "sentinel"])
def test_salient_corpora(tmp_path: Path, form: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ARTICLES)
    plain = build([source], BYTES, tmp_path / "plain")
    assert (plain.kind, plain.salient) == ("text", None)
    assert not {"salient", "pipeline"} & set(json.loads((tmp_path / "plain" / "manifest.json").read_text())["plan"])

    corpus = build([source], BYTES, tmp_path / "corpus", salient=Salient(form))
    assert (corpus.kind, corpus.salient) == ("salient", {"form": form, "tagger": "builtin"})
    expected = [ids for text in ARTICLES for ids in salient.documents(text, BYTES, "builtin", form)]
    assert len(expected) >= 4
    assert [corpus.document(number).tolist() for number in range(corpus.documents)] == expected
    assert corpus.text_bytes == len(ARTICLES[0]) + len(ARTICLES[2])  # of texts that gave an example, once each
    with pytest.raises(UserError, match=f"--salient {form} --tagger builtin"):
        build([source], BYTES, tmp_path / "corpus")
    with pytest.raises(UserError, match="no name and no date"):
        build([write_jsonl(tmp_path / "b.jsonl", ARTICLES[1:2])], BYTES, tmp_path / "none", salient=Salient(form))


def test_the_examples_of_a_text_are_held_out_together(tmp_path: Path) -> None:
    texts = [f"Marie Curie moved from Warsaw to Paris in {year}." for year in range(1700, 1800)]
    corpus = build(
        [write_jsonl(tmp_path / "a.jsonl", texts)], BYTES, tmp_path / "out", salient=Salient("nem"), held_out=0.2
    )
    held_out = corpus.held_out()
    assert held_out is not None
    assert held_out.kind == "salient"
    each = len(salient.documents(texts[0], BYTES, "builtin", "nem"))
    assert each >= 3
    assert corpus.documents % each == held_out.documents % each == 0
    assert 0 < held_out.documents < corpus.documents


def test_no_such_form_and_no_such_tagger(tmp_path: Path, sources: list[Path]) -> None:
    for wrong, message in ((Salient("nam"), "did you mean nem"), (Salient("nem", "spicy"), "no such tagger")):
        with pytest.raises(UserError, match=message):
            build(sources, BYTES, tmp_path / "corpus", salient=wrong)


# Held-out text


def test_held_out(tmp_path: Path, sources: list[Path]) -> None:
    corpus = build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD, held_out=0.1)
    held_out = corpus.held_out()
    assert held_out is not None
    assert held_out.held_out() is None
    kept, apart = ([part.document(n).tobytes() for n in range(part.documents)] for part in (corpus, held_out))
    everything = build(sources, BYTES, tmp_path / "whole", shard_tokens=SHARD)
    assert sorted(kept + apart) == sorted(everything.document(n).tobytes() for n in range(everything.documents))
    assert not set(kept) & set(apart)
    assert 4 <= len(apart) <= 24
    assert held_out.tokenizer().fingerprint == BYTES.fingerprint
    # The choice rests on the text alone, so that more or fewer sources do not move a document.
    again = build(sources[:1], BYTES, tmp_path / "less", held_out=0.1).held_out()
    assert again is not None
    assert {again.document(n).tobytes() for n in range(again.documents)} <= set(apart)


def test_copies_stay_together(tmp_path: Path) -> None:
    texts = [f"text {n % 20}" for n in range(200)]
    corpus = build([write_jsonl(tmp_path / "a.jsonl", texts)], BYTES, tmp_path / "corpus", held_out=0.2)
    held_out = corpus.held_out()
    assert held_out is not None
    assert held_out.documents % 10 == 0


def test_none_held_out(tmp_path: Path, sources: list[Path]) -> None:
    assert build(sources, BYTES, tmp_path / "corpus").held_out() is None
    assert not (tmp_path / "corpus" / "held_out").exists()


@pytest.mark.parametrize("share", [-0.1, 0.6, 1.0])
def test_impossible_shares(tmp_path: Path, sources: list[Path], share: float) -> None:
    with pytest.raises(UserError, match=r"between 0 and 0\.5"):
        build(sources, BYTES, tmp_path / "corpus", held_out=share)


# Interruptions


class Killed(BaseException):
    """Stands for a kill: no handler of the product catches it."""


@pytest.mark.usefixtures("small_batches")
def test_stopped_at_every_sync_equals_never_stopped(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(sources, BYTES, tmp_path / "whole", shard_tokens=SHARD, held_out=0.1)
    whole = contents(tmp_path / "whole")
    calls = 0

    def counted(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Killed  # and no sync otherwise: it matters in a power cut, and takes most of the time

    monkeypatch.setattr(os, "fsync", counted)
    for first_stop in range(1, 140, 4):
        out = tmp_path / f"stopped-{first_stop}"
        stops = 0
        stop_at = first_stop
        while True:
            calls = 0
            try:
                build(sources, BYTES, out, shard_tokens=SHARD, held_out=0.1)
                break
            except Killed:
                stops += 1
                stop_at = first_stop if stops < 3 else 0
        assert contents(out) == whole
        shutil.rmtree(out)


CHILD = """
import sys, time
from pathlib import Path
from deepnarrow.text import building
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.building import Salient, build

class Slow(ByteTokenizer):
    def encode_batch(self, texts):
        time.sleep(0.005)
        return super().encode_batch(texts)

building.BATCH_DOCUMENTS = 2
if len(sys.argv) > 5:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
build(sys.argv[3:5], Slow(), Path(sys.argv[1]), shard_tokens=int(sys.argv[2]), held_out=0.1)
"""


def test_killed_equals_never_killed(tmp_path: Path, sources: list[Path]) -> None:
    build(sources, BYTES, tmp_path / "whole", shard_tokens=SHARD, held_out=0.1)
    out = tmp_path / "killed"
    draw = random.Random(5)
    kills = 0
    while True:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(out), str(SHARD), *map(str, sources)])
        if kills < 5:
            while not (out / "progress.json").exists() and child.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.35))
            child.send_signal(signal.SIGKILL)
        code = child.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 2
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_batches")
def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, sources: list[Path]) -> None:
    """A limit on the size of files makes the operating system refuse a write half-way, as a full disk does."""
    build(sources, BYTES, tmp_path / "whole", shard_tokens=4 * SHARD, held_out=0.1)
    out = tmp_path / "full"
    command = [sys.executable, "-c", CHILD, str(out), str(4 * SHARD), *map(str, sources), "5000"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 1
    assert "OSError" in child.stderr.splitlines()[-1]
    with pytest.raises(UserError, match="unfinished; run the same"):
        open_corpus(out)
    build(sources, BYTES, out, shard_tokens=4 * SHARD, held_out=0.1)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_batches")
def test_a_resumed_build_tokenises_only_the_rest(tmp_path: Path, sources: list[Path]) -> None:
    class Stopping(ByteTokenizer):
        left, seen = 20, 0

        def encode_batch(self, texts: list[str]) -> list[list[int]]:  # type: ignore[override]
            if self.left == 0:
                raise Killed
            self.left -= 1
            self.seen += len(texts)
            return super().encode_batch(texts)

    stopping = Stopping()
    with pytest.raises(Killed):
        build(sources, stopping, tmp_path / "corpus", shard_tokens=SHARD)
    assert stopping.seen == 80  # of 122; the first file has 60
    stopping.left, stopping.seen = 10**9, 0
    build(sources, stopping, tmp_path / "corpus", shard_tokens=SHARD)
    assert 42 <= stopping.seen < 60


def test_building_again_changes_nothing(tmp_path: Path, sources: list[Path]) -> None:
    build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "corpus").rglob("*")}
    build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "corpus").rglob("*")} == before


def test_shard_sizes_do_not_change_the_stream(tmp_path: Path, sources: list[Path]) -> None:
    one, other = (build(sources, BYTES, tmp_path / str(size), shard_tokens=size) for size in (170, 2**24))
    assert np.array_equal(one.read(np.arange(one.rows(100)), 100), other.read(np.arange(other.rows(100)), 100))


# Mistakes


def test_other_inputs_are_refused(tmp_path: Path, sources: list[Path]) -> None:
    out = tmp_path / "corpus"
    build(sources, BYTES, out, shard_tokens=SHARD)
    with pytest.raises(UserError, match="built with another tokenizer"):
        build(sources, ByteTokenizer(sentinels=100), out, shard_tokens=SHARD)
    with pytest.raises(UserError, match="--shard-tokens 1000"):
        build(sources, BYTES, out, shard_tokens=SHARD + 1)
    with pytest.raises(UserError, match="--field text"):
        build(sources, BYTES, out, shard_tokens=SHARD, field="body")
    with pytest.raises(UserError, match="--held-out 0"):
        build(sources, BYTES, out, shard_tokens=SHARD, held_out=0.1)
    with pytest.raises(UserError, match=r"two\.jsonl is not named now"):
        build(sources[:1], BYTES, out, shard_tokens=SHARD)
    with pytest.raises(UserError, match=r"one\.jsonl then, .*two\.jsonl now"):
        build(sources[::-1], BYTES, out, shard_tokens=SHARD)
    write_jsonl(sources[0], some_texts(60, 9))
    with pytest.raises(UserError, match=r"one\.jsonl has changed.*--out"):
        build(sources, BYTES, out, shard_tokens=SHARD)


def test_other_inputs_are_refused_in_an_unfinished_build(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"

    def killed(stream: Stream) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "finish", killed)
        with pytest.raises(Killed):
            build(sources, BYTES, out, shard_tokens=SHARD)
    with pytest.raises(UserError, match="unfinished"):
        open_corpus(out)
    with pytest.raises(UserError, match="another tokenizer"):
        build(sources, ByteTokenizer(sentinels=100), out, shard_tokens=SHARD)
    assert build(sources, BYTES, out, shard_tokens=SHARD).documents == 120


def test_a_mistyped_option_costs_no_new_folder(tmp_path: Path, sources: list[Path]) -> None:
    with pytest.raises(UserError, match="no field 'body'; its fields are text"):
        build(sources, BYTES, tmp_path / "corpus", field="body")
    assert build(sources, BYTES, tmp_path / "corpus").documents == 120


def test_the_same_text_under_another_name_is_the_same_source(tmp_path: Path, sources: list[Path]) -> None:
    corpus = build(sources[:1], BYTES, tmp_path / "corpus")
    sources[0].rename(tmp_path / "renamed.jsonl")
    assert build([tmp_path / "renamed.jsonl"], BYTES, tmp_path / "corpus").tokens == corpus.tokens


def test_no_text(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    with pytest.raises(UserError, match=r"empty\.jsonl: no text found.*'text'"):
        build([write_jsonl(tmp_path / "empty.jsonl", ["", ""])], BYTES, out)
    assert list(out.iterdir()) == []  # so that the next try is not taken for another corpus
    assert build([write_jsonl(tmp_path / "full.jsonl", ["words"])], BYTES, out).documents == 1


def test_everything_held_out(tmp_path: Path) -> None:
    texts = [text for text in map(str, range(100)) if building._hash(text.encode()) % 2 == 0]
    with pytest.raises(UserError, match="held-out part; add text or lower"):
        build([write_jsonl(tmp_path / "a.jsonl", texts)], BYTES, tmp_path / "corpus", held_out=0.5)


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one source"):
        build([], BYTES, tmp_path / "corpus")
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        build([tmp_path / "missing.jsonl"], BYTES, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, sources: list[Path]) -> None:
    with pytest.raises(UserError, match="not empty and is not a corpus"):
        build(sources, BYTES, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_two_builds_at_once(tmp_path: Path, sources: list[Path]) -> None:
    (tmp_path / "corpus").mkdir()
    with building._alone(tmp_path / "corpus"), pytest.raises(UserError, match="another process"):
        build(sources, BYTES, tmp_path / "corpus")


# Damage


@pytest.fixture
def corpus_folder(tmp_path: Path, sources: list[Path]) -> Path:
    build(sources, BYTES, tmp_path / "corpus", shard_tokens=SHARD, held_out=0.1)
    return tmp_path / "corpus"


def test_truncated_shard(corpus_folder: Path) -> None:
    with (corpus_folder / "shard-00001.bin").open("r+b") as file:
        file.truncate(1999)
    with pytest.raises(UserError, match=r"shard-00001\.bin has 1,999 bytes instead of 2,000"):
        open_corpus(corpus_folder)


@pytest.mark.parametrize("name", ["shard-00002.bin", "documents.bin"])
def test_missing_file(corpus_folder: Path, name: str) -> None:
    (corpus_folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        open_corpus(corpus_folder)


@pytest.mark.parametrize("name", ["shard-00002.bin", "documents.bin", "held_out/shard-00000.bin"])
def test_one_flipped_bit(corpus_folder: Path, name: str) -> None:
    data = bytearray((corpus_folder / name).read_bytes())
    data[100] ^= 1
    (corpus_folder / name).write_bytes(data)
    corpus = open_corpus(corpus_folder)
    with pytest.raises(UserError, match=f"damaged in {Path(name).name}"):
        corpus.verify()


def test_another_tokenizer_put_in_place(corpus_folder: Path) -> None:
    ByteTokenizer(sentinels=7).save(corpus_folder / "tokenizer")
    with pytest.raises(UserError, match="damaged in tokenizer"):
        open_corpus(corpus_folder).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99, this version reads format 1; update"),
        ({"format": None}, "format None"),
        ({"shards": []}, "do not add up"),
        ({"shards": [{"name": 3}]}, "damaged"),
        ({"plan": {}}, "damaged"),
    ],
)
def test_damaged_manifest(corpus_folder: Path, change: dict, message: str) -> None:
    path = corpus_folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        open_corpus(corpus_folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_no_manifest_at_all(corpus_folder: Path, text: str) -> None:
    (corpus_folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json is not"):
        open_corpus(corpus_folder)


def test_not_a_corpus(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="not a corpus"):
            open_corpus(folder)


def test_texts_in_memory_are_a_source(tmp_path: Path) -> None:
    letters = Memory("letters", ["Dear Ada,", "", "Dear Charles,"])
    corpus = build([letters], BYTES, tmp_path / "corpus")
    assert BYTES.decode(corpus.row(0, corpus.tokens).tolist()) == "Dear Ada,Dear Charles,"
    assert corpus.sources[0].source == "memory:letters"
    with pytest.raises(UserError, match="memory:bad:2 is a int, not text"):
        build([Memory("bad", ["one", 2])], BYTES, tmp_path / "other")  # type: ignore[list-item]
    with pytest.raises(UserError):
        build([Memory("letters", ["Dear Ada,", "changed"])], BYTES, tmp_path / "corpus")
