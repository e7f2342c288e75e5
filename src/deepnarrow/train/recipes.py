"""Recipes: functions from a shape to a `Config`. What they leave open is a keyword away.

The first line of each docstring is what `deepnarrow pretrain --help` says of it; the rest gives sources. A value marked
"unverified" was recalled, reported second-hand or taken over from a sister model, not read in a primary source.
"""

from collections.abc import Callable
from typing import Any

from deepnarrow.errors import UserError, nearest
from deepnarrow.shapes import parse
from deepnarrow.train.config import PAIRS, Config

Recipe = Callable[..., Config]

T5_ADAFACTOR: dict[str, Any] = {  # Raffel et al. 2020 (arXiv:1910.10683), section 3.1.2, and mesh-TF's own constants
    "input_length": 512,
    "optimizer": "adafactor",
    "learning_rate": 1.0,
    "schedule": "inverse_sqrt",
    "warmup": 10_000,
    "normaliser": "positions",
    "dtype": "bfloat16",
    "save_every": 5000,
    "eval_every": 5000,
    "log_every": 100,
}


T5_FINETUNING: dict[str, Any] = {
    "input_length": 512,
    "objective": PAIRS,
    "batching": "packed",
    "dropout": 0.1,
    "optimizer": "adafactor",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup": 0,
    "dtype": "bfloat16",
    "save_every": 5000,
    "eval_every": 5000,
    "log_every": 100,
}


# How small things over a frozen model learn: their sizes say nothing about the steps they want. `lora` and
# `prompt_tuning` have the sources; any fine-tuning recipe takes these values with `adapt`.
ADAPTING: dict[str, dict[str, Any]] = {
    "lora": {
        "adapt": "lora", "optimizer": "adamw", "learning_rate": 5e-4, "schedule": "constant", "warmup": 0,
        "weight_decay": 0.1, "lora_rank": 8, "lora_alpha": 16.0,
    },
    "prompt": {
        "adapt": "prompt", "optimizer": "adafactor", "learning_rate": 0.3, "schedule": "constant", "warmup": 0,
        "weight_decay": 1e-5, "parameter_scale": False,
    },
}  # fmt: skip


def t5_efficient(shape: str = "base", **changes: Any) -> Config:
    """As the published T5-Efficient checkpoints: 2**19 steps of 128 x 512 tokens of C4, dropout 0.

    Tay et al. 2022 (arXiv:2109.10686). The objective and 524,288 steps are on the model cards; batch and dropout 0 were
    reported second-hand from the operative config of t5-efficient-base. Unverified: the schedule, here T5's (flat at
    0.01 for 10,000 steps, then 1 / sqrt(step)) without mesh-TF's final ramp. Without padding both normalisers agree;
    "positions" is the one mesh-TF uses.
    """
    return _changed(changes, shape=shape, steps=524_288, batch=128, **T5_ADAFACTOR)


def t5_baseline(shape: str = "base", **changes: Any) -> Config:
    """The baseline of the T5 paper: 2**19 steps of 128 x 512 tokens, i.i.d. denoising, dropout 0.1.

    Raffel et al. 2020 (arXiv:1910.10683), sections 3.1.2 to 3.1.4: 15 % of tokens hidden one by one, runs of them under
    one sentinel.
    """
    return _changed(changes, shape=shape, steps=524_288, batch=128, objective="iid", dropout=0.1, **T5_ADAFACTOR)


def t5_1_0(shape: str = "base", **changes: Any) -> Config:
    """The C4 part of the first T5 checkpoints: 1 M steps of 2,048 x 512 tokens, dropout 0.1.

    Raffel et al. 2020 (arXiv:1910.10683), section 3.7. The released models also saw the supervised tasks in a mixture;
    this is their unsupervised share alone. Unverified: that the schedule had no final ramp.
    """
    return _changed(changes, shape=shape, steps=1_000_000, batch=2048, dropout=0.1, **T5_ADAFACTOR)


def t5_v1_1(shape: str = "v1_1-base", **changes: Any) -> Config:
    """T5 1.1: 1 M steps of 2,048 x 512 tokens of C4, dropout 0.

    T5 repository, released_checkpoints.md: C4 only, no dropout, GEGLU, untied. Steps and 1,048,576 tokens a batch are
    second-hand. Unverified: dropout (one released config is said to have 0.1), and no final ramp.
    """
    return _changed(changes, shape=shape, steps=1_000_000, batch=2048, **T5_ADAFACTOR)


