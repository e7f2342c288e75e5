"""Taggers by name: a real spaCy pipeline and a real token-classification checkpoint, both made on the spot."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.text.salient import taggers
from deepnarrow.text.salient.spans import Span, cut

TEXT = (
    "Zo\u00eb Bl\u0101ck met Bj\u00f6rk in S\u00e3o Paulo. \U0001f600 Many left, and 12 stayed.\n"
    "Bj\u00f6rk left S\u00e3o Paulo on 3 May 1999."
)


def found(text: str, spans: list[Span]) -> list[tuple[str, str]]:
    return [(cut(text, span), span.kind) for span in spans]


def test_the_built_in_ones() -> None:
    assert found(TEXT, taggers.load("builtin")(TEXT))[-1] == ("3 May 1999", "DATE")
    assert found(TEXT, taggers.load("dates")(TEXT)) == [("3 May 1999", "DATE")]
    assert taggers.load("builtin")("") == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bultin", "no such tagger: 'bultin'; did you mean builtin"),
        ("builtin:en", "no such tagger"),
        ("spacy:", "no such tagger: 'spacy:'; did you mean spacy:PIPELINE"),
        ("transformers", "did you mean transformers:MODEL"),
        ("", "choose from: builtin, dates, spacy:PIPELINE, transformers:MODEL"),
    ],
)
def test_a_wrong_name_teaches(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        taggers.load(name)
    assert says in str(caught.value)


@pytest.mark.parametrize("library", ["spacy", "transformers"])
def test_a_library_that_is_not_installed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # what import sees where there is none
    with pytest.raises(UserError, match=f"pip install {library}"):
        taggers.load(f"{library}:anything-not-loaded-before")


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    script = (
        "import sys; from deepnarrow.text.salient import taggers; from deepnarrow.text.objectives import salient\n"
        "taggers.load('builtin')('Ada left Rome in 1921.')\n"
        "print([name for name in ('torch', 'spacy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# spaCy


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install spacy")
    engine = spacy.blank("en")
    engine.add_pipe("entity_ruler").add_patterns(
        [
            {"label": "PERSON", "pattern": "Zo\u00eb Bl\u0101ck"},
            {"label": "PERSON", "pattern": "Bj\u00f6rk"},
            {"label": "GPE", "pattern": "S\u00e3o Paulo"},
            {"label": "CARDINAL", "pattern": "12"},
        ]
    )
    folder = tmp_path_factory.mktemp("spacy") / "pipeline"
    engine.to_disk(folder)
    return folder


EXPECTED = [
    ("Zo\u00eb Bl\u0101ck", "PERSON"), ("Bj\u00f6rk", "PERSON"), ("S\u00e3o Paulo", "GPE"),
    ("Bj\u00f6rk", "PERSON"), ("S\u00e3o Paulo", "GPE"),
]  # fmt: skip


def test_spacy_spans_are_bytes_and_numbers_are_left_out(pipeline: Path) -> None:
    assert found(TEXT, taggers.load(f"spacy:{pipeline}")(TEXT)) == EXPECTED


def test_spacy_takes_texts_longer_than_its_pipelines_do(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import spacy

    engine = spacy.load(pipeline)
    engine.max_length = 100  # characters; a million by default, and spaCy refuses what is longer
    long = "\n".join([TEXT] * 30)
    with pytest.raises(ValueError, match="maximum of 100"):
        engine(long)
    monkeypatch.setattr(spacy, "load", lambda name: engine)
    assert found(long, taggers.spacy_tagger.__wrapped__("short")(long)) == EXPECTED * 30
    stretches = taggers.stretches(long, 100)
    assert max(end - start for start, end in stretches) <= 100
    assert " ".join(long[start:end] for start, end in stretches).split() == long.split()


def test_no_such_spacy_pipeline(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install spacy")
    with pytest.raises(UserError, match="python -m spacy download en_core_web_none"):
        taggers.load("spacy:en_core_web_none")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(UserError, match="marks no entities"):
        taggers.load(f"spacy:{tmp_path / 'blank'}")


# transformers

KNOWN = {"zo\u00eb": 1, "bl\u0101ck": 2, "bj\u00f6rk": 1, "s\u00e3o": 3, "paulo": 4}
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *KNOWN, "met", "in", "left", "many", "and", "on", ".", ","]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without layers whose classifier reads the label off the word: what a perfect tagger of KNOWN does."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tagger")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    labels = dict(enumerate(LABELS))
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=24, id2label=labels, label2id={label: index for index, label in labels.items()},
    )  # fmt: skip
    model = transformers.BertForTokenClassification(config).eval()
    with torch.no_grad():
        embeddings = model.bert.embeddings
        for part in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            part.weight.zero_()
        embeddings.word_embeddings.weight.zero_()
        for index, word in enumerate(WORDS):
            embeddings.word_embeddings.weight[index, KNOWN.get(word, 0)] = 1.0
        model.classifier.weight.copy_(torch.eye(8)[:5])
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    transformers.BertTokenizerFast(
        vocab=str(folder / "vocab.txt"), do_lower_case=True, strip_accents=False
    ).save_pretrained(folder)
    return folder


EXPECTED_TRANSFORMERS = [
    ("Zo\u00eb Bl\u0101ck", "PER"), ("Bj\u00f6rk", "PER"), ("S\u00e3o Paulo", "LOC"),
    ("Bj\u00f6rk", "PER"), ("S\u00e3o Paulo", "LOC"), ("3 May 1999", "DATE"),
]  # fmt: skip


def test_transformers_spans_are_bytes_with_dates_beside_them(checkpoint: Path) -> None:
    assert found(TEXT, taggers.load(f"transformers:{checkpoint}")(TEXT)) == EXPECTED_TRANSFORMERS


def test_transformers_takes_sentences_longer_than_its_places(checkpoint: Path) -> None:
    tag = taggers.load(f"transformers:{checkpoint}")
    text = "many " * 21 + "\u00e9 Zo\u00eb Bl\u0101ck " + "met " * 40 + "Bj\u00f6rk."  # 24 places, two of them taken
    assert [words for words, _ in found(text, tag(text))][-1] == "Bj\u00f6rk"
    assert {"Zo\u00eb", "Bl\u0101ck"} <= set(" ".join(words for words, _ in found(text, tag(text))).split())


def test_random_weights_agree_with_transformers_own_offsets(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint of random weights: the spans are those of the pipeline, sentence by sentence, counted in bytes."""
    import transformers

    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    config.num_hidden_layers, config.max_position_embeddings = 2, 64
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path)
    reader = transformers.AutoTokenizer.from_pretrained(checkpoint)
    reader.save_pretrained(tmp_path)
    engine = transformers.pipeline(
        "token-classification",
        model=transformers.AutoModelForTokenClassification.from_pretrained(tmp_path),
        tokenizer=reader, aggregation_strategy="simple",
    )  # fmt: skip
    text = "Zo\u00eb met \u4e2d\u6587 and Bj\u00f6rk, \U0001f600 S\u00e3o Paulo left in Bl\u0101ck."
    expected = [(entity["start"], entity["end"], entity["entity_group"]) for entity in engine(text)]
    assert expected, "this seed marks nothing; take another"
    spans = taggers.load(f"transformers:{tmp_path}")(text)
    data = text.encode()
    assert [(len(data[: s.start].decode()), len(data[: s.end].decode()), s.kind) for s in spans] == expected


def test_what_is_no_tagging_model_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    import transformers

    with pytest.raises(UserError, match="cannot open a token-classification model"):
        taggers.load(f"transformers:{tmp_path / 'none'}")
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no token-classification model \(it holds BertModel\)"):
        taggers.load(f"transformers:{tmp_path}")
