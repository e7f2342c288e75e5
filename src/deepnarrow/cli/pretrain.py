"""`deepnarrow pretrain`: a shape and a corpus in, a run out."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from deepnarrow.cli import training
from deepnarrow.errors import UserError
from deepnarrow.train import recipes

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def known() -> str:
    """The recipes by name, each with what it is."""
    lines = [
        textwrap.wrap(f"{name:<19} {recipes.summary(recipe)}", 96, subsequent_indent=" " * 20)
        for name, recipe in recipes.PRETRAINING.items()
    ]
    return "\n".join(f"  {line}" for group in lines for line in group)


HELP = f"""Pretrain a shape on a corpus.

A flag changes its recipe's value. Ctrl-C finishes the step, saves, and prints the command that goes on; to the bit.
--plan prints what the run would cost, and trains nothing; it needs neither a corpus nor --out.

\b
Recipes:
{known()}

\b
Example:
  deepnarrow pretrain --shape tiny-el8-dl2 --corpus wiki --out runs/tiny-el8-dl2 --steps 500
  deepnarrow pretrain --shape small-el16-dl2 --corpus c4 --out runs/a --recipe t5_efficient --accumulate 8
  deepnarrow pretrain --init-from google/t5-efficient-tiny --corpus law --out runs/law --learning-rate 0.005
  deepnarrow pretrain --shape small-el16-dl2 --recipe t5_efficient --plan --flops 150T --devices 8
