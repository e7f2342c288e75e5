"""A card says what was measured, says what was not, and is one the hub and transformers understand."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from deepnarrow.errors import UserError
from deepnarrow.files import write_json
from deepnarrow.hub.cards import MADE, card, write_card, write_cards
from deepnarrow.hub.front_matter import front_matter
from deepnarrow.measure.ledger import Record, append
from deepnarrow.shapes import counts, parse
from deepnarrow.train.config import Config
from deepnarrow.train.run_folder import describe

SHAPE = "tiny-el8-dl2"
MACHINE = {"processor": "Invented CPU", "cores": 2, "memory_gib": 16.0, "system": "Linux x86_64"}
COMMON = {"shape": SHAPE, "commit": "0123456789ab", "versions": {"torch": "2.13.0"}, "machine": MACHINE,
          "date": "2026-11-20T08:00:00Z"}  # fmt: skip
CONDITIONS = {"input_length": 128, "target_length": 32, "batch": 1, "dtype": "float32", "device": "cpu", "threads": 2}
SCORE = Record(
    kind="score", model="runs/squad", metric="exact_match", value=41.256, low=38.9, high=43.61, n=1000, unit="%",
    task="squad", task_version=2, split="validation", seed=0,
    extra={"baseline": 1.25, "baseline_name": "first words", "search": "Greedy()",
           "data": "hub:rajpurkar/squad:plain@abc"},
    **COMMON,
)  # fmt: skip
TIMED = {"kind": "timing", "model": SHAPE, **COMMON}
TIMINGS = [
    Record(metric="encode", value=12.34, low=12.0, high=13.0, n=5, unit="ms",
           extra={"conditions": CONDITIONS, "gflops": 98.7, "share_of_gemm": 0.456}, **TIMED),
    Record(metric="per_token", value=1.5, low=1.4, high=1.6, n=5, unit="ms",
           extra={"conditions": CONDITIONS, "gflops": 5.0, "share_of_gemm": 0.02, "share_of_bandwidth": 0.789},
           **TIMED),
    Record(metric="train_step", value=None, unit="ms", extra={"conditions": CONDITIONS, "outcome": "OOM"}, **TIMED),
    Record(metric="peak_memory", value=77.7, unit="MB", extra={"conditions": CONDITIONS}, **TIMED),
]  # fmt: skip


def config(**more: object) -> Config:
    return Config.from_json({"shape": SHAPE, "steps": 500, "batch": 16, "input_length": 128, **more})


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A pretraining run, a run fine-tuned from it, and a ledger: the two `run.json` are as training writes them."""
    first = {"corpus": "corpus", "sources": ["hub:allenai/c4:en", "notes.txt"], "tokens": 123456, "initial": None}
    write_json(tmp_path / "runs/pretrain/run.json", describe(config(seed=7), "pretrain", first))
    start = str(tmp_path / "runs/pretrain/checkpoints/step-00000500")
    second = {"model": start, "task": "squad", "task_version": 2, "pairs": 5000, "fingerprints": {"task": "squad v2"}}
    tuned = config(objective="pairs", schedule="constant", learning_rate=0.001)
    write_json(tmp_path / "runs/squad/run.json", describe(tuned, "finetune", second))
    trained = Record(kind="training", model="runs/pretrain", metric="held_out_loss", value=3.14159, unit="nats/token",
                     seed=7, **COMMON)  # fmt: skip
    append(tmp_path / "ledger.jsonl", [SCORE, trained, *TIMINGS, replace(SCORE, model="runs/other", value=99.99)])
    return tmp_path


@pytest.fixture
def text(study: Path) -> str:
    return write_card(study / "runs/squad").read_text("utf-8")


def rows(text: str, section: str) -> list[list[str]]:
    part = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]


def test_the_downstream_table_is_the_ledger(text: str) -> None:
    names, _, score = rows(text, "Downstream performance")
    assert names == ["task", "metric", "score", "95 % interval", "items", "split", "no learning", "seed", "asked by"]
    assert score == ["squad v2", "exact match", "**41.26**", "38.90 to 43.61", "1,000", "validation",
                     "1.25 (first words)", "0", "Greedy()"]  # fmt: skip
    assert "99.99" not in text, "another run's score"


def test_complexity_is_counted_and_measured(text: str) -> None:
    found = {row[0]: row[1:] for row in rows(text, "Computational complexity")}
    shape = parse(SHAPE)
    flops = counts.generate_flops(shape, input_length=128, target_length=32)
    assert found["one whole answer"][0] == f"{flops / 1e9:.2f} GFLOP"
    assert found["weights in float32"] == [f"{counts.parameters(shape).total * 4 / 1e6:.1f} MB"]
    assert found["encode"] == ["12.3", "12.0 to 13.0", "98.7", "46 %", ""]
    assert found["each further token"][-1] == "79 %"
    assert found["training step"][0] == "OOM"
    assert found["peak memory while answering"] == ["77.7 MB"]
    assert found["peak memory while training"] == ["not measured"]
    assert "Invented CPU, 2 cores, 16.0 GiB, Linux x86_64" in text
    assert "timed with random weights" in text


def test_shape_and_training_are_told_also_of_the_run_before(text: str) -> None:
    shape = {row[0]: row[1] for row in rows(text, "Shape")}
    assert shape["parameters"] == f"{counts.parameters(parse(SHAPE)).total:,}"
    assert shape["encoder layers"] == "8"
    first, second = text.split("\n## Training\n")[1].split("### Before that")
    now, before = (rows(f"\n## Training\n{part}", "Training") for part in (first, second))
    assert ["pairs", "5,000"] in now
    assert ["`learning_rate`", "0.001"] in now
    assert ["tokens", "123,456"] in before
    assert ["`learning_rate`", "1.0"] in before


