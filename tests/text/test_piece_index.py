"""Pieces laid out beforehand cut texts as the tokenizers library does."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.text.piece_index import NAME, PRINTABLE, IndexedTokenizer, open_indexed, write_index
from deepnarrow.text.tokenizer import ByteTokenizer, JsonTokenizer, load, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of 700 ids, trained on this page and its like."""
    path = tmp_path_factory.mktemp("pieces")
    texts = [file.read_text("utf-8") for file in sorted(Path(__file__).parent.glob("test_p*.py"))]
    train((line for text in texts for line in text.splitlines()), vocab=700).save(path)
    assert write_index(path)
    return path


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[IndexedTokenizer, JsonTokenizer]:
    quick, full = open_indexed(folder), load(folder / "tokenizer.json")
    assert isinstance(quick, IndexedTokenizer)
    assert isinstance(full, JsonTokenizer)
    return quick, full


@given(text=st.text(st.sampled_from(PRINTABLE + "      eeeeaaattt--..")) | st.text(max_size=20))
@settings(max_examples=400, deadline=None)
def test_any_text(both: tuple[IndexedTokenizer, JsonTokenizer], text: str) -> None:
    quick, full = both
    assert quick.encode(text) == full.encode(text)


@given(ids=st.lists(st.integers(-2, 710), max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_ids(both: tuple[IndexedTokenizer, JsonTokenizer], ids: list[int]) -> None:
    quick, full = both
    assert quick.decode(ids) == full.decode(ids)


def test_it_is_the_same_tokenizer(both: tuple[IndexedTokenizer, JsonTokenizer], tmp_path: Path) -> None:
    quick, full = both
    assert (quick.size, quick.sentinels, quick.fingerprint, quick.eos) == (
        full.size, full.sentinels, full.fingerprint, full.eos,
    )  # fmt: skip
    assert quick.sentinel(0) == full.sentinel(0)
    assert [quick.piece(index) for index in range(full.size)] == [full.piece(index) for index in range(full.size)]
    quick.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == full.data
    assert quick.encode_batch(["a b", "c"]) == full.encode_batch(["a b", "c"])


def test_doubt_is_left_to_the_library(both: tuple[IndexedTokenizer, JsonTokenizer]) -> None:
    quick, _ = both
    assert quick.cut("import random") is not None
    for text in ("a <extra_id_0> b", "caf\u00e9", "a\tb", "a\nb", "x" * 5000):
        assert quick.cut(text) is None


def test_the_published_vocabulary_over_prose(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((shared / "data/t5_tokenizer/tokenizer.json").read_bytes())
    assert write_index(tmp_path)
    quick, full = open_indexed(tmp_path), load(tmp_path / "tokenizer.json")
    assert quick is not None
    root = Path(__file__).parents[2]
    lines = [line for file in sorted(root.glob("docs/*.md")) for line in file.read_text("utf-8").splitlines() if line]
    rng = random.Random(0)
    lines = rng.sample(lines, min(400, len(lines)))
    lines += ["".join(rng.choices(PRINTABLE + "  ", k=rng.randint(1, 60))) for _ in range(200)]
    lines += ["-" * number for number in range(1, 30)]
    wanted = full.encode_batch(lines)
    found = [quick.cut(line) for line in lines]
    assert all(ids is None or ids == right for ids, right in zip(found, wanted, strict=True))
    assert sum(ids is not None for ids in found[:400]) > 150
    assert [quick.decode(ids) for ids in wanted] == [full.decode(ids) for ids in wanted]


def test_an_index_of_another_vocabulary_is_not_used(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", NAME):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert open_indexed(tmp_path) is not None
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
    assert open_indexed(tmp_path) is None
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    for damaged in (b"", b"x" * 30, (folder / NAME).read_bytes()[:-1], (folder / NAME).read_bytes()[:500]):
        (tmp_path / NAME).write_bytes(damaged)
        assert open_indexed(tmp_path) is None
    (tmp_path / NAME).unlink()
    assert open_indexed(tmp_path) is None


def test_other_tokenizers_have_none(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    assert not write_index(tmp_path)
    assert not (tmp_path / NAME).exists()
