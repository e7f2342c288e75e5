"""Ids equal the reference's: transformers, the sentencepiece library, ByT5Tokenizer; and each other's."""

import gzip
import itertools
import json
import pickle
import struct
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.text import sentencepiece_format, sentencepiece_tokenizer, word_cache
from deepnarrow.text.tokenizer import (
    ByteTokenizer,
    JsonTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load,
    train,
)
from deepnarrow.text.vocabulary import fingerprint_of

PROSE = (
    "Thank you for inviting me to your party last week. We had a very good time.",
    "  The  spaces,\ttabs\nand newlines \r\n all count once.  ",
    "Caf\u00e9 na\u00efve \u201cquoted\u201d \u2014 \u00bd \ufb01 \uff21 \u3000 e\u0301",
    "Prices: $3.50, 100% {braces} <tags> ~tilde~ back\\slash",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u4f60\u597d \u0928\u092e\u0938\u094d\u0924\u0947",
)
AROUND_SENTINELS = (
    "a <extra_id_0> b",
    "a<extra_id_0>b",
    "a<extra_id_0> b",
    "a <extra_id_0>b",
    "<extra_id_0>",
    "<extra_id_0>b",
    " <extra_id_0> b",
    "a <extra_id_0> <extra_id_1> b",
    "a <extra_id_0><extra_id_1>b",
    "a <extra_id_99>\tb\n<extra_id_7>\u00a0c",
    "a<extra_id_100>b<extra_id_007><extra_id_>",
    "x</s>y <pad> z<unk>",
    "a  <extra_id_3>  b",
)
EDGES = ("", " ", "\n\t ", "\x00", "a\x00b", "\u2581a", "a\u2581 b", "\ufeffa", "\u200b", "<", "<<extra_id_0>>")


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data" / "t5_tokenizer"


