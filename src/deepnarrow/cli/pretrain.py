"""`deepnarrow pretrain`: a shape and a corpus in, a run out."""

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from deepnarrow.cli import training
from deepnarrow.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def pretrain(
    context: typer.Context,
    corpus: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Made by `deepnarrow corpus build`; several are mixed.")
    ],
    out: training.Out,
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
    mixture: Annotated[
        str | None, typer.Option(metavar="RULE", help="Of corpora: size, equal, temperature=2, or rates 0.7,0.3.")
    ] = None,
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
    as_json: training.Json = False,
) -> None:
    """Pretrain a shape on a corpus.

    Recipes: miniature (minutes on two cores), t5_efficient (as the published checkpoints), nanot5 (a day on one GPU).
    A flag changes its recipe's value. Ctrl-C finishes the step, saves, and prints the command that goes on; to the bit.

    \b
    Example:
      deepnarrow pretrain --shape tiny-el8-dl2 --corpus wiki --out runs/tiny-el8-dl2 --steps 500
      deepnarrow pretrain --shape small-el16-dl2 --corpus c4 --out runs/a --recipe t5_efficient --accumulate 8
      torchrun --nproc-per-node 8 -m deepnarrow pretrain --shape xl --corpus c4 --out runs/xl --parallel fsdp
      deepnarrow pretrain --init-from google/t5-efficient-tiny --corpus law --out runs/law --learning-rate 0.005
    """
    written = training.given(
        steps=steps, batch=batch, accumulate=accumulate, input_length=input_length, target_length=target_length,
        objective=objective, density=density, mean_span=mean_span, mixture=mixture, batching=batching,
        optimizer=optimizer, learning_rate=learning_rate, schedule=schedule, warmup=warmup, ramp_down=ramp_down,
        weight_decay=weight_decay, clip=clip, dropout=dropout, dropout_shared=dropout_shared, z_loss=z_loss,
        normaliser=normaliser, dtype=dtype, recompute=recompute, seed=seed, save_every=save_every, keep=keep,
        eval_every=eval_every, eval_examples=eval_examples, log_every=log_every,
    )  # fmt: skip
    execution = training.execution(parallel, tensor_parallel, loaders, async_save)
    if shape is None and init_from is None:
        raise UserError(
            "name a shape (--shape tiny-dl2; deepnarrow shapes --help), or weights to start from (--init-from)"
        )
    from deepnarrow.text.corpus import open_corpus
    from deepnarrow.train import recipes

    make = recipes.get(recipe, recipes.PRETRAINING)
    if shape is not None:
        make(shape, **written)  # a mistake in a flag is told before anything is opened
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
    training.report(result, config, as_json=as_json, then=f"{then}   (tasks: deepnarrow evaluate --list)")


def names_vocab(shape: str) -> bool:
    """Whether a shape string says how many rows its vocabulary has.

    >>> names_vocab("tiny-dl2-v4096"), names_vocab("v1_1-small")
    (True, False)
    """
    return bool(re.search(r"-v=?\d", shape.lower()))
