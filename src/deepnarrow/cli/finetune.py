"""`deepnarrow finetune`: a model and a task in, a run out."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.cli import training
from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.model.folder import Opened
    from deepnarrow.tasks import Pair, Task
    from deepnarrow.train.loop import Evaluate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def finetune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a Hugging Face folder, or a hub name.")],
    task: Annotated[str, typer.Option(metavar="NAME", help="`deepnarrow evaluate --list` shows them.")],
    out: training.Out,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A file to train on, or a folder that holds train.jsonl."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="What to train on.")] = "train",
    validation: Annotated[
        str, typer.Option(metavar="SPLIT|FILE", help="What to choose the best checkpoint on.")
    ] = "validation",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Train on the first so many examples only.")] = None,
    recipe: training.Recipe = "finetune_miniature",
    steps: training.Steps = None,
    batch: training.BatchSize = None,
    accumulate: training.Accumulate = None,
    input_length: training.InputLength = None,
    target_length: training.TargetLength = None,
    batching: training.Batching = None,
    optimizer: training.Optimizer = None,
    learning_rate: training.LearningRate = None,
    schedule: training.Schedule = None,
    warmup: training.Warmup = None,
    ramp_down: training.RampDown = None,
    weight_decay: training.WeightDecay = None,
    clip: training.Clip = None,
    dropout: training.Dropout = None,
    dropout_shared: training.DropoutShared = None,
    z_loss: training.ZLoss = None,
    normaliser: training.Normaliser = None,
    dtype: training.Dtype = None,
    recompute: training.Recompute = None,
    seed: training.Seed = None,
    device: training.Device = "auto",
    parallel: training.Parallel = "ddp",
    tensor_parallel: training.TensorParallel = 1,
    loaders: training.Loaders = 1,
    async_save: training.AsyncSave = False,
    save_every: training.SaveEvery = None,
    keep: training.Keep = None,
    eval_every: training.EvalEvery = None,
    eval_examples: training.EvalExamples = None,
    log_every: training.LogEvery = None,
    tensorboard: training.TensorBoard = True,
    as_json: training.Json = False,
) -> None:
    """Fine-tune a model on a task.

    Recipes: finetune_miniature (500 steps of 16), finetune_t5 (2**18 steps of 128, T5's own); both Adafactor at a
    constant 0.001 with dropout 0.1. With evaluations on the way, the best checkpoint is the best by the task's first
    metric on the validation split; with none, it is the last. Ctrl-C saves and prints the command that goes on.

    \b
    Example:
      deepnarrow finetune runs/tiny-dl2 --task stdlib_topic --out runs/topic --steps 300 --eval-every 100
      deepnarrow finetune google/t5-efficient-mini --task squad --data squad --out runs/squad --recipe finetune_t5
    """
    written = training.given(
        steps=steps, batch=batch, accumulate=accumulate, input_length=input_length, target_length=target_length,
        batching=batching, optimizer=optimizer, learning_rate=learning_rate, schedule=schedule, warmup=warmup,
        ramp_down=ramp_down, weight_decay=weight_decay, clip=clip, dropout=dropout, dropout_shared=dropout_shared,
        z_loss=z_loss, normaliser=normaliser, dtype=dtype, recompute=recompute, seed=seed, save_every=save_every,
        keep=keep, eval_every=eval_every, eval_examples=eval_examples, log_every=log_every,
    )  # fmt: skip
    execution = training.execution(parallel, tensor_parallel, loaders, async_save)
    from deepnarrow import tasks
    from deepnarrow.train import recipes

    chosen = tasks.get(task)
    make = recipes.get(recipe, recipes.FINETUNING)
    lengths: dict[str, Any] = {"input_length": chosen.input_tokens, "target_length": chosen.target_tokens}
    config = make("tiny", **{**lengths, **written})  # a mistake in a flag is told before anything is opened
    pairs = tasks.load_pairs(chosen, split, data=data, limit=limit)
    held_out = validation_pairs(chosen, validation, data, config.eval_examples, needed=config.eval_every is not None)

    from deepnarrow.model.folder import open_model
    from deepnarrow.train.finetune import finetune as run

    opened = open_model(model)
    config = training.going_on(config.override({"shape": str(opened.shape)}), out, written)
    judged = config.eval_every is not None
    result = training.supervise(
        lambda: run(
            config,
            opened,
            chosen,
            pairs,
            out,
            held_out_pairs=held_out,
            evaluate=judge(opened, chosen, held_out, config.seed) if judged else None,
            device=device,
            peak_flops=training.peak_flops(config, device, out),
            execution=execution,
            tensorboard=tensorboard,
            began=lambda step: training.announce(config, step),
        ),
        context,
    )
    where = ["--data", str(data)] if data is not None else []
    then = shlex.join(["deepnarrow", "evaluate", str(out), "--task", task, *where])
    training.report(result, config, as_json=as_json, then=then)


def validation_pairs(task: "Task", validation: str, data: Path | None, limit: int, *, needed: bool) -> "list[Pair]":
    """Pairs to judge checkpoints on: a file, or a split of where the training pairs come from.

    Where no evaluation was asked for, a missing split is no mistake: then nothing is judged.
    """
    from deepnarrow import tasks

    if Path(validation).is_file():
        return tasks.load_pairs(task, "validation", data=Path(validation), limit=limit)
    if data is not None and not data.is_dir():
        if needed:
            raise UserError(
                f"evaluations need other examples than those of {data}: give --validation FILE, or as --data a folder "
                f"that holds train.jsonl and {validation}.jsonl"
            )
        return []
    try:
        return tasks.load_pairs(task, validation, data=data, limit=limit)
    except UserError:
        if needed or validation != "validation":
            raise
        return []


def judge(opened: "Opened", task: "Task", pairs: "list[Pair]", seed: int) -> "Evaluate":
    """What a training run calls to score the model as it is by then: the task's metrics, the main one first."""
    from deepnarrow.measure.evaluate import evaluate

    def scores(model: Any) -> dict[str, float]:
        found = evaluate(opened._replace(model=model), task, pairs, seed=seed, samples=1, progress=False).scores
        return {task.main_metric: found[task.main_metric].value} | {name: one.value for name, one in found.items()}

    return scores
