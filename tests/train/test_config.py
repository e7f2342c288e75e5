import json

import pytest

from deepnarrow.errors import UserError
from deepnarrow.train.config import Config, differences
from deepnarrow.train.recipes import FINETUNING, PRETRAINING, get, miniature, nanot5, t5_efficient

SMALL = {"shape": "tiny-dl2", "steps": 100, "batch": 8, "input_length": 128}


def test_json_round_trip_through_text() -> None:
    config = Config(**SMALL, clip=1.0, dropout=0.1)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_shape_is_kept_in_its_canonical_spelling() -> None:
    assert Config(**{**SMALL, "shape": "small-dl2-el16"}).shape == "small-el16-dl2"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must be from 1 to"),
        ({"steps": 10**12}, "steps must be from 1 to"),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"steps": True}, "steps must be a whole number"),
        ({"batch": 10**9}, "batch must be from 1 to 1,048,576"),
        ({"learning_rate": -1.0}, "learning_rate must be from 0 to"),
        ({"learning_rate": 0}, "learning_rate must be greater than 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"learning_rate": 3.0, "schedule": "constant"}, "would destroy the weights"),
        ({"schedule": "cosine", "warmup": 100, "learning_rate": 0.01}, "leaves nothing of 100 steps"),
        ({"dropout": 1.0}, "dropout must be less than 1"),
        ({"density": 0.0}, "density must be greater than 0"),
        ({"mean_span": 0.5}, "mean_span must be from 1"),
        ({"clip": 0}, "clip must be greater than 0"),
        ({"accumulate": 3}, "8 examples cannot be split into 3 equal parts"),
        ({"optimizer": "adamfactor"}, "did you mean adafactor"),
        ({"schedule": "inverse"}, "did you mean inverse_sqrt"),
        ({"objective": "spans"}, "did you mean span"),
        ({"dtype": "float16"}, "did you mean bfloat16 or float32"),
        ({"shape": "smal"}, "did you mean small"),
        ({"seed": -1}, "seed must be from 0"),
        ({"keep": 0}, "keep must be from 1"),
        ({"shape": 5}, "shape must be a text"),
        ({"recompute": 1}, "recompute must be true or false, not 1"),
        ({"batching": "pakced"}, "did you mean packed"),
        ({"objective": "bert", "mean_span": 3.0}, "'bert' has no option 'mean_span'"),
        ({"objective_options": "style"}, "must be a JSON object"),
        ({"objective_options": '{"style": "drop"}'}, "'span' has no option 'style'"),
        ({"objective": "iid", "objective_options": '{"style": 3}'}, "'style' of objective 'iid' must be a text, not 3"),
        ({"objective": "ul2", "objective_options": '{"weights": 3}'}, "must be a list, not 3"),
    ],
)
def test_mistakes_are_explained(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**{**SMALL, **values})


def test_unknown_and_missing_keys_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown key 'warm_up'.*did you mean warmup"):
        Config.from_json({**SMALL, "warm_up": 3})
    with pytest.raises(UserError, match="needs shape"):
        Config.from_json({key: value for key, value in SMALL.items() if key != "shape"})


def test_differences_leave_out_the_book_keeping() -> None:
    config = Config(**SMALL)
    assert differences(config, config.override({"save_every": 7, "keep": 9, "log_every": 2})) == []
    assert differences(config, config.override({"seed": 7, "steps": 9})) == ["steps", "seed"]


@pytest.mark.parametrize("name", [*PRETRAINING, *FINETUNING])
def test_every_recipe_builds_and_round_trips(name: str) -> None:
    config = get(name, {**PRETRAINING, **FINETUNING})("tiny")
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", [*PRETRAINING, *FINETUNING])
@pytest.mark.parametrize("steps", [1, 7, 20_000])
def test_every_recipe_can_be_made_shorter_or_longer(name: str, steps: int) -> None:
    assert get(name, {**PRETRAINING, **FINETUNING})("tiny", steps=steps).steps == steps


def test_the_published_recipe() -> None:
    config = t5_efficient("base-dl2")
    assert (config.steps, config.batch, config.input_length, config.dropout) == (2**19, 128, 512, 0.0)
    assert (config.optimizer, config.schedule, config.warmup) == ("adafactor", "inverse_sqrt", 10_000)


def test_nanot5_warms_up_for_an_eighth_of_a_shorter_run() -> None:
    assert (nanot5("base").warmup, nanot5("base", steps=13_333).warmup) == (10_000, 1666)


def test_changing_the_schedule_or_optimizer_alone_takes_a_rate_that_fits() -> None:
    assert t5_efficient("tiny", schedule="constant").learning_rate == 0.01
    assert miniature("tiny", optimizer="adamw").learning_rate == 0.001
    assert miniature("tiny", optimizer="adamw", learning_rate=0.5).learning_rate == 0.5
    back = miniature("tiny", schedule="inverse_sqrt")
    assert (back.learning_rate, back.warmup) == (1.0, 10_000)


def test_unknown_recipe() -> None:
    with pytest.raises(UserError, match="unknown recipe 'minature'; did you mean miniature"):
        get("minature", PRETRAINING)


def test_the_objective_gets_its_options() -> None:
    config = Config(**SMALL, objective="iid", density=0.3, objective_options='{"style": "drop"}')
    assert config.options() == {"density": 0.3, "style": "drop"}
    assert Config.from_json(config.to_json()) == config