def test_a_pretraining_run_shows_what_fine_tuning_made_of_it(study: Path) -> None:
    text = write_card(study / "runs/pretrain").read_text("utf-8")
    assert "After fine-tuning from here" in text
    assert "**41.26**" in text
    assert "held out loss | 3.142 nats/token" in text
    assert "99.99" not in text
    assert yaml.safe_load(text.split("---")[1])["datasets"] == ["allenai/c4"]


def test_what_nobody_measured_is_called_so(study: Path) -> None:
    text = card(study / "runs/squad", [])
    assert "Not measured: the ledger has no score of this run." in text
    assert "Speed and memory: not measured." in text
    assert "measured on | not measured" in text
    assert "model-index" not in text


def test_the_hub_reads_the_head(text: str) -> None:
    found = ModelCard(text).data
    assert found.license is None, "only the owner of the weights can choose one"
    assert set(found.tags) == {"t5", "deep-narrow", "text2text-generation"}
    assert found.datasets == ["rajpurkar/squad"]
    (result,) = found.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type, result.metric_value) == (
        "squad", "validation", "exact_match", 41.26,
    )  # fmt: skip
    assert "38.90 to 43.61" in result.metric_name


def test_license_and_name_are_the_owners(study: Path) -> None:
    text = card(study / "runs/squad", [], name="our-model", license_name="apache-2.0")
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert "# our-model\n" in text


def test_a_hub_model_is_the_base_model(study: Path) -> None:
    about = describe(config(), "finetune", {"model": "google/t5-efficient-tiny@0123456789ab", "task": "squad"})
    write_json(study / "runs/hub/run.json", about)
    head = yaml.safe_load(card(study / "runs/hub", []).split("---")[1])
    assert head["base_model"] == "google/t5-efficient-tiny"


def test_an_unlearned_task_is_a_limitation(study: Path) -> None:
    weak = replace(SCORE, low=0.9, value=1.3, high=1.9)
    text = card(study / "runs/squad", [weak], ledger=study / "ledger.jsonl")
    assert "Not shown to be better than an answer without a model: squad exact match." in text


def test_a_card_tells_no_paths_of_ones_own_machine(text: str, study: Path) -> None:
    assert str(study) not in text
    assert ".../pretrain/checkpoints/step-00000500" in text


def test_checkpoints_of_a_run_are_the_run(study: Path) -> None:
    elsewhere = replace(SCORE, model=str(study / "runs/squad/checkpoints/step-00000500"))
    assert "**41.26**" in card(study / "runs/squad", [elsewhere])
    assert "**41.26**" not in card(
        study / "runs/squad", [replace(SCORE, model="runs/squad-2")], ledger=study / "l.jsonl"
    )


def test_a_card_someone_wrote_is_not_overwritten(study: Path) -> None:
    path = study / "runs/squad/README.md"
    path.write_text("# My own words\n")
    with pytest.raises(UserError, match="written by someone else; give another file with --out"):
        write_card(study / "runs/squad")
    assert path.read_text() == "# My own words\n"
    other = write_card(study / "runs/squad", out=study / "CARD.md")
    assert MADE in other.read_text("utf-8")
    assert write_card(study / "runs/squad", out=other) == other, "its own it does"


def test_every_run_of_a_study_gets_a_card(study: Path) -> None:
    written = write_cards(study)
    assert [path.relative_to(study).as_posix() for path in written] == ["cards/pretrain.md", "cards/squad.md"]
    assert all("**41.26**" in path.read_text("utf-8") for path in written)


def test_a_folder_that_is_no_run_teaches(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        write_card(tmp_path)


def test_tables_hold_whatever_is_in_them(study: Path) -> None:
    odd = replace(SCORE, task="a|b\nc")
    text = card(study / "runs/squad", [odd], ledger=study / "ledger.jsonl")
    assert "| a\\|b c v2 |" in text
    assert yaml.safe_load(text.split("\n---\n")[0])["model-index"][0]["results"][0]["dataset"]["name"] == "a|b\nc"


@pytest.mark.parametrize("value", ["a: b", "- x", "#no", "yes", "1.0", 'say "hi"', "Gr\u00fc\u00dfe", "a\nb", ""])
def test_front_matter_keeps_every_string(value: str) -> None:
    text = front_matter({"name": value, "list": [value, {"deep": [{"deeper": value}], "n": 1}]})
    found = yaml.safe_load(text.strip("-\n"))
    assert found == {"name": value, "list": [value, {"deep": [{"deeper": value}], "n": 1}]}


def test_the_snippet_runs(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card's own Python, on a folder this package wrote."""
    pytest.importorskip("transformers")
    from deepnarrow.model.folder import save_model
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5
    from deepnarrow.text.train_tokenizer import train

    words = ["the quick brown fox jumps over the lazy dog and writes your text again"] * 50
    tokenizer = train(words, vocab=130, sentinels=100)
    model = T5(parse("tiny-nl1-dm64-ff128-v256"))
    initialise(model, 0)
    save_model(model, tokenizer, tmp_path / "model")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    exec(re.sub(r'"path/to/[^"]+"', repr(str(tmp_path / "model")), code), {})
    assert capsys.readouterr().out.endswith("\n")
