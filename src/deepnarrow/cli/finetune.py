"""`deepnarrow finetune`: a model and a task in, a run out."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.cli import heads, training
from deepnarrow.errors import UserError, nearest

if TYPE_CHECKING:
    from deepnarrow.model.folder import Opened
    from deepnarrow.tasks import Pair, Task
    from deepnarrow.train.config import Config
    from deepnarrow.train.finetune import Lesson
    from deepnarrow.train.loop import Evaluate

AVERAGE = "average"
MOST_SEEDS = 100

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def finetune(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a Hugging Face folder, or a hub name.")],
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="`evaluate --list` shows the tasks; several with commas make a mixture; or a file of your own.",
        ),
    ],
    out: training.Out,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A file to train on, or a folder with train.jsonl; of a mixture: DIR/TASK/."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to train on: train, train+validation.")
    ] = None,
    validation: Annotated[
        str, typer.Option(metavar="SPLIT|FILE", help="What to choose the best checkpoint on.")
    ] = "validation",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Train on the first so many examples only.")] = None,
    input_template: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Your own file: what goes in, such as "question: {question}".')
    ] = None,
    target_template: Annotated[
        str | None, typer.Option(metavar="TEXT", help='Your own file: what should come out, such as "{answer}".')
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Train the encoder alone, under a head: classify, tag or embed."),
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(
            metavar="RULE", help="Shares of several tasks: size, size,limit=N, equal, temperature=T, 0.7,0.3."
        ),
    ] = None,
    recipe: training.Recipe = "finetune_miniature",
    adapt: Annotated[
        str | None, typer.Option(metavar="KIND", help="What learns: full, or over a frozen model lora or prompt.")
    ] = None,
    lora_rank: Annotated[int | None, typer.Option(metavar="N", help="Columns of what is learned.  [lora: 8]")] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(metavar="X", help="What is learned counts alpha / rank times.  [lora: 16]")
    ] = None,
    lora_dropout: Annotated[float | None, typer.Option(metavar="X", help="Of what LoRA reads.")] = None,
    lora_targets: Annotated[
        str | None, typer.Option(metavar="LIST", help="Some of q,k,v,o,wi,wi_0,wi_1,wo, or all.  [lora: q,v]")
    ] = None,
    prompt_length: Annotated[int | None, typer.Option(metavar="N", help="Vectors of a prompt.  [prompt: 100]")] = None,
    prompt_init: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="A prompt's start: vocabulary, labels, random, or text=WORDS."),
    ] = None,
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
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="Several runs, OUT/seed-0 and so on: 3, or a list 0,1,2.")
    ] = None,
    device: training.Device = "auto",
    parallel: training.Parallel = "ddp",
    tensor_parallel: training.TensorParallel = 1,
    loaders: training.Loaders = 1,
    async_save: training.AsyncSave = False,
    save_every: training.SaveEvery = None,
    keep: training.Keep = None,
    eval_every: training.EvalEvery = None,
    eval_examples: training.EvalExamples = None,
    best: Annotated[
        str | None, typer.Option(metavar="METRIC", help="What makes a checkpoint the best: a score, or held_out_loss.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after so many evaluations without a better one.")
    ] = None,
    log_every: training.LogEvery = None,
    tensorboard: training.TensorBoard = True,
    as_json: training.Json = False,
) -> None:
    """Fine-tune a model on a task, on a mixture of tasks, or on a file of your own.

    Recipes: finetune_miniature (500 steps of 16), finetune_t5 (2**18 steps of 128, T5's own), ssm_nq and ssm_nqo (the
    closed-book protocols), all Adafactor at a constant 0.001, packed; lora and prompt_tuning, as their papers, whose
    optimizer any other recipe takes with --adapt. With evaluations on the way, the best checkpoint
    is the best by the task's first metric on the validation split (of a mixture, by the average); with none, it is the
    last. A --head drops the decoder; its short recipe learns at 0.01. Ctrl-C saves and prints the command that goes on.

    \b
    Example:
      deepnarrow finetune runs/tiny-dl2 --task stdlib_topic --out runs/topic --steps 300 --eval-every 100 --patience 3
      deepnarrow finetune google/t5-efficient-mini --task squad --data squad --out runs/squad --recipe finetune_t5
      deepnarrow finetune runs/tiny-dl2 --task sst2,rte,boolq --mixture size,limit=5000 --data tasks --out runs/three
      deepnarrow finetune runs/tiny-dl2 --task sst2 --data sst2 --adapt lora --lora-targets all --out runs/sst2-lora
      deepnarrow finetune runs/tiny-dl2 --task sst2 --data sst2 --head classify --out runs/sst2-encoder
      deepnarrow finetune runs/tiny-dl2 --task tickets.csv --input-template "ticket: {body}" --target-template "{team}"
        --seeds 3 --out runs/tickets
    """
    written = training.given(
        steps=steps, batch=batch, accumulate=accumulate, input_length=input_length, target_length=target_length,
        mixture=mixture, batching=batching, optimizer=optimizer, learning_rate=learning_rate, schedule=schedule,
        warmup=warmup, ramp_down=ramp_down, weight_decay=weight_decay, clip=clip, dropout=dropout,
        dropout_shared=dropout_shared, z_loss=z_loss, normaliser=normaliser, dtype=dtype, recompute=recompute,
        seed=seed, save_every=save_every, keep=keep, eval_every=eval_every, eval_examples=eval_examples,
        patience=patience, log_every=log_every, adapt=adapt, lora_rank=lora_rank, lora_alpha=lora_alpha,
        lora_dropout=lora_dropout, lora_targets=lora_targets, prompt_length=prompt_length, prompt_init=prompt_init,
    )  # fmt: skip
    execution = training.execution(parallel, tensor_parallel, loaders, async_save)
    folders = seeds_of(seeds, seed, out)
    from deepnarrow.train import recipes

    make = recipes.get(recipe, recipes.FINETUNING)
    chosen = tasks_of(task, input_template, target_template)
    lengths: dict[str, Any] = {
        "input_length": max(one.input_tokens for one in chosen),
        "target_length": max(one.target_tokens for one in chosen),
    }
    if head is not None:
        heads.check(head, chosen, best)
        from deepnarrow.train.heads import usual

        written = usual(make.__name__, written)
    config = make("tiny", **{**lengths, **written})  # a mistake in a flag is told before anything is opened
    if config.adapt != "full":
        from deepnarrow.train import adapt as adapting

        adapting.check(config, execution)
    if best is not None and head is None:
        check_metric(best, chosen)
    split = split or recipes.TRAINED_ON.get(make.__name__, "train")
    judged = config.eval_every is not None
    lessons = [
        lesson(one, split, validation, folder_of(data, one, chosen), limit, config.eval_examples, needed=judged)
        for one in chosen
    ]

    from deepnarrow.model.folder import open_model
    from deepnarrow.model.heads import encoder_shape
    from deepnarrow.train.finetune import finetune as run

    opened = open_model(model)
    shape = opened.shape if head is None else encoder_shape(opened.shape)
    train = run if head is None else partial(heads.run, head)
    score = judge if head is None else heads.judge
    results = []
    for own_seed, folder in folders.items():
        seeded = written if own_seed is None else {**written, "seed": own_seed}
        config = training.going_on(make(str(shape), **{**lengths, **seeded}), folder, seeded)
        if own_seed is not None and len(folders) > 1:
            training.say(f"seed {own_seed}, in {folder}")
        results.append(
            training.supervise(
                partial(
                    train,
                    config,
                    opened,
                    lessons,
                    folder,
                    evaluate=score(opened, lessons, config) if judged else None,
                    best=best,
                    device=device,
                    peak_flops=training.peak_flops(config, device, folder),
                    execution=execution,
                    tensorboard=tensorboard,
                    began=partial(training.announce, config),
                ),
                context,
            )
        )
    then = next_command(out, chosen, data, list(folders.values()))
    training.report(results, config, as_json=as_json, then=then)


def tasks_of(names: str, inputs: str | None, target: str | None) -> "list[Task]":
    """The tasks named, one or several with commas; one that names a file is made from it."""
    from deepnarrow import tasks
    from deepnarrow.tasks import own

    if inputs is None and target is None:
        return [tasks.get(name.strip()) for name in ([names] if own.is_path(names) else names.split(","))]
    if not own.is_path(names):
        raise UserError(f"templates are for a file of your own, --task FILE; {names} is none")
    return [own.own_task(Path(names), inputs=inputs or "{input}", target=target or "{target}")]


def seeds_of(asked: str | None, seed: int | None, out: Path) -> dict[int | None, Path]:
    """The folder of each seed's run: `out` itself for one.

    >>> seeds_of("2", None, Path("runs"))
    {0: PosixPath('runs/seed-0'), 1: PosixPath('runs/seed-1')}
    """
    if asked is None:
        return {seed: out}
    if seed is not None:
        raise UserError("give --seed for one run, or --seeds for several, not both")
    words = [word.strip() for word in asked.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"cannot read --seeds {asked!r}; write how many, such as 3, or a list, such as 0,1,2")
    numbers = list(range(int(words[0]))) if len(words) == 1 else [int(word) for word in words]
    if not 0 < len(set(numbers)) == len(numbers) <= MOST_SEEDS:
        raise UserError(f"--seeds {asked} makes no list of 1 to {MOST_SEEDS} different seeds")
    if (out / "run.json").exists():
        raise UserError(f"{out} is a single run; give --seeds another --out, which will hold a folder for each seed")
    return {number: out / f"seed-{number}" for number in numbers}


def folder_of(data: Path | None, task: "Task", chosen: "list[Task]") -> Path | None:
    """Where a task's rows are: in a mixture each task has a folder, or a file, of its name."""
    if data is None or len(chosen) == 1:
        return data
    found = [path for path in (data / task.name, *sorted(data.glob(f"{task.name}.*"))) if path.exists()]
    if not found:
        raise UserError(f"{data} has no folder {task.name}; a mixture reads DIR/{task.name}/train.jsonl and so on")
    return found[0]


