"""Documents and records out of real files: every kind, every compression, every mistake."""

import csv
import gzip
import json
import sys
import tracemalloc
import types
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from deepnarrow.errors import UserError
from deepnarrow.text.sources import Document, documents, rows
from deepnarrow.text.streams import BLOCK, opened, text_blocks

TEXTS = ["The first document.", "The second:\ntwo lines.", "Caf\u00e9, the third \U0001f600."]
RECORDS = [{"text": text, "label": index} for index, text in enumerate(TEXTS)]


def write(path: Path, data: bytes | str) -> Path:
    """Write a file, compressed as its name says."""
    raw = data.encode("utf-8") if isinstance(data, str) else data
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        raw = zstandard.ZstdCompressor().compress(raw)
    path.write_bytes(raw)
    return path


def content(kind: str, tmp_path: Path) -> bytes:
    if kind == ".jsonl":
        return "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    if kind == ".json":
        return json.dumps(RECORDS, indent=1, ensure_ascii=False).encode()
    if kind == ".csv":
        path = tmp_path / "made"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(RECORDS)
        return path.read_bytes()
    path = tmp_path / "made"
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    return path.read_bytes()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_table_in_every_compression(kind: str, compression: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a{kind}{compression}", content(kind, tmp_path))
    found = list(documents(path))
    assert [document.text for document in found] == TEXTS
    lines = {".csv": (2, 3, 5)}.get(kind, (1, 2, 3))  # the second document's quoted text spans two lines
    assert [document.source for document in found] == [f"{path}:{line}" for line in lines]
    labels = [int(row["label"]) for row in rows(path)]
    assert labels == [0, 1, 2]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_text_file_is_one_document(compression: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.txt{compression}", "\ufeffOne.\r\n\r\nTwo.\rThree.\n")
    assert list(documents(path)) == [Document("One.\n\nTwo.\nThree.", str(path))]


def test_c4_shards_are_json_lines_named_json(tmp_path: Path) -> None:
    path = write(tmp_path / "c4-train.00000.json.gz", content(".jsonl", tmp_path))
    assert [document.text for document in documents(path)] == TEXTS


def test_several_zstd_frames_are_one_file(tmp_path: Path) -> None:
    line = (json.dumps({"text": "again"}) + "\n").encode()
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(line) * 3)
    assert len(list(documents(tmp_path / "a.jsonl.zst"))) == 3


def test_tsv_keeps_quotation_marks(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"Well, he said\t1\nit"s fine\t0\n')
    assert list(rows(path)) == [{"text": '"Well, he said', "label": "1"}, {"text": 'it"s fine', "label": "0"}]


def test_folders_are_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.jsonl", ".hidden/x.txt", "a/.cache.txt", "notes.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, json.dumps({"text": name}) if name.endswith("jsonl") else name)
    assert [document.text for document in documents(tmp_path)] == ["a/b/c.jsonl", "a/z.txt", "b.txt"]
    assert [row["text"] for row in rows(tmp_path)] == ["a/b/c.jsonl"]


def test_another_field_and_documents_without_text(tmp_path: Path) -> None:
    lines = [{"body": "one"}, {"body": None}, {"body": "  "}, {"body": "two"}]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert [tuple(document) for document in documents(path, field="body")] == [
        ("one", f"{path}:1"),
        ("two", f"{path}:4"),
    ]


# -- long files


def long_text(paragraphs: int) -> str:
    return "\n\n".join(f"Paragraph {n}" + " of some length, with words in it." * 40 for n in range(paragraphs))


def test_long_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    text = long_text(2500)
    path = write(tmp_path / "book.txt.gz", text)
    found = list(documents(path))
    assert "\n\n".join(document.text for document in found) == text
    sizes = [len(document.text) for document in found]
    assert all(95_000 < size < 110_000 for size in sizes[:-1])
    assert sizes[-1] <= 210_000
    lines = text.split("\n")
    for document in found:
        number = int(document.source.rsplit(":", 1)[1])
        assert document.text.startswith(lines[number - 1].strip())


def test_a_megabyte_stays_whole_and_text_without_blank_lines_is_cut_too(tmp_path: Path) -> None:
    (whole,) = documents(write(tmp_path / "a.txt", "word " * 200_000))
    assert len(whole.text) == 999_999
    found = list(documents(write(tmp_path / "b.txt", "word " * 1_000_000)))
    assert " ".join(document.text for document in found) == ("word " * 1_000_000).strip()
    found = list(documents(write(tmp_path / "c.txt", "x" * 5_000_000)))
    assert "".join(document.text for document in found) == "x" * 5_000_000


def test_tinyshakespeare_in_pieces(shared: Path) -> None:
    path = shared / "data" / "pretrain" / "tinyshakespeare.txt.gz"
    found = list(documents(path))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    assert sum(len(document.text.split()) for document in found) == len(text.split())
    assert found[0].source == f"{path}:1"
    assert len(found) == 11


def test_memory_stays_flat(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", long_text(20_000))
    write(tmp_path / "b.jsonl.gz", "".join(json.dumps({"text": "a word " * 200}) + "\n" for _ in range(20_000)))
    tracemalloc.start()
    try:
        size = sum(len(document.text) for document in documents(tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 50_000_000
    assert peak < 16_000_000


# -- mistakes


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n ", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.json", b"[]", "holds no text"),
        ("a.txt", b"good caf\xe9 text", r"a.txt is not UTF-8: byte 8 is 0xe9"),
        ("a.txt.gz", b"good caf\xe9 text", r"a.txt.gz is not UTF-8: byte 8 is 0xe9"),
        ("a.txt", b"x" * BLOCK + b"y\xff", rf"byte {BLOCK + 1} is 0xff"),
        ("a.txt", b"x" * (BLOCK - 1) + b"\xc3" + b"\x28", rf"byte {BLOCK - 1} is 0xc3"),
        ("a.txt", b"ends early \xe2\x82", "byte 11 is 0xe2"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "a.jsonl is not UTF-8: byte 24 is 0xe9"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl:3 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1, 2]\n', "a.jsonl:2 holds a list, not an object"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl:1 is"),
        ("a.json", b'[{"text": "a"},\n {"text": ]', "a.json:2 is not valid JSON"),
        ("a.json", b'[{"text": "a"}, 3]', "a.json:2 holds a int"),
        (
            "a.jsonl",
            b'{"body": "a", "title": "b"}\n',
            r"a.jsonl:1 has no field 'text'; its fields are body, title.*--field",
        ),
        ("a.jsonl", b'{"text": ["a"]}\n', "a.jsonl:1 holds a list in field 'text', not text"),
        ("a.csv", b"text,label\na,1\nb\n", "a.csv:3 has 1 fields, the header has 2"),
        ("a.csv", b"text,text\na,1\n", "names a column twice"),
        ("a.csv", b'text,label\n"a,1\n', "a.csv:2 is not valid CSV"),
        ("a.csv", b"title\na\n", "its fields are title"),
        ("a.parquet", b"PAR1nothing", "not a whole Parquet file"),
        ("a.parquet.gz", b"PAR1nothing", "not a whole Parquet file"),
    ],
)
def test_mistakes_name_the_place(name: str, data: bytes, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(UserError, match=complaint):
        list(documents(path))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet.gz"])
def test_damaged_archives(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"not compressed at all")
    with pytest.raises(UserError, match="is damaged or not a"):
        list(documents(path))
    write(path, "many words in it " * 1000)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"is damaged|not a whole Parquet"):
        list(documents(path))


def test_any_cut_of_a_zstd_file_is_noticed(tmp_path: Path) -> None:
    text = "".join(f"{n} words; " for n in range(20_000))
    packed = zstandard.ZstdCompressor().compress(text.encode())
    path = tmp_path / "a.txt.zst"
    for end in (1, 3, 10, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed * 2 + packed[:end])
        with pytest.raises(UserError, match="damaged"):
            list(documents(path))
    path.write_bytes(packed * 2)
    (document,) = documents(path)
    assert document.text == (text * 2).strip()


def test_parquet_names_the_fields_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", content(".parquet", tmp_path))
    with pytest.raises(UserError, match=r"a.parquet:1 has no field 'body'; its fields are text, label"):
        list(documents(path, field="body"))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file or folder: .*absent"):
        list(documents(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"no file in .* ends in .txt"):
        list(documents(tmp_path))
    write(tmp_path / "a.txt", "text")
    with pytest.raises(UserError, match=r"no file in .* ends in .jsonl"):
        list(rows(tmp_path))
    with pytest.raises(UserError, match="no table of records"):
        list(rows(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="no built-in text named builtin:pyhton; did you mean builtin:python"):
        list(documents("builtin:pyhton"))
    with pytest.raises(UserError, match="no such file"), opened(tmp_path / "absent") as file:
        list(text_blocks(file, tmp_path))


# -- the hub, without the network


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The package `datasets` as far as it is used: it writes down what it is asked for."""
    asked: list[tuple] = []

    def load_dataset(name, config, *, split, streaming, **more):
        asked.append((name, config, split, streaming, *more.items()))
        if name == "no/where":
            raise ConnectionError("Couldn't reach\nthe hub")
        return iter(RECORDS)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize(
    ("spec", "asked_for"),
    [
        ("hub:allenai/c4", ("allenai/c4", None, "train", True)),
        ("hub:allenai/c4:en", ("allenai/c4", "en", "train", True)),
        ("hub:allenai/c4:validation", ("allenai/c4", None, "validation", True)),
        ("hub:allenai/c4:en:validation", ("allenai/c4", "en", "validation", True)),
        ("hub:a/b@v1:en:test", ("a/b", "en", "test", True, ("revision", "v1"))),
        (
            "hub:a/b@refs/convert/parquet:en:test",
            ("a/b", None, "test", True, ("revision", "refs/convert/parquet"), ("data_dir", "en")),
        ),
    ],
)
def test_hub_names(spec: str, asked_for: tuple, hub: list[tuple]) -> None:
    found = list(documents(spec))
    assert hub == [asked_for]
    assert found[2] == Document(TEXTS[2], f"{spec}:3")
    assert list(rows(spec)) == RECORDS


@pytest.mark.parametrize("spec", ["hub:", "hub:a/b/c", "hub:allenai/c4:train[:5%]:x", "hub:a:b:c:d"])
def test_hub_names_that_are_none(spec: str, hub: list[tuple]) -> None:
    with pytest.raises(UserError, match="write hub:OWNER/NAME"):
        list(documents(spec))


def test_hub_out_of_reach(hub: list[tuple]) -> None:
    with pytest.raises(
        UserError, match=r"hub:no/where from the hub \(ConnectionError: Couldn't reach the hub\); it needs the network"
    ):
        list(documents("hub:no/where"))


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'deepnarrow\[data\]'"):
        list(documents("hub:allenai/c4"))