def lm_adapt(shape: str = "v1_1-base", **changes: Any) -> Config:
    """LM adaptation of T5 1.1: 100,000 steps of prefix LM, from step 1,000,000 on (--init-from a T5 1.1).

    Lester et al. 2021 (arXiv:2104.08691), section 3.1, and the T5 task c4_v220_prefix_lm: pieces of single documents.
    The schedule goes on where T5 1.1 stopped, so the rate begins at 0.001. T5's rows were packed to 512 inputs; `batch`
    counts examples here, and 4,096 of them come to about a million tokens at C4's length of documents. Unverified: the
    batch, the lengths (the author says T5's own; an old config says 1024 and 256), and no final ramp. Adafactor's
    second moments begin afresh: copies of T5 1.1 seldom hold its optimizer's.
    """
    values = {**T5_ADAFACTOR, "save_every": 2400, "eval_every": 2400}
    return _changed(
        changes, shape=shape, steps=100_000, steps_before=1_000_000, batch=4096, objective="prefix_lm",
        batching="packed", **values,
    )  # fmt: skip


def salient(shape: str = "v1_1-base", **changes: Any) -> Config:
    """Salient span masking for closed-book answers: 100,000 steps, from step 1,000,000 on (--init-from a T5).

    Roberts et al. 2020 (arXiv:2002.08910), section 2, and t5_closed_book_qa: one example for each name or date of a
    sentence, on a corpus of `deepnarrow corpus build --salient nem`. `batch` counts examples; 16,384 sentences are
    about half a million tokens. Unverified: learning rate and batch of this stage, which its repository does not give;
    they are taken over from pretraining as far as that goes.
    """
    return _changed(
        changes, shape=shape, steps=100_000, steps_before=1_000_000, batch=16_384, objective="salient",
        batching="packed", **T5_ADAFACTOR,
    )  # fmt: skip


def ul2(shape: str = "v1_1-base", **changes: Any) -> Config:
    """UL2's mixture of denoisers: 500,000 steps of 128 x 512 tokens, dropout 0.

    Tay et al. 2022 (arXiv:2205.05131), sections 3.1 and 4.1, as its smaller models; UL2-20B took batch 1,024 and 2 M
    steps (its model card). One of its denoisers needs 128 sentinels at 512 tokens, where T5's vocabulary has 100: train
    the tokenizer with `--sentinels 128`. Unverified: steps and batch of the smaller models, and dropout 0 for them.
    """
    return _changed(
        changes, shape=shape, steps=500_000, batch=128, objective="ul2", batching="packed", target_length=512,
        **T5_ADAFACTOR,
    )  # fmt: skip


