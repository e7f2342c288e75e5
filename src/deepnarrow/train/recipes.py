"""Recipes: functions from a shape to a `Config`. What they leave open is a keyword away.

t5_efficient          how the published T5-Efficient checkpoints were pretrained
nanot5                a T5 in a day on one GPU, better per step than T5's own recipe
miniature             minutes on two cores, to see a shape learn
finetune_t5           how T5 was fine-tuned
finetune_miniature    the same, as long as two cores have patience for
"""

from collections.abc import Callable
from typing import Any

from deepnarrow.errors import UserError, nearest
from deepnarrow.train.config import PAIRS, Config

Recipe = Callable[..., Config]


def t5_efficient(shape: str, **changes: Any) -> Config:
    """Tay et al. 2022 (arXiv:2109.10686): C4, 2**19 steps of 128 x 512 tokens, Adafactor, dropout 0.

    The schedule is T5's (Raffel et al. 2020, arXiv:1910.10683, section 3.1.2): flat at 0.01 for 10,000 steps, then
    1 / sqrt(step). Without padding both normalisers agree; "positions" is the one mesh-TF uses.
    """
    return _changed(
        changes,
        shape=shape,
        steps=524_288,
        batch=128,
        input_length=512,
        optimizer="adafactor",
        learning_rate=1.0,
        schedule="inverse_sqrt",
        warmup=10_000,
        normaliser="positions",
        dtype="bfloat16",
        save_every=5000,
        eval_every=5000,
        log_every=100,
    )


def nanot5(shape: str, **changes: Any) -> Config:
    """Nawrot 2023 (arXiv:2309.02373): 65,536 steps of 128 x 512 tokens, AdamW scaled by parameter size, cosine to 1e-5.

    Its warmup starts at half of the learning rate and takes 10,000 steps; runs of another length take an eighth, as its
    runs of 4 to 24 hours did. There is no z-loss.
    """
    steps = int(changes.get("steps") or 65_536)
    return _changed(
        changes,
        shape=shape,
        steps=steps,
        batch=128,
        input_length=512,
        optimizer="adamw_scale",
        learning_rate=2e-2,
        schedule="cosine",
        warmup=10_000 if steps == 65_536 else steps // 8,
        warmup_start=0.5,
        learning_rate_end=1e-5,
        clip=1.0,
        z_loss=0.0,
        dtype="bfloat16",
        save_every=2000,
        eval_every=2000,
        log_every=100,
    )


def miniature(shape: str, **changes: Any) -> Config:
    """Minutes on two cores: short rows, few steps, and a rate that falls to nothing so that a short run ends well.

    The rate was looked for with 400 steps of 16 x 64 tokens of web text, 2,048 pieces; held-out loss in nats per token:

        d_model 128, 2 + 2 layers     Adafactor linear 0.01 4.703, 0.02 4.628, 0.05 4.552, 0.1 4.805
                                      Adafactor as T5 (flat 0.01, no end) 4.637, AdamWScale linear 0.05 4.633
        d_model 64, 12 + 12 layers    Adafactor linear 0.02 4.700, 0.05 4.688, 0.1 4.704
    """
    steps = int(changes.get("steps") or 1000)
    return _changed(
        changes,
        shape=shape,
        steps=steps,
        batch=32,
        input_length=128,
        optimizer="adafactor",
        learning_rate=3e-2,
        schedule="linear",
        warmup=steps // 20,
        save_every=max(1, steps // 5),
        eval_every=max(1, steps // 5),
        log_every=max(1, steps // 100),
    )


def finetune_t5(shape: str, **changes: Any) -> Config:
    """Raffel et al. 2020, section 3.1.2: 2**18 steps of 128 examples at a constant 0.001, Adafactor, dropout 0.1.

    The checkpoint to keep is the best on the validation split; T5 looked every 5,000 steps.
    """
    return _changed(
        changes,
        shape=shape,
        steps=262_144,
        batch=128,
        input_length=512,
        objective=PAIRS,
        dropout=0.1,
        optimizer="adafactor",
        learning_rate=1e-3,
        schedule="constant",
        warmup=0,
        dtype="bfloat16",
        save_every=5000,
        eval_every=5000,
        log_every=100,
    )


def finetune_miniature(shape: str, **changes: Any) -> Config:
    """T5's fine-tuning, shorter: 500 steps of 16 examples."""
    steps = int(changes.get("steps") or 500)
    short: dict[str, Any] = {
        "steps": steps,
        "batch": 16,
        "dtype": "float32",
        "save_every": max(1, steps // 2),
        "eval_every": None,
        "log_every": max(1, steps // 50),
    }
    return finetune_t5(shape, **{**short, **changes})


PRETRAINING: dict[str, Recipe] = {"miniature": miniature, "t5_efficient": t5_efficient, "nanot5": nanot5}
FINETUNING: dict[str, Recipe] = {"finetune_miniature": finetune_miniature, "finetune_t5": finetune_t5}


def get(name: str, recipes: dict[str, Recipe]) -> Recipe:
    """A recipe by name; dashes are as good as underscores.

    >>> get("t5-efficient", PRETRAINING)("tiny").steps
    524288
    """
    found = recipes.get(name.replace("-", "_"))
    if found is None:
        raise UserError(f"unknown recipe {name!r}; {nearest(name, recipes)}")
    return found


# A learning rate means something only together with its optimizer and schedule, so changing one of these alone would
# ruin the other. Adafactor and AdamWScale multiply it by the size of the parameter, AdamW does not.
USUAL_RATES = {
    ("adafactor", "inverse_sqrt"): 1.0,
    ("adafactor", "constant"): 1e-2,
    ("adafactor", "cosine"): 3e-2,
    ("adafactor", "linear"): 3e-2,
    ("adamw_scale", "inverse_sqrt"): 2.0,
    ("adamw_scale", "constant"): 1e-2,
    ("adamw_scale", "cosine"): 2e-2,
    ("adamw_scale", "linear"): 2e-2,
    ("adamw", "inverse_sqrt"): 0.05,
    ("adamw", "constant"): 5e-4,
    ("adamw", "cosine"): 1e-3,
    ("adamw", "linear"): 1e-3,
}


def usual_rate(optimizer: str, schedule: str, *, finetuning: bool) -> float | None:
    """A learning rate to start from where somebody chose an optimizer or a schedule but no rate.

    Fine-tuning takes a tenth, as T5's own 0.001 is a tenth of its 0.01.
    """
    rate = USUAL_RATES.get((optimizer, schedule))
    return rate if rate is None or not finetuning else rate / 10


def _changed(changes: dict[str, Any], **recipe: Any) -> Config:
    """The recipe with the caller's changes; where only optimizer or schedule is changed, rate and warmup follow."""
    optimizer, schedule = (changes.get(name) or recipe[name] for name in ("optimizer", "schedule"))
    if (optimizer, schedule) != (recipe["optimizer"], recipe["schedule"]):
        finetuning = {**recipe, **changes}.get("objective") == PAIRS
        rate = usual_rate(optimizer, schedule, finetuning=finetuning)
        recipe["learning_rate"] = recipe["learning_rate"] if rate is None else rate
    if schedule != recipe["schedule"] and "inverse_sqrt" in (schedule, recipe["schedule"]):
        steps = changes.get("steps") or recipe["steps"]
        recipe["warmup"] = 10_000 if schedule == "inverse_sqrt" else steps // 20
    return Config.from_json({**recipe, **changes})