@pytest.fixture(scope="module")
def t5_json(folder: Path) -> JsonTokenizer:
    tokenizer = load(folder)
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def t5_pieces(folder: Path) -> SentencePieceTokenizer:
    tokenizer = load(folder / "spiece.model")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def reference(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def reference_ids(reference, texts) -> list[list[int]]:
    return reference(list(texts), add_special_tokens=False, verbose=False).input_ids


# -- the layout


def test_layout_is_t5s(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    for tokenizer in (t5_json, t5_pieces):
        assert (tokenizer.size, len(tokenizer), tokenizer.sentinels) == (32100, 32100, 100)
        assert (tokenizer.pad, tokenizer.eos, tokenizer.unk) == (0, 1, 2)
        assert (tokenizer.sentinel(0), tokenizer.sentinel(99)) == (32099, 32000)
        assert [tokenizer.piece(index) for index in (0, 1, 2, 3, 32000, 32099)] == [
            "<pad>",
            "</s>",
            "<unk>",
            "\u2581",
            "<extra_id_99>",
            "<extra_id_0>",
        ]
        with pytest.raises(ValueError, match="sentinel 100 does not exist"):
            tokenizer.sentinel(100)
        with pytest.raises(ValueError, match="id 32100 does not exist"):
            tokenizer.piece(32100)


def test_every_piece_has_the_same_name_in_both(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    assert all(t5_json.piece(index) == t5_pieces.piece(index) for index in range(32100))


# -- ids


@pytest.mark.parametrize("text", PROSE + AROUND_SENTINELS + EDGES, ids=ascii)
def test_ids_equal_the_reference(text: str, t5_json: Tokenizer, t5_pieces: Tokenizer, reference: object) -> None:
    (expected,) = reference_ids(reference, [text])
    assert t5_json.encode(text) == expected
    assert t5_json.encode_batch([text]) == [expected]
    assert t5_pieces.encode(text) == expected
    assert t5_pieces.encode_batch([text]) == [expected]


def test_arrays_equal_lists(t5_json: Tokenizer, t5_pieces: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so they do with a sentencepiece that cannot return arrays."""
    texts = list(PROSE + AROUND_SENTINELS + EDGES)
    for tokenizer in (t5_json, t5_pieces, ByteTokenizer()):
        expected = [tokenizer.encode(text) for text in texts]
        for available in (sentencepiece_tokenizer.ARRAYS, False):
            monkeypatch.setattr(sentencepiece_tokenizer, "ARRAYS", available)
            found = tokenizer.encode_arrays(texts)
            assert {ids.dtype.name for ids in found} == {"int32"}
            assert [ids.tolist() for ids in found] == tokenizer.encode_batch(texts) == expected


def test_a_known_sentence(t5_pieces: Tokenizer) -> None:
    ids = t5_pieces.encode("Thank you <extra_id_0> me to your party <extra_id_1> week.")
    assert ids == [1562, 25, 32099, 140, 12, 39, 1088, 32098, 471, 5]


def test_batches_equal_one_by_one_and_the_reference_on_a_sample(
    shared: Path, t5_json: Tokenizer, t5_pieces: Tokenizer, reference: object
) -> None:
    texts = []
    for path in sorted((shared / "data" / "pretrain").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in itertools.islice(file, 0, None, 60)]
    texts += list(PROSE + AROUND_SENTINELS + EDGES)
    batch = t5_json.encode_batch(texts)
    assert batch == [t5_json.encode(text) for text in texts]
    assert batch == reference_ids(reference, texts)
    assert batch == t5_json.encode_batch(texts), "a remembered word has the same ids"
    pieces = t5_pieces.encode_batch(texts)
    assert pieces == [t5_pieces.encode(text) for text in texts]
    assert sum(one != other for one, other in zip(batch, pieces, strict=True)) <= 1


SCRAPS = ("<extra_id_0>", "<extra_id_12>", "</s>", "<pad>", "<extra_id_", ">", " ", "  ", "\n", "\t", "a", "b.", "Word")
ODD = (
    "\u00e9",
    "\u0301",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u2019",
    "\u0600",
    "\ufe0f",
    "\U0001f600",
    "\x0b",
    "\x1f",
    "\xad",
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(SCRAPS + ODD), max_size=14).map("".join))
def test_any_mixture_of_scraps(t5_json: Tokenizer, t5_pieces: Tokenizer, reference: object, text: str) -> None:
    (expected,) = reference_ids(reference, [text])
    assert t5_json.encode(text) == t5_json.encode_batch([text])[0] == expected
    ids = t5_pieces.encode(text)
    assert ids == t5_pieces.encode_batch([text, text])[1]
    assert ids == expected or {"\u0301", "\ufe0f"} & set(text)


def test_marks_behind_rewritten_characters_differ_as_documented(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    for text, there, here in (("x\u00a0\u0301", "x", "x <unk>"), ("\uff21\u0301", "A", "<unk>")):
        assert t5_json.decode(t5_json.encode(text)) == there
        assert t5_pieces.decode(t5_pieces.encode(text)) == here
    assert t5_json.encode("a\u0301") == t5_pieces.encode("a\u0301") == t5_pieces.encode("\u00e1")


def compare_characters(t5_json: JsonTokenizer, t5_pieces: Tokenizer, codes: Iterable[int]) -> None:
    """The two implementations differ for U+0085 and for one tie, as the docstring of sentencepiece_tokenizer says."""
    characters = [chr(code) for code in codes if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    for frame in ("{}", "a{}b", "x {}y"):
        texts = [frame.format(character) for character in characters]
        whole = t5_json.encode_whole(texts)
        assert whole == t5_json.encode_batch(texts), "word by word equals whole texts"
        pieces = t5_pieces.encode_batch(texts)
        odd = {character for character, one, other in zip(characters, whole, pieces, strict=True) if one != other}
        assert odd <= {"\x85", "\u2034"}


def test_characters(t5_json: JsonTokenizer, t5_pieces: Tokenizer) -> None:
    compare_characters(t5_json, t5_pieces, itertools.chain(range(0x3100), range(0x3100, 0x110000, 23)))


@pytest.mark.slow
def test_every_assigned_character(t5_json: JsonTokenizer, t5_pieces: Tokenizer) -> None:
    compare_characters(t5_json, t5_pieces, range(0x110000))


@pytest.mark.slow
def test_a_document_of_ten_megabytes(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    text = "All work and no play makes Jack a dull boy. " * 230_000
    ids = t5_pieces.encode(text)
    assert ids == t5_json.encode_batch([text])[0]
    assert len(ids) > 2_000_000
    assert len(t5_pieces.encode("a" * 200_000)) == len(t5_json.encode_batch(["a" * 200_000])[0])


def test_a_lone_surrogate_is_a_replacement_character(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    for tokenizer in (t5_json, t5_pieces, ByteTokenizer()):
        broken, mended = "good \ud800 text\udfff", "good \ufffd text\ufffd"
        assert tokenizer.encode(broken) == tokenizer.encode(mended)
        assert tokenizer.encode_batch(["x", broken])[1] == tokenizer.encode(mended)
        assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")


# -- text


@pytest.mark.parametrize("text", PROSE + AROUND_SENTINELS, ids=ascii)
def test_decoding_equals_the_reference(text: str, t5_json: Tokenizer, t5_pieces: Tokenizer, reference) -> None:
    ids = t5_json.encode(text)
    kept = [index for index in ids if index > 1]
    expected = reference.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert t5_json.decode(ids) == expected
    assert t5_pieces.decode(ids) == expected


def test_decoding_drops_padding_end_and_rows_without_meaning(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    for tokenizer in (t5_json, t5_pieces):
        assert tokenizer.decode([0, 1562, 25, 32099, 140, 1, 0, 0, 32100, 32127, -100]) == "Thank you<extra_id_0> me"
        assert tokenizer.decode([]) == tokenizer.decode([0, 1, 1]) == ""


def test_every_id_decodes_alike(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    for index in range(t5_json.size):
        assert t5_json.decode([index]) == t5_pieces.decode([index])
        assert t5_json.decode([7, index]) == t5_pieces.decode([7, index])


def test_what_t5s_vocabulary_cannot_say(t5_json: Tokenizer) -> None:
    assert t5_json.decode(t5_json.encode("a {b}\nc ~")) == "a <unk>b<unk> c <unk>"


# -- bytes


@pytest.mark.parametrize("text", PROSE + AROUND_SENTINELS + EDGES, ids=ascii)
def test_bytes_equal_byt5(text: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer

    tokenizer = load("bytes")
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(theirs, ByT5Tokenizer)
    ids = tokenizer.encode(text)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert tokenizer.encode_batch([text, "x"]) == [ids, [123]]
    kept = [index for index in ids if index > 1]
    assert tokenizer.decode(ids) == theirs.decode(kept, skip_special_tokens=False)
    if "<" not in text:
        assert ids == ByT5Tokenizer()(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


def test_byte_layout() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.size, tokenizer.sentinels, tokenizer.sentinel(0), tokenizer.sentinel(124)) == (384, 125, 383, 259)
    assert [tokenizer.piece(index) for index in (0, 100, 35, 13, 258, 383)] == [
        "<pad>",
        "a",
        " ",
        "<0x0A>",
        "<0xFF>",
        "<extra_id_0>",
    ]
    assert tokenizer.decode(range(-3, 400)).endswith("<extra_id_1><extra_id_0>")
    with pytest.raises(ValueError, match="does not exist"):
        tokenizer.piece(384)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_bytes_lose_nothing(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


# -- saving, loading, naming


def test_saved_folders_load_here_and_in_transformers(tmp_path: Path, t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    from transformers import AutoTokenizer

    texts = list(PROSE + AROUND_SENTINELS)
    expected = t5_json.encode_batch(texts)
    for name, tokenizer in (("json", t5_json), ("pieces", t5_pieces)):
        folder = tmp_path / name
        tokenizer.save(folder)
        (folder / "config.json").write_text('{"model_type": "t5"}')  # as in a model's folder
        again = load(folder)
        assert isinstance(again, JsonTokenizer)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode_batch(texts) == expected
        theirs = AutoTokenizer.from_pretrained(folder)
        assert reference_ids(theirs, texts) == expected
        assert theirs("a").input_ids == [3, 9, 1]
        assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id, len(theirs)) == (0, 1, 2, 32100)
    assert load(tmp_path / "pieces" / "spiece.model").fingerprint == t5_pieces.fingerprint


def test_one_vocabulary_has_one_fingerprint(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    assert t5_json.fingerprint == t5_pieces.fingerprint
    assert len({t5_json.fingerprint, load("bytes").fingerprint, ByteTokenizer(sentinels=100).fingerprint}) == 3
    assert SentencePieceTokenizer(t5_pieces.data, sentinels=50).fingerprint != t5_pieces.fingerprint


def test_a_changed_setting_changes_the_fingerprint(t5_json: JsonTokenizer) -> None:
    layout = json.loads(t5_json.data)
    layout["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    cut = JsonTokenizer(json.dumps(layout).encode())
    assert cut.fingerprint == t5_json.fingerprint
    assert len(cut.encode(PROSE[0])) > 4, "a stored truncation is not applied"
    layout["added_tokens"][-1]["rstrip"] = True
    stripping = JsonTokenizer(json.dumps(layout).encode())
    assert stripping.fingerprint != t5_json.fingerprint
    assert stripping.words is None, "a token that swallows spaces joins words"
    assert stripping.encode_batch(["a <extra_id_0> b"]) == [stripping.encode("a <extra_id_0> b")]


def test_transformers_5_writes_another_splitting_which_we_follow(tmp_path: Path, folder: Path) -> None:
    from transformers import T5TokenizerFast

    theirs = T5TokenizerFast.from_pretrained(folder)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.sentinel(0) == 32099
    texts = list(PROSE + AROUND_SENTINELS)
    assert ours.encode_batch(texts) == reference_ids(theirs, texts)


def test_workers_can_be_sent_a_tokenizer(t5_json: Tokenizer, t5_pieces: Tokenizer) -> None:
    for tokenizer in (t5_json, t5_pieces, ByteTokenizer(sentinels=7)):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.fingerprint == tokenizer.fingerprint
        assert again.encode(AROUND_SENTINELS[1]) == tokenizer.encode(AROUND_SENTINELS[1])


def test_tokens_added_above_the_sentinels(tmp_path: Path, t5_json: JsonTokenizer) -> None:
    layout = json.loads(t5_json.data)
    layout["added_tokens"].append({**layout["added_tokens"][-1], "id": 32100, "content": "{", "special": False})
    ours = JsonTokenizer(json.dumps(layout).encode())
    assert (ours.size, ours.sentinels, ours.sentinel(0), ours.sentinel(99)) == (32101, 100, 32099, 32000)
    assert ours.encode("{<extra_id_0>") == [32100, 32099]


def test_sentinels_among_the_models_own_pieces() -> None:
    tiny = train(["the cat sat on the mat and the dog sat on the cat"] * 20, vocab=17, sentinels=0)

    def piece(text: str) -> bytes:  # one more piece, in protobuf's writing: text, score, type
        body = b"\x0a" + bytes([len(text)]) + text.encode() + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
        return b"\x0a" + bytes([len(body)]) + body

    grown = SentencePieceTokenizer(tiny.data + piece("<extra_id_1>") + piece("<extra_id_0>"))
    assert (grown.size, grown.sentinels, grown.sentinel(0)) == (tiny.size + 2, 2, tiny.size + 1)
    assert grown.encode("the<extra_id_0> cat")[-3:].count(grown.sentinel(0)) <= 1
    assert grown.sentinel(0) in grown.encode("the<extra_id_0> cat")


def test_other_layouts_are_refused(tmp_path: Path, t5_json: JsonTokenizer) -> None:
    layout = json.loads(t5_json.data)
    layout["added_tokens"][3]["content"], layout["added_tokens"][4]["content"] = "<extra_id_98>", "<extra_id_99>"
    for index in (32000, 32001):
        layout["model"]["vocab"][index][0] = "<extra_id_98>" if index == 32000 else "<extra_id_99>"
    with pytest.raises(UserError, match="does not number its sentinels downward"):
        JsonTokenizer(json.dumps(layout).encode())
    layout = json.loads(t5_json.data)
    layout["model"]["vocab"][0][0] = "<bos>"
    layout["added_tokens"][0]["content"] = "<bos>"
    with pytest.raises(UserError, match="padding None, end 1 and unknown 2"):
        JsonTokenizer(json.dumps(layout).encode())


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe", "not a tokenizer.json"),
        ("spiece.model", b"hello there", "not a SentencePiece model"),
        ("spiece.model", b"", "not a SentencePiece model"),
        ("spiece.model", b"\x0a\x7fshort", "not a SentencePiece model"),
        ("readme.txt", b"", "found readme.txt"),
    ],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        load(tmp_path)
    with pytest.raises(UserError, match="no tokenizer at"):
        load(tmp_path / "absent")


def test_the_tiny_model_of_seqio(shared: Path) -> None:
    tokenizer = load(shared / "data" / "seqio_test_sentencepiece" / "sentencepiece.model")
    assert (tokenizer.size, tokenizer.sentinels) == (126, 100)
    assert tokenizer.decode(tokenizer.encode("this is a test")) == "this is a test"
    assert [tokenizer.piece(index) for index in tokenizer.encode("ea")] == ["\u2581", "e", "a"]


# -- training


@pytest.fixture(scope="module")
def prose() -> list[str]:
    from deepnarrow.text import builtin

    return [text for text, _ in itertools.islice(builtin.documents(), 900)]


@pytest.fixture(scope="module")
def trained(prose: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    out = tmp_path_factory.mktemp("trained") / "tokenizer"
    return train(prose, vocab=2048, out=out), out


def test_training_gives_t5s_layout(trained: tuple[Tokenizer, Path], prose: list[str]) -> None:
    tokenizer, out = trained
    assert (tokenizer.size, tokenizer.sentinels, tokenizer.sentinel(0)) == (2048, 100, 2047)
    assert [tokenizer.piece(index) for index in (0, 1, 2)] == ["<pad>", "</s>", "<unk>"]
    assert sorted(path.name for path in out.iterdir()) == ["spiece.model", "tokenizer.json", "tokenizer_config.json"]
    text = "The value of this expression is an object."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    words = sum(len(text.split()) for text in prose)
    assert sum(map(len, tokenizer.encode_batch(prose))) < 2.2 * words


def test_a_trained_folder_is_the_same_in_transformers(trained: tuple[Tokenizer, Path], prose: list[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer, out = trained
    theirs = AutoTokenizer.from_pretrained(out)
    texts = prose[::20] + list(PROSE + AROUND_SENTINELS)
    expected = reference_ids(theirs, texts)
    assert load(out).encode_batch(texts) == expected
    assert sum(one != other for one, other in zip(tokenizer.encode_batch(texts), expected, strict=True)) <= 1
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == tokenizer.sentinel(0)
    assert load(out).fingerprint == tokenizer.fingerprint == load(out / "spiece.model").fingerprint


def test_training_is_deterministic_and_silent(prose: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    first, second = (train(iter(prose[:300]), vocab=700) for _ in range(2))
    assert first.data == second.data
    assert capfd.readouterr() == ("", "")


def test_byte_fallback_loses_no_character(prose: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = train(prose[:300], vocab=1000, byte_fallback=True, out=tmp_path / "t")
    text = "a {b} ~ \u4f60\u597d \U0001f600<extra_id_0>"
    ids = tokenizer.encode(text)
    assert tokenizer.unk not in ids
    assert tokenizer.decode(ids) == load(tmp_path / "t").decode(ids) == text
    assert load(tmp_path / "t").encode(text) == ids
    assert reference_ids(AutoTokenizer.from_pretrained(tmp_path / "t"), [text]) == [ids]


def test_long_lines_are_not_passed_over() -> None:
    tokenizer = train(["abcd " * 5000 + "xyz" * 3000], vocab=115)
    assert tokenizer.unk not in tokenizer.encode("abcd xyz")


def broken_source():
    yield "some text"
    raise UserError("file.txt is not UTF-8")


@pytest.mark.parametrize(
    ("texts", "options", "complaint"),
    [
        ([], {"vocab": 500}, "there is no text"),
        (["", " \n "], {"vocab": 500}, "there is no text"),
        (
            ["to be or not to be"] * 3,
            {"vocab": 500},
            r"the largest it can fill is \d+ \(\d+ pieces and 100 sentinels\)",
        ),
        (["".join(map(chr, range(0x4E00, 0x4F00)))], {"vocab": 150}, r"needs at least 3\d\d"),
        (["text"], {"vocab": 103}, "leaves 3 pieces, and 3 are fixed"),
        (["text"], {"vocab": 300, "byte_fallback": True}, "ask for more than 359"),
        (["text"], {"vocab": 10, "sentinels": -1}, "ask for more than"),
        (broken_source(), {"vocab": 500}, "^file.txt is not UTF-8$"),
    ],
)
def test_training_mistakes_are_one_line(texts, options: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        train(texts, **options)


def test_the_largest_vocabulary_named_can_be_trained() -> None:
    texts = ["it was the best of times, it was the worst of times"] * 5
    with pytest.raises(UserError) as caught:
        train(texts, vocab=5000)
    largest = int(str(caught.value).split("fill is ")[1].split(" ")[0])
    assert train(texts, vocab=largest).size == largest


def test_training_overwrites_only_a_tokenizer(tmp_path: Path) -> None:
    texts = ["it was the best of times, it was the worst of times"] * 5
    train(texts, vocab=120, out=tmp_path / "t")
    train(texts, vocab=121, out=tmp_path / "t")
    assert load(tmp_path / "t").size == 121
    (tmp_path / "t" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"holds other files \(thesis.txt\)"):
        train(texts, vocab=120, out=tmp_path / "t")
    with pytest.raises(UserError, match="is a file"):
        train(texts, vocab=120, out=tmp_path / "t" / "thesis.txt")


def test_reading_stops_at_the_limit() -> None:
    read = []

    def endless():
        for text in itertools.repeat("it was the best of times, it was the worst of times"):
            read.append(1)
            yield text

    train(endless(), vocab=120, max_bytes=2000)
    assert len(read) < 60


# -- parts


def test_the_word_cache_forgets_nothing_it_needs(t5_json: JsonTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "WORDS", 5)
    cache = word_cache.WordCache(t5_json.encode_whole)
    texts = [PROSE[0], "x" * 100, PROSE[2], "\u0301a", PROSE[0]]
    found = cache.ids(texts)
    assert found[3] is None, "a mark at the start of a word would join the space before it"
    assert [ids for ids in found if ids is not None] == [
        t5_json.encode(text) for text, ids in zip(texts, found, strict=True) if ids is not None
    ]
    assert "x" * 100 not in cache.known
    size = len(cache.known)
    assert cache.ids(["entirely new words here"]) == [t5_json.encode("entirely new words here")]
    assert len(cache.known) == size


def test_reading_the_model_file(t5_pieces: SentencePieceTokenizer) -> None:
    model = t5_pieces.model
    assert [t5_pieces.engine.id_to_piece(index) for index in (3, 500, 31999)] == [
        model.pieces[index].text for index in (3, 500, 31999)
    ]
    assert all(t5_pieces.engine.get_score(index) == piece.score for index, piece in enumerate(model.pieces))
    assert (model.model_type, model.add_dummy_prefix, model.remove_extra_whitespaces) == (1, True, True)
    with pytest.raises(ValueError, match="unknown wire type"):
        sentencepiece_format.read(b"\x0b\x00")


def test_fingerprints_do_not_depend_on_order() -> None:
    assert fingerprint_of(a=1, b=[2]) == fingerprint_of(b=[2], a=1) != fingerprint_of(a=1, b=[3])