def lesson(
    task: "Task", split: str, validation: str, data: Path | None, limit: int | None, held: int, *, needed: bool
) -> "Lesson":
    from deepnarrow import tasks
    from deepnarrow.train.finetune import Lesson

    loaded = tasks.load(task, split, data=data, limit=limit)
    return Lesson(task, loaded.pairs, validation_pairs(task, validation, data, held, needed=needed), loaded.origin)


def next_command(out: Path, chosen: "list[Task]", data: Path | None, folders: list[Path]) -> str:
    """What to type next: the run knows its tasks, so only the place of the data has to be said again."""
    where = ["--data", str(data)] if data is not None else []
    named = ["--task", ",".join(task.name for task in chosen)] if chosen[0].made_from is None else []
    if len(folders) > 1:
        return shlex.join(["deepnarrow", "compare", str(out), *named, *where])
    return shlex.join(["deepnarrow", "evaluate", str(folders[0]), *named, *where])


def check_metric(best: str, chosen: "list[Task]") -> None:
    """Before anything is trained: does an evaluation give this metric?"""
    known = ["held_out_loss", *([AVERAGE] if len(chosen) > 1 else [])]
    known += [score_name(task.name, metric.name, alone=len(chosen) == 1) for task in chosen for metric in task.metrics]
    if best not in known:
        raise UserError(f"no evaluation of this run gives {best!r}; {nearest(best, known)}")


def score_name(task: str, metric: str, *, alone: bool) -> str:
    """
    >>> score_name("sst2", "accuracy", alone=False)
    'sst2/accuracy'
    """
    return metric if alone else f"{task}/{metric}"


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


def judge(opened: "Opened", lessons: "list[Lesson]", config: "Config") -> "Evaluate":
    """What a training run calls to score the model as it is by then: the metric that chooses by itself first.

    That is the task's main metric; of a mixture, the average of the tasks' main metrics.
    """
    from deepnarrow.measure.evaluate import evaluate

    def scores(model: Any) -> dict[str, float]:
        alone = len(lessons) == 1
        found: dict[str, float] = {}
        mains = []
        for one in lessons:
            pairs = one.held_out[: config.eval_examples]
            scored = evaluate(
                opened._replace(model=model), one.task, pairs, seed=config.seed, samples=1, progress=False
            ).scores
            mains.append(scored[one.task.main_metric].value)
            names = [one.task.main_metric, *scored]  # the main one first
            found |= {score_name(one.task.name, name, alone=alone): scored[name].value for name in names}
        return found if alone else {AVERAGE: sum(mains) / len(mains)} | found

    return scores
