"""The catalogue: complete, equal to its sources, quick, and kind to a wrong name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.shapes import BASES, Shape, entries, find, parameters, parse, published, search, shape_of
from deepnarrow.shapes.catalog import DATA, KNOWN, Entry

IDS = [entry.id for entry in entries()]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_it_holds_every_seed_and_every_released_name(shared: Path) -> None:
    seeds = lines(shared / "catalog/seed_models.jsonl")
    released = lines(shared / "catalog/released_checkpoints.jsonl")
    assert (len(seeds), len(released), len(IDS)) == (100, 170, 174)
    assert {row["id"] for row in seeds} | {f"google/{row['name']}" for row in released} == set(IDS)
    for row in released:
        entry = find(row["name"])
        assert (entry.parameters, entry.on_hub) == (row["params_exact"], row["ported_to_hub"]), row["name"]


def test_it_says_what_the_cards_say(shared: Path) -> None:
    for row in lines(shared / "catalog/seed_models.jsonl"):
        entry = find(row["id"])
        assert list(entry.tags) == row["tags"]
        assert (entry.licence, entry.created) == (row["metadata"]["license"], row["created_at"])
        assert set(entry.datasets) == set(row["metadata"]["datasets"])
        assert [f"arxiv:{paper}" for paper in entry.arxiv] == [tag for tag in row["tags"] if tag.startswith("arxiv:")]
        if "shape" in row:
            assert entry.card is not None
            assert (*entry.card,) == tuple(row["card"][key] for key in ("params_millions", "fp32_mb", "half_mb"))
            assert (entry.steps, entry.objective) == (row["card"]["pretraining"]["steps"], "span corruption")
        for name, value in row["card"].get("natural_questions_test_exact_match", {}).items() if "card" in row else ():
            own = name.removeprefix("T5-") == "3b"
            held = entry.scores[0].value if own else entry.peers[entry.id.replace("3b", name.removeprefix("T5-"))]
            assert held == value


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_every_entry_is_consistent(entry: Entry) -> None:
    assert entry.id == f"google/{entry.name}"
    if entry.shape is None:
        assert entry.shape_note
        assert entry.reading
        assert entry.parameters is None
        assert entry.name.split("-")[-1] in ("sh", "skv", "shkv")
    else:
        shape = parse(entry.shape)
        assert str(shape) == entry.shape
        assert parameters(shape).total == entry.parameters
        assert entry in published(shape)
    assert shape_of(entry.id) == shape_of(entry.name) == parse(entry.shape or entry.reading or "")
    assert find(entry.id) is find(entry.name) is entry
    assert entry.size in BASES
    sourced = {name for names in entry.sources for name in names.split(", ")}
    for field in ("card", "stages", "licence", "created", "scores", "peers", "defects", "golden", "parameters"):
        assert bool(getattr(entry, field)) == (field in sourced), field
    assert {"name", "shape", "on_hub"} <= sourced
    assert json.loads(json.dumps(entry.record()))["id"] == entry.id
    assert hash(entry)


def test_the_closed_book_models_have_their_own_scores() -> None:
    scores = {name: find(name).scores for name in ("t5-3b-ssm", "t5-3b-ssm-nq", "t5-3b-ssm-nqo")}
    assert [score.value for score in scores["t5-3b-ssm-nq"]] == [33.2]
    assert [score.value for score in scores["t5-3b-ssm-nqo"]] == [31.7]
    assert not scores["t5-3b-ssm"]
    assert all(score.source == "model card" for each in scores.values() for score in each)
    nq, nqo = (find(name).stages[-1] for name in ("t5-3b-ssm-nq", "t5-3b-ssm-nqo"))
    assert (nq.steps, nqo.steps) == (10_000, 20_000)
    assert "all of the training split" in str(nq.note)
    assert "90 %" in str(nqo.note)


def test_what_is_wrong_at_the_source() -> None:
    def kinds(name: str) -> list[str]:
        return [defect.kind for defect in find(name).defects]

    assert kinds("large-nh8-nl16") == ["no checkpoint"]
    assert kinds("large-nh8-nl32") == kinds("xl-nl28") == ["incomplete checkpoint"]
    assert kinds("tiny-nl8") == ["card misprint"]
    assert "d_kv 32" in find("small").defects[0].text
    assert kinds("base-dl2") == kinds("small-kv32") == []
    unsettled = [entry for entry in entries() if "failed conversion" in [defect.kind for defect in entry.defects]]
    assert len(unsettled) == 10
    assert all(entry.shape is None and not entry.on_hub for entry in unsettled)


def test_golden_scores_of_the_converter() -> None:
    assert {entry.name.removeprefix("t5-efficient-"): entry.golden for entry in entries() if entry.golden} == {
        "base-dm1000": -67.525, "base-dm2000": -104.153, "base-sh": -67.856, "base-skv": -80.441,
        "large-skv": -59.432, "xl-skv": -66.055, "xl-sh": -76.855, "tiny-skv": -138.183, "small-shkv": -277.565,
    }  # fmt: skip


def test_search() -> None:
    assert len(search()) == 174
    assert len(search(family="t5-efficient")) == 170
    assert [entry.name for entry in search(family="closed-book")] == ["t5-3b-ssm", "t5-3b-ssm-nq", "t5-3b-ssm-nqo"]
    assert len(search(family="tiny")) == 26
    assert len(search(family="xxl")) == 2
    assert [entry.name for entry in search("natural_questions NQO")] == ["t5-3b-ssm-nqo"]
    assert [entry.name for entry in search("incomplete")] == ["t5-efficient-large-nh8-nl32", "t5-efficient-xl-nl28"]
    between = search(min_parameters=75_190_784, max_parameters=75_190_784)
    assert [entry.name for entry in between] == ["t5-efficient-small-el16-dl2"]
    assert len(search(on_hub=False)) == 11
    assert len(search(tag="deep-narrow")) == 96
    assert [entry.name for entry in search(objective="prefix")] == ["t5-base-lm-adapt"]
    assert search("no such thing") == []
    with pytest.raises(UserError, match="unknown family 'smal'; did you mean small"):
        search(family="smal")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small-el16-dl2", "small-el16-dl2"),
        ("google/t5-efficient-small-el16-dl2", "small-el16-dl2"),
        ("t5-efficient-tiny-ff12000", "tiny-ff12000"),
        ("Google/T5-Efficient-Base-DM2000", "base-dm2000"),
        ("google-t5/t5-small", "small"),
        ("google-t5/t5-base", "base"),
        ("google-t5/t5-large", "large"),
        ("google-t5/t5-3b", "xl"),
        ("google-t5/t5-11b", "xxl"),
        ("t5-small", "small"),
        ("google/t5-v1_1-xl", "v1_1-xl"),
        ("google/flan-t5-xxl", "v1_1-xxl"),
        ("google/t5-base-lm-adapt", "v1_1-base"),
        ("google/t5-small-lm-adapt", "v1_1-small"),
        ("google/t5-3b-ssm-nqo", "xl"),
        ("google/t5-11b-ssm-tqa", "xxl"),
        ("google/t5-large-ssm-nq", "large"),
        ("google/t5-xxl-ssm-wq", "v1_1-xxl"),
        ("google/mt5-base", "v1_1-base-v250112"),
        ("google/t5-efficient-base-sh", "base-sh"),
        ("google/t5-efficient-large-skv", "large-skv"),
    ],
)
def test_names_stand_for_shapes(name: str, shape: str) -> None:
    assert str(shape_of(name)) == shape


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_name_is_a_shape(name: str) -> None:
    assert isinstance(shape_of(name), Shape)


@pytest.mark.parametrize("config", ["t5-small", "t5-base", "t5-large", "flan-t5-base", "flan-t5-large", "t5-v1_1-base",
                                    "t5-v1_1-xxl", "mt5-small", "byt5-small", "byt5-large"])  # fmt: skip
def test_names_agree_with_published_configs(shared: Path, config: str) -> None:
    row = json.loads((shared / f"data/hf_configs/{config}.json").read_text("utf-8"))
    shape = shape_of(config)
    assert (shape.d_model, shape.d_ff, shape.d_kv, shape.num_heads) == tuple(
        row[key] for key in ("d_model", "d_ff", "d_kv", "num_heads")
    )
    assert shape.vocab == row["vocab_size"]
    assert shape.encoder_layers == row["num_layers"]
    assert shape.decoder_layers == row.get("num_decoder_layers", row["num_layers"])
    assert shape.gated == row.get("feed_forward_proj", "relu").startswith("gated")
    assert shape.tied == row.get("tie_word_embeddings", True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("google/t5-efficient-base-dl3", "was released; did you mean t5-efficient-base-dl.*shape alone write base-dl3"),
        ("google/t5-efficient-basf-dl2", "did you mean t5-efficient-base-dl2"),
        ("google/flan-t5-bse", "did you mean flan-t5-base"),
        ("t5-efficient-", "was released"),
        ("t5-medium", "no shape is known for 't5-medium'"),
        ("someone/else", "no shape is known for 'someone/else'; write a shape such as small-el16-dl2"),
        ("smll-el2", "unknown base 'smll'.*did you mean small"),
        ("small-ex2", "cannot read 'ex2'"),
    ],
)
def test_wrong_names_teach(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        shape_of(name)
    assert "\n" not in str(caught.value)


def test_a_wrong_entry_teaches() -> None:
    with pytest.raises(UserError, match="did you mean t5-efficient-small-el16-dl2"):
        find("small-el16dl2")
    with pytest.raises(UserError, match="'bert' is not in the catalogue"):
        find("bert")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(IDS), st.data())
def test_one_wrong_letter_finds_the_right_name(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(len("google/t5-efficient-"), len(name) - 1)) if "efficient" in name else len(name) - 1
    wrong = name[:place] + "j" + name[place + 1 :]
    with pytest.raises(UserError, match="did you mean"):
        shape_of(wrong)


def test_only_names_of_checkpoints_read_the_file() -> None:
    script = (
        "import sys; from deepnarrow.shapes import shape_of, catalog\n"
        "[shape_of(name) for name in sys.argv[1:]]\n"
        "print(catalog.entries.cache_info().currsize, sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    names = ["small-el16-dl2", "google/flan-t5-base", "t5-3b"]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["0", "[]\n"]


def test_the_data_file_names_every_field_in_its_readme() -> None:
    readme = (DATA.parent / "README.md").read_text("utf-8")
    for field in lines(DATA)[0]:
        assert f"`{field}`" in readme, field
