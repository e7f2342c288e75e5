"""Recipes: what they say of themselves, that each fits its source, and that the command line knows them all."""

import json
import re
import shlex
from pathlib import Path

import pytest

from deepnarrow.shapes import parse
from deepnarrow.train import recipes
from deepnarrow.train.config import Config
from deepnarrow.train.recipes import FINETUNING, PRETRAINING, get, summary
from deepnarrow.train.schedule import rate

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text("utf-8")


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_stands_alone(name: str) -> None:
    """Without a word: a whole config of the shape it was published for."""
    config = PRETRAINING[name]()
    parse(config.shape)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert get(name.replace("_", "-"), PRETRAINING)() == config
    assert PRETRAINING[name]("tiny", steps=50, seed=3) == PRETRAINING[name]("tiny", steps=50).override({"seed": 3})


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_recipe_has_a_line_and_a_source(name: str) -> None:
    recipe = PRETRAINING[name]
    assert 20 < len(summary(recipe)) < 115
    assert "arXiv:" in recipe.__doc__ or "released_checkpoints.md" in recipe.__doc__ or "Ours." in recipe.__doc__
    assert f"## `{name}`" in PAGE


def test_the_page_knows_no_other_recipe() -> None:
    assert set(re.findall(r"^## `(\w+)`", PAGE, re.M)) == {*PRETRAINING, *FINETUNING}


def test_what_is_unverified_is_on_the_page() -> None:
    for name, recipe in PRETRAINING.items():
        section = PAGE.split(f"## `{name}`")[1].split("\n## ")[0]
        assert ("nverified" in recipe.__doc__) == ("Unverified" in section), name


@pytest.mark.parametrize(
    ("name", "tokens", "steps"),
    [  # tokens of a batch's inputs, where rows are full
        ("t5_efficient", 65_536, 524_288),
        ("t5_baseline", 65_536, 524_288),
        ("t5_1_0", 1_048_576, 1_000_000),
        ("t5_v1_1", 1_048_576, 1_000_000),
        ("nanot5", 65_536, 65_536),
    ],
)
def test_sizes_of_the_sources(name: str, tokens: int, steps: int) -> None:
    config = PRETRAINING[name]()
    assert (config.batch * config.input_length, config.steps) == (tokens, steps)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("t5_efficient", {"objective": "span", "dropout": 0.0, "optimizer": "adafactor", "z_loss": 1e-4}),
        ("t5_baseline", {"objective": "iid", "dropout": 0.1}),
        ("t5_1_0", {"objective": "span", "dropout": 0.1, "dropout_shared": True}),
        ("t5_v1_1", {"objective": "span", "dropout": 0.0, "shape": "v1_1-base"}),
        ("lm_adapt", {"objective": "prefix_lm", "batching": "packed", "steps": 100_000, "steps_before": 1_000_000}),
        ("salient", {"objective": "salient", "batching": "packed", "steps": 100_000, "steps_before": 1_000_000}),
        ("ul2", {"objective": "ul2", "target_length": 512, "dropout": 0.0}),
        ("nanot5", {"optimizer": "adamw_scale", "clip": 1.0, "z_loss": 0.0, "learning_rate_end": 1e-5}),
        ("miniature_lm_adapt", {"objective": "prefix_lm", "batching": "packed"}),
        ("miniature_salient", {"objective": "salient", "batching": "packed"}),
        ("miniature_ul2", {"objective": "ul2", "batching": "packed"}),
    ],
)
def test_what_makes_each_recipe(name: str, expected: dict) -> None:
    config = PRETRAINING[name]()
    assert {key: getattr(config, key) for key in expected} == expected


def test_rates_of_the_sources() -> None:
    """T5's 0.01 for 10,000 steps; adaptation starts where a million steps have brought it; nanoT5 at half of 0.02."""
    assert rate(recipes.t5_v1_1(), 0) == rate(recipes.t5_v1_1(), 10_000) == 0.01
    assert rate(recipes.t5_v1_1(), 999_999) == pytest.approx(0.001, rel=1e-5)
    for recipe in (recipes.lm_adapt, recipes.salient):
        assert rate(recipe(), 0) == 0.001
        assert rate(recipe(), 99_999) == pytest.approx(1_100_000**-0.5, rel=1e-5)
    assert rate(recipes.nanot5(), 0) == pytest.approx(0.01)


@pytest.mark.parametrize("name", [name for name in PRETRAINING if name.startswith("miniature")])
def test_a_miniature_run_follows_its_length(name: str) -> None:
    config = PRETRAINING[name](steps=200)
    assert (config.steps, config.warmup, config.save_every, config.log_every) == (200, 10, 40, 2)
    assert rate(config, 200) == 0.0


def test_help_lists_every_recipe() -> None:
    from deepnarrow.cli.pretrain import HELP

    found = re.findall(r"^  (\w+) {2,}\S", HELP.split("Recipes:")[1].split("Example:")[0], re.M)
    assert found == list(PRETRAINING)
    for recipe in PRETRAINING.values():
        assert summary(recipe).replace(" ", "") in HELP.replace(" ", "").replace("\n", "")


def test_muon_takes_a_rate_of_its_own() -> None:
    assert recipes.miniature(optimizer="muon").learning_rate == recipes.usual_rate("muon", "linear", finetuning=False)


PRETRAIN = [line for line in PAGE.splitlines() if line.startswith("deepnarrow pretrain ")]


@pytest.mark.parametrize("command", PRETRAIN, ids=lambda command: command.split("--recipe ")[1].split()[0])
def test_the_pages_commands_are_plans_that_hold(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every flag is one, every value fits; corpora and weights to start from are left out, for they are not here."""
    from deepnarrow.cli import main

    words = shlex.split(command)[1:]
    for flag in ("--corpus", "--init-from", "--out"):
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    with pytest.raises(SystemExit) as stopped:
        main([*words, *([] if "--plan" in words else ["--plan"]), "--flops", "1T", "--json"])
    out, error = capsys.readouterr()
    assert stopped.value.code in (0, None), error
    assert json.loads(out)["hours"] > 0


def test_every_pretraining_recipe_has_a_command() -> None:
    assert {command.split("--recipe ")[1].split()[0] for command in PRETRAIN} == set(PRETRAINING)
