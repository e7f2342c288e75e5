"""What `pretrain` and `finetune` have in common: the flags of a training config, and what is said around a run."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.train.config import Config
    from deepnarrow.train.loop import Result
    from deepnarrow.train.parallel import Execution

PEAK_SECONDS = 0.8  # spent on measuring what this machine's matrix product reaches

Out = Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; the same command again goes on with it.")]
Recipe = Annotated[str, typer.Option(metavar="NAME", help="Where every flag not given takes its value.")]
Steps = Annotated[int | None, typer.Option(metavar="N", help="Updates of the weights.")]
BatchSize = Annotated[int | None, typer.Option("--batch", metavar="N", help="Examples in one update.")]
Accumulate = Annotated[int | None, typer.Option(metavar="N", help="Parts a batch is split into to save memory.")]
InputLength = Annotated[int | None, typer.Option(metavar="N", help="Tokens of one input, end mark included.")]
TargetLength = Annotated[int | None, typer.Option(metavar="N", help="Most tokens of one target, end mark included.")]
Optimizer = Annotated[str | None, typer.Option(metavar="NAME", help="adafactor, adamw, adamw_scale or muon.")]
LearningRate = Annotated[float | None, typer.Option(metavar="X", help="What the schedule multiplies.")]
Schedule = Annotated[str | None, typer.Option(metavar="NAME", help="inverse_sqrt, constant, cosine or linear.")]
Warmup = Annotated[int | None, typer.Option(metavar="N", help="Steps the learning rate rises (inverse_sqrt: is flat).")]
RampDown = Annotated[
    float | None, typer.Option(metavar="X", help="Share of the steps, at the end, over which the rate falls to 0.")
]
Batching = Annotated[
    str | None, typer.Option(metavar="KIND", help="Unequal examples: padded, bucketed by length, or packed.")
]
WeightDecay = Annotated[float | None, typer.Option(metavar="X", help="Of matrices only.")]
Clip = Annotated[float | None, typer.Option(metavar="X", help="Largest norm of the gradient; 0 for none.")]
Dropout = Annotated[float | None, typer.Option(metavar="X", help="Share of activations dropped.")]
DropoutShared = Annotated[
    bool | None,
    typer.Option("--dropout-shared/--dropout-each", help="One draw along the length (T5's), or one for each element."),
]
Recompute = Annotated[
    bool | None,
    typer.Option("--recompute/--no-recompute", help="Compute blocks again in the backward pass: less memory."),
]
ZLoss = Annotated[float | None, typer.Option("--z-loss", metavar="X", help="Weight of (log Z)^2; T5: 1e-4.")]
Normaliser = Annotated[
    str | None, typer.Option(metavar="NAME", help="Divide the loss by tokens, or as T5 by positions.")
]
Dtype = Annotated[str | None, typer.Option(metavar="NAME", help="float32, or bfloat16 over float32 weights.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of first weights, order, noise and dropout.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Parallel = Annotated[
    str, typer.Option(metavar="NAME", help="Under torchrun: whole models (ddp), or weights spread over devices (fsdp).")
]
TensorParallel = Annotated[int, typer.Option(metavar="N", help="Devices that split each layer's heads between them.")]
Loaders = Annotated[int, typer.Option(metavar="N", help="Threads that make batches ahead; the batches stay the same.")]
AsyncSave = Annotated[
    bool, typer.Option("--async-save/--no-async-save", help="Write checkpoints while training goes on.")
]
SaveEvery = Annotated[int | None, typer.Option(metavar="N", help="Steps between checkpoints.")]
Keep = Annotated[int | None, typer.Option(metavar="N", help="Last checkpoints kept, besides the best.")]
EvalEvery = Annotated[int | None, typer.Option(metavar="N", help="Steps between evaluations; there is one at the end.")]
EvalExamples = Annotated[int | None, typer.Option(metavar="N", help="Held-out examples in an evaluation.")]
LogEvery = Annotated[int | None, typer.Option(metavar="N", help="Steps between lines of log.jsonl.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard/--no-tensorboard", help="Write RUN/tensorboard too.")]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


def objective_options(pairs: list[str] | None) -> str | None:
    """Written as JSON; a value that is no JSON is a text.

    >>> objective_options(["style=drop", "weights=[2, 1]"])
    '{"style": "drop", "weights": [2, 1]}'
    """
    if not pairs:
        return None
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"cannot read --option {pair!r}; write NAME=VALUE, such as style=drop")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return json.dumps(found)


def given(**flags: Any) -> dict[str, Any]:
    """The flags somebody wrote, as keys of a config. A clip of 0 means none."""
    written = {name: value for name, value in flags.items() if value is not None}
    if written.get("clip") == 0:
        written["clip"] = None
    return written


def execution(parallel: str, tensor_parallel: int, loaders: int, async_save: bool) -> "Execution":
    from deepnarrow.train.parallel import Execution

    return Execution(parallel=parallel, tensor_parallel=tensor_parallel, loaders=loaders, async_save=async_save)


def going_on(config: "Config", out: Path, written: Mapping[str, Any]) -> "Config":
    """Recipes make the warmup follow the length of the run; a run that is prolonged keeps the one it began with."""
    from deepnarrow.train import run_folder
    from deepnarrow.train.config import Config, differences

    if "warmup" in written or not (out / run_folder.FILE).exists():
        return config
    old = Config.from_json(run_folder.read_run(out)["config"])
    only_longer = set(differences(old, config)) <= {"steps", "warmup"}
    return config.override({"warmup": old.warmup}) if only_longer else config


def announce(config: "Config", step: int) -> None:
    """One line before the first step."""
    from deepnarrow.shapes import parse
    from deepnarrow.shapes.counts import parameters

    if step >= config.steps:
        say(f"all {config.steps:,} steps are done")
        return
    millions = parameters(parse(config.shape)).total / 1e6
    say(
        f"{config.shape}: {millions:,.1f} M parameters, {'going on from' if step else 'from'} step {step:,} "
        f"to {config.steps:,}, {config.batch} x {config.input_length} tokens in, "
        f"{config.optimizer}, {config.schedule} {config.learning_rate:g}"
    )


def peak_flops(config: "Config", device: str, out: Path) -> float | None:
    """FLOP/s of matrix products here; None where there is nothing left to train, so nothing to compare."""
    from deepnarrow.measure.ceilings import gemm_gflops
    from deepnarrow.model.folder import resolve_device
    from deepnarrow.train import checkpoint

    if checkpoint.steps(out)[-1:] == [config.steps]:
        return None
    where = str(resolve_device(device))
    if where == "cuda" and "LOCAL_RANK" in os.environ:
        where = f"cuda:{os.environ['LOCAL_RANK']}"
    return gemm_gflops(config.dtype, where, seconds=PEAK_SECONDS) * 1e9


def supervise(train: "Callable[[], Result]", context: typer.Context) -> "Result":
    """Train; when a signal stops it, say how to go on and leave with code 130."""
    from deepnarrow.train.interrupt import Interrupted

    try:
        return train()
    except Interrupted as stopped:
        say(f"{stopped}; go on with:\n{again(context)}")
        raise typer.Exit(130) from None


def again(context: typer.Context) -> str:
    """The command as it was given, fit to be pasted into a shell."""
    words = [*launcher(), "deepnarrow", str(context.info_name)]
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[str(parameter.name)]
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (parameter.opts[0], str(one))]
        else:
            words += [parameter.opts[0], str(value)]
    return shlex.join(words)


def launcher() -> list[str]:
    """What stands before the command in a job of several processes.

    >>> launcher()
    []
    """
    size, here = (os.environ.get(name) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if size in (None, "1"):
        return []
    nodes = (
        [] if size == here else ["--nnodes", os.environ.get("GROUP_WORLD_SIZE", "N"), "--rdzv-endpoint", "HOST:PORT"]
    )
    return ["torchrun", *nodes, "--nproc-per-node", here or "N", "-m"]


def first_rank() -> bool:
    """Of several processes one speaks."""
    return os.environ.get("RANK", "0") == "0"


def report(results: "Sequence[Result]", config: "Config", *, as_json: bool, then: str) -> None:
    """How the run, or each of several, ended and, for people, what to do next."""
    if not first_rank():
        return
    if as_json:
        every = [described(result, config) for result in results]
        print(json.dumps(every if len(every) > 1 else every[0], indent=2))
        return
    for result in results:
        print(f"{result.folder}: {config.shape}, step {result.step:,}: {outcome(result)}")
    print(f"next: {then}")


def outcome(result: "Result") -> str:
    found = [f"loss {result.loss:.3f}"] if result.loss is not None else []
    if result.held_out_loss is not None:
        found.append(f"held-out loss {result.held_out_loss:.3f}")
    found += [f"{name} {value:.2f}" for name, value in result.scores.items()]
    if result.best is not None and result.best.step != result.step:
        found.append(f"best {result.best.metric} {result.best.value:.3f} at step {result.best.step:,}")
    return ", ".join(found)


def described(result: "Result", config: "Config") -> dict[str, Any]:
    from deepnarrow.model.places import checkpoint

    return {
        "run": str(result.folder),
        "checkpoint": str(checkpoint(result.folder)),
        "shape": config.shape,
        "step": result.step,
        "loss": result.loss,
        "held_out_loss": result.held_out_loss,
        "scores": result.scores,
        "tokens_per_second": result.tokens_per_second,
        "best": None if result.best is None else vars(result.best),
    }


def say(line: str) -> None:
    if first_rank():
        print(f"deepnarrow: {line}", file=sys.stderr, flush=True)