def nanot5(shape: str = "v1_1-base", **changes: Any) -> Config:
    """nanoT5, a T5 1.1 in a day on one GPU: 65,536 steps of 128 x 512 tokens, AdamW scaled by parameter size.

    Nawrot 2023 (arXiv:2309.02373) and its repository's config: cosine to 1e-5, clip 1, no z-loss. Its warmup starts at
    half of the learning rate and takes 10,000 steps; runs of another length take an eighth, as its runs of 4 to 24
    hours did.
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


def miniature(shape: str = "tiny", **changes: Any) -> Config:
    """Minutes on two cores: short rows, few steps, and a rate that falls to nothing so that a short run ends well.

    Ours. The rate was looked for with 400 steps of 16 x 64 tokens of web text, 2,048 pieces; held-out loss in nats per
    token:

        d_model 128, 2 + 2 layers     Adafactor linear 0.01 4.703, 0.02 4.628, 0.05 4.552, 0.1 4.805
                                      Adafactor as T5 (flat 0.01, no end) 4.637, AdamWScale linear 0.05 4.633
        d_model 64, 12 + 12 layers    Adafactor linear 0.02 4.700, 0.05 4.688, 0.1 4.704
    """
    return _miniature(changes, shape=shape)


def miniature_lm_adapt(shape: str = "tiny", **changes: Any) -> Config:
    """`lm_adapt` in minutes on two cores: prefix LM, packed, a third of the rate that `miniature` takes.

    Ours. The lower rate is for weights that are trained already; it was not searched for.
    """
    return _miniature(
        changes, shape=shape, steps=500, objective="prefix_lm", batching="packed", learning_rate=1e-2,
    )  # fmt: skip


def miniature_salient(shape: str = "tiny", **changes: Any) -> Config:
    """`salient` in minutes on two cores: one name or date hidden in each sentence, packed.

    Ours. As `miniature_lm_adapt`; sentences are short, so a batch holds more of them.
    """
    return _miniature(
        changes, shape=shape, steps=500, batch=128, objective="salient", batching="packed", learning_rate=1e-2,
    )  # fmt: skip


def miniature_ul2(shape: str = "tiny", **changes: Any) -> Config:
    """`ul2` in minutes on two cores: its seven denoisers on rows of 128 tokens, packed.

    Ours. At this length T5's 100 sentinels are enough.
    """
    return _miniature(changes, shape=shape, objective="ul2", batching="packed")


def _miniature(changes: dict[str, Any], **recipe: Any) -> Config:
    """What the miniature recipes share; lengths of warmup and intervals follow the steps."""
    steps = int(changes.get("steps") or recipe.get("steps", 1000))
    usual: dict[str, Any] = {
        "batch": 32,
        "input_length": 128,
        "optimizer": "adafactor",
        "learning_rate": 3e-2,
        "schedule": "linear",
        "warmup": steps // 20,
        "save_every": max(1, steps // 5),
        "eval_every": max(1, steps // 5),
        "log_every": max(1, steps // 100),
    }
    return _changed(changes, **{**usual, **recipe, "steps": steps})


def finetune_t5(shape: str, **changes: Any) -> Config:
    """T5's fine-tuning: 2**18 steps of 128 examples at a constant 0.001, Adafactor, dropout 0.1, packed.

    Raffel et al. 2020 (arXiv:1910.10683), section 3.1.2. The checkpoint to keep is the best on the validation split; T5
    looked every 5,000 steps. T5's batch was 128 packed rows of 512 tokens, ours counts examples.
    """
    return _changed(changes, shape=shape, steps=262_144, batch=128, **T5_FINETUNING)


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


def ssm_nq(shape: str, **changes: Any) -> Config:
    """The `-ssm-nq` closed-book protocol: all of the training part, 10,000 steps, the last checkpoint.

    Roberts et al. 2020 (arXiv:2002.08910) and its repository: from a model after salient span masking, a constant
    0.001, 196,608 tokens a batch, packed, a checkpoint every 1,000 steps; the cards say 100 % of `train` and 10,000
    steps. `batch` counts examples here, and 8,192 questions with their answers come to about that many tokens.
    Unverified: dropout, 0.05 for gated (T5 1.1) shapes and 0.1 for others. WebQuestions had half the batch and twice
    the dropout (unverified): --batch 4096 --dropout 0.1 or 0.2.
    """
    values = {**T5_FINETUNING, "input_length": 64, "dropout": 0.05 if parse(shape).gated else 0.1}
    values |= {"save_every": 1000, "eval_every": None}
    return _changed(changes, shape=shape, steps=10_000, batch=8192, **values)


def ssm_nqo(shape: str, **changes: Any) -> Config:
    """The `-ssm-nqo` closed-book protocol: 90 % of the training part, 20,000 steps, chosen on the other 10 %.

    As `ssm_nq` otherwise; the model cards. The checkpoint is the best by exact match on what was held out, looked at
    every 1,000 steps.
    """
    return ssm_nq(shape, **{"steps": 20_000, "eval_every": 1000, **changes})


def lora(shape: str, **changes: Any) -> Config:
    """LoRA on query and value: 20,000 steps of 128 examples, AdamW at 0.0005, rank 8, the model frozen.

    Hu et al. 2021 (arXiv:2106.09685) and its repository's roberta_base_mnli.sh: warmup over 6 % of the steps, then
    linear to 0, alpha 16, weight decay 0.1. There MNLI had 30 epochs (92,000 steps); 20,000 are ours, as are T5's
    dropout 0.1 and packed batches.
    """
    steps = int(changes.get("steps") or 20_000)
    values = {**T5_FINETUNING, **ADAPTING["lora"], "save_every": 1000, "eval_every": 1000}
    return _changed(
        changes, shape=shape, steps=steps, batch=128, schedule="linear", warmup=round(0.06 * steps),
        **{name: value for name, value in values.items() if name not in ("schedule", "warmup")},
    )  # fmt: skip


def prompt_tuning(shape: str, **changes: Any) -> Config:
    """A soft prompt of 100 vectors: 30,000 steps of 32 examples, Adafactor at a constant 0.3, the model frozen.

    Lester et al. 2021 (arXiv:2104.08691), section 3, and its repository's configs: no parameter scaling, weight decay
    1e-5, dropout 0.1, not packed, chosen on the validation split every 1,000 steps; sampled vocabulary is the paper's
    start for tasks without class labels, `--prompt-init labels` for those with them. Made for LM-adapted models
    (`lm_adapt`), and the task's prefix was left out of the inputs there; ours stays.
    """
    values = {**T5_FINETUNING, **ADAPTING["prompt"], "save_every": 1000, "eval_every": 1000, "batching": "bucketed"}
    return _changed(changes, shape=shape, steps=30_000, batch=32, **values)


PRETRAINING: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (
        miniature,
        miniature_lm_adapt,
        miniature_salient,
        miniature_ul2,
        t5_efficient,
        t5_baseline,
        t5_1_0,
        t5_v1_1,
        lm_adapt,
        salient,
        ul2,
        nanot5,
    )
}
FINETUNING: dict[str, Recipe] = {
    recipe.__name__: recipe for recipe in (finetune_miniature, finetune_t5, ssm_nq, ssm_nqo, lora, prompt_tuning)
}
TRAINED_ON = {"ssm_nq": "train+validation"}  # what a protocol trains on, where that is not "train"


def get(name: str, recipes: dict[str, Recipe]) -> Recipe:
    """A recipe by name; dashes are as good as underscores.

    >>> get("t5-efficient", PRETRAINING)("tiny").steps
    524288
    """
    found = recipes.get(name.replace("-", "_"))
    if found is None:
        raise UserError(f"unknown recipe {name!r}; {nearest(name, recipes)}")
    return found


def summary(recipe: Recipe) -> str:
    """What a recipe is, in one line.

    >>> summary(miniature_lm_adapt)
    '`lm_adapt` in minutes on two cores: prefix LM, packed, a third of the rate that `miniature` takes.'
    """
    return (recipe.__doc__ or "").strip().splitlines()[0]


# A learning rate means something only together with its optimizer and schedule, so changing one of these alone would
# ruin the other. Adafactor and AdamWScale multiply it by the size of the parameter, AdamW and Muon do not.
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
    ("muon", "inverse_sqrt"): 0.1,
    ("muon", "constant"): 1e-3,
    ("muon", "cosine"): 2e-3,
    ("muon", "linear"): 2e-3,
}


def usual_rate(optimizer: str, schedule: str, *, finetuning: bool) -> float | None:
    """A learning rate to start from where somebody chose an optimizer or a schedule but no rate.

    Fine-tuning takes a tenth, as T5's own 0.001 is a tenth of its 0.01.
    """
    rate = USUAL_RATES.get((optimizer, schedule))
    return rate if rate is None or not finetuning else rate / 10


def _changed(changes: dict[str, Any], **recipe: Any) -> Config:
    """The recipe with the caller's changes; where only optimizer or schedule is changed, rate and warmup follow.

    So does all of the optimizer where a recipe is asked to `adapt` in another way than its own.
    """
    if (adapt := changes.get("adapt")) in ADAPTING and adapt != recipe.get("adapt"):
        recipe |= ADAPTING[str(adapt)]
    optimizer, schedule = (changes.get(name) or recipe[name] for name in ("optimizer", "schedule"))
    if (optimizer, schedule) != (recipe["optimizer"], recipe["schedule"]):
        finetuning = {**recipe, **changes}.get("objective") == PAIRS
        rate = usual_rate(optimizer, schedule, finetuning=finetuning)
        keeps = rate is None or recipe.get("adapt", "full") != "full"  # the table is of whole models
        recipe["learning_rate"] = recipe["learning_rate"] if keeps else rate
    if schedule != recipe["schedule"] and "inverse_sqrt" in (schedule, recipe["schedule"]):
        steps = changes.get("steps") or recipe["steps"]
        recipe["warmup"] = 10_000 if schedule == "inverse_sqrt" else steps // 20
    return Config.from_json({**recipe, **changes})