"""


@app.command(help=HELP)
def pretrain(
    context: typer.Context,
    corpus: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Made by `deepnarrow corpus build`; several are mixed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run; the same command again goes on with it."),
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="S", help="Such as small-el16-dl2; see `shapes --help`.")] = None,
    recipe: training.Recipe = "miniature",
    steps: training.Steps = None,
    batch: training.BatchSize = None,
    accumulate: training.Accumulate = None,
    input_length: training.InputLength = None,
    target_length: training.TargetLength = None,
    objective: Annotated[str | None, typer.Option(metavar="NAME", help="What is hidden from the model; span.")] = None,
    density: Annotated[float | None, typer.Option(metavar="X", help="Share of tokens hidden; T5: 0.15.")] = None,
    mean_span: Annotated[float | None, typer.Option(metavar="X", help="Their mean run in tokens; T5: 3.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Another option of the objective, e.g. style=drop.")
    ] = None,
    mixture: Annotated[
        str | None, typer.Option(metavar="RULE", help="Of corpora: size, equal, temperature=2, or rates 0.7,0.3.")
    ] = None,
    batching: training.Batching = None,
    optimizer: training.Optimizer = None,
    learning_rate: training.LearningRate = None,
    schedule: training.Schedule = None,
    warmup: training.Warmup = None,
    steps_before: Annotated[
        int | None, typer.Option(metavar="N", help="Done before these weights; inverse_sqrt counts on from there.")
    ] = None,
    ramp_down: training.RampDown = None,
    momentum: Annotated[float | None, typer.Option(metavar="X", help="Of muon's matrices; 0.95.")] = None,
    weight_decay: training.WeightDecay = None,
    clip: training.Clip = None,
    dropout: training.Dropout = None,
    dropout_shared: training.DropoutShared = None,
    z_loss: training.ZLoss = None,
    normaliser: training.Normaliser = None,
    dtype: training.Dtype = None,
    recompute: training.Recompute = None,
    seed: training.Seed = None,
    init_from: Annotated[str | None, typer.Option(metavar="MODEL", help="Weights to start from, not new ones.")] = None,
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
    plan: Annotated[bool, typer.Option("--plan", help="Print tokens, FLOPs, memory, disk and hours; no run.")] = False,
    flops: Annotated[
        str | None, typer.Option(metavar="N", help="For --plan: FLOP/s one device reaches, such as 150T.")
    ] = None,
    devices: Annotated[int, typer.Option(metavar="N", help="For --plan: how many devices share the work.")] = 1,
    as_json: training.Json = False,
) -> None:
    """A shape and a corpus in, a run out. What `--help` says is above."""
    written = training.given(
        steps=steps, batch=batch, accumulate=accumulate, input_length=input_length, target_length=target_length,
        objective=objective, density=density, mean_span=mean_span,
        objective_options=training.objective_options(option), mixture=mixture, batching=batching,
        optimizer=optimizer, learning_rate=learning_rate, schedule=schedule, warmup=warmup, ramp_down=ramp_down,
        steps_before=steps_before, momentum=momentum, weight_decay=weight_decay, clip=clip,
        dropout=dropout, dropout_shared=dropout_shared, z_loss=z_loss, normaliser=normaliser, dtype=dtype,
        recompute=recompute, seed=seed, save_every=save_every, keep=keep, eval_every=eval_every,
        eval_examples=eval_examples, log_every=log_every,
    )  # fmt: skip
    make = recipes.get(recipe, recipes.PRETRAINING)
    if shape is not None:
        make(shape, **written)  # a mistake in a flag is told before anything is opened
    from deepnarrow.text.corpus import open_corpus

    if plan:
        told(make, shape, init_from, written, corpus or [], out, flops=flops, devices=devices, as_json=as_json)
        return
    if flops is not None or devices != 1:
        raise UserError(f"{'--flops' if flops is not None else '--devices'} says something to --plan alone; add --plan")
    if shape is None and init_from is None:
        raise UserError(
            "name a shape (--shape tiny-dl2; deepnarrow shapes --help), or weights to start from (--init-from)"
        )
    if not corpus:
        raise UserError("name a corpus (--corpus DIR, made by deepnarrow corpus build); only --plan does without")
    if out is None:
        raise UserError("name a folder for the run (--out RUN); only --plan does without")
    execution = training.execution(parallel, tensor_parallel, loaders, async_save)
    corpora = [open_corpus(folder) for folder in corpus]

    from deepnarrow.model.folder import open_model
    from deepnarrow.shapes import parse
    from deepnarrow.train.pretrain import fit_vocab
    from deepnarrow.train.pretrain import pretrain as run

    fitted = False
    initial = open_model(init_from) if init_from is not None else None
    if initial is not None and shape is None:
        config = make(str(initial.shape), **written)
    else:
        assert shape is not None
        config = make(shape, **written)
        if initial is None and not names_vocab(shape):
            asked, config = config, fit_vocab(config, corpora[0])
            fitted = config.shape != asked.shape
    config = training.going_on(config, out, written)

    def began(step: int) -> None:
        if fitted:
            rows = parse(config.shape).vocab
            training.say(f"the vocabulary gets {rows:,} rows, for the {corpora[0].vocab:,} ids of the corpus")
        training.announce(config, step)

    result = training.supervise(
        lambda: run(
            config,
            corpora,
            out,
            device=device,
            initial=initial,
            peak_flops=training.peak_flops(config, device, out),
            execution=execution,
            tensorboard=tensorboard,
            began=began,
        ),
        context,
    )
    folder = str(out)
    then = shlex.join(["deepnarrow", "finetune", folder, "--task", "TASK", "--out", f"{folder.rstrip('/')}-TASK"])
    training.report([result], config, as_json=as_json, then=f"{then}   (tasks: deepnarrow evaluate --list)")


def told(
    make: recipes.Recipe,
    shape: str | None,
    init_from: str | None,
    written: dict[str, Any],
    folders: list[Path],
    out: Path | None,
    *,
    flops: str | None,
    devices: int,
    as_json: bool,
) -> None:
    """Print the plan. Without a shape it is that of the weights to start from, or the recipe's own."""
    from deepnarrow.cli import planning
    from deepnarrow.text.corpus import open_corpus

    if shape is None and init_from is not None:
        from deepnarrow.model.folder import open_model

        shape = str(open_model(init_from).shape)
    config = make(**written) if shape is None else make(shape, **written)
    corpora = [open_corpus(folder) for folder in folders]
    if corpora and init_from is None and not names_vocab(shape or config.shape):
        from deepnarrow.train.pretrain import fit_vocab

        config = fit_vocab(config, corpora[0])
    planning.tell(config, corpora, out, flops=flops, devices=devices, as_json=as_json)


def names_vocab(shape: str) -> bool:
    """Whether a shape string says how many rows its vocabulary has.

    >>> names_vocab("tiny-dl2-v4096"), names_vocab("v1_1-small")
    (True, False)
    """
    return bool(re.search(r"-v=?\d", shape.lower()))
