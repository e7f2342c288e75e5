"""`deepnarrow serve`: models over HTTP, by the APIs of text-generation-inference and OpenAI."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepnarrow.errors import UserError, nearest

if TYPE_CHECKING:
    pass

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

DEVICES, RUNTIMES = ("auto", "cpu", "cuda"), ("auto", "native", "torch")
PRECISIONS = ("float32", "bfloat16", "int8")


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Run folders, Hugging Face folders or hub names; NAME=MODEL names it."),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=RUN", help="A soft prompt over the first MODEL, served as a model of that name."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.", min=0, max=65535)] = 8080,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    runtime: Annotated[str, typer.Option(help="auto (native on a CPU where it is built), native or torch.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or int8 of the native runtime.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="Of each model.  [default: all cores]", min=1)] = None,
    kernels: Annotated[str | None, typer.Option(help="Of the native runtime, instead of the best.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="API keys, one a line; else DEEPNARROW_API_KEYS; none: open to all."),
    ] = None,
    max_rows: Annotated[int, typer.Option(help="Sequences in one step of a model.", min=1)] = 64,
    max_held_tokens: Annotated[int, typer.Option(help="Tokens a model holds at once.", min=1)] = 65536,
    max_waiting: Annotated[int, typer.Option(help="Inputs that wait for a model, then 429.", min=1)] = 256,
    max_input_tokens: Annotated[int, typer.Option(help="Of one input.", min=1)] = 2048,
    max_new_tokens: Annotated[int, typer.Option(help="Of one answer.", min=1)] = 512,
    max_inputs: Annotated[int, typer.Option(help="In one request.", min=1)] = 64,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.", min=1)] = 2**20,
    max_connections: Annotated[int, typer.Option(help="Open at once.", min=1)] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds to a request's deadline.", min=0.1)] = 60.0,
    drain: Annotated[float, typer.Option(help="Seconds for answers to end when told to stop.", min=1)] = 30.0,
    cache: Annotated[int, typer.Option(help="MiB of encoded inputs kept for when they come again.", min=0)] = 64,
    log_texts: Annotated[bool, typer.Option("--log-texts", help="Let users' texts into the log.")] = False,
) -> None:
    """Serve models until SIGTERM or Ctrl C: a page at /, and the APIs of text-generation-inference and OpenAI.

    \b
    Example:
      deepnarrow serve runs/nq
      deepnarrow serve runs/nq summaries=runs/samsum --precision int8 --port 8000
      deepnarrow serve runs/tiny-dl2 --prompt sentiment=runs/sst2 --prompt topic=runs/ag_news
      deepnarrow serve runs/nq --host 0.0.0.0 --api-key-file keys.txt
    """
    for name, value, options in (("device", device.partition(":")[0], DEVICES), ("runtime", runtime, RUNTIMES)):
        if value not in options:
            raise UserError(f"unknown {name} {value!r}; {nearest(value, options)}")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; {nearest(precision, PRECISIONS)}")
    needed()

    from deepnarrow.serve.allowed import Allowed
    from deepnarrow.serve.http import Server, use_log
    from deepnarrow.serve.keys import read_keys
    from deepnarrow.serve.logs import Log
    from deepnarrow.serve.opening import Spec
    from deepnarrow.serve.scheduler import Room
    from deepnarrow.serve.workers import Worker

    room = Room(rows=max_rows, tokens=max_held_tokens, cache=cache * 2**20)
    named = names_of(models, "MODEL")
    prompts = names_of(prompt or [], "--prompt", must=True)
    check_names([*named, *prompts])
    specs: dict[str, Spec] = {}
    for number, (name, model) in enumerate(named.items()):
        specs[name] = Spec(
            model=model,
            prompts=prompts if number == 0 else {},
            runtime=runtime,
            device=device,
            precision=precision,
            threads=threads,
            kernels=kernels,
            room=room,
        )
    allowed = Allowed(
        body=max_body,
        input_tokens=max_input_tokens,
        new_tokens=max_new_tokens,
        inputs=max_inputs,
        waiting=max_waiting,
        seconds=timeout,
        connections=max_connections,
        drain_seconds=drain,
    )
    keys, log = read_keys(api_key_file), Log(texts=log_texts)
    use_log(log)
    workers = [Worker(name, spec, most_waiting=max_waiting) for name, spec in specs.items()]
    server = Server(workers, host=host, port=port, allowed=allowed, keys=keys, log=log)
    run(server)


def run(server: object) -> None:
    from deepnarrow.serve.http import Server

    assert isinstance(server, Server)
    import asyncio

    try:
        import uvloop
    except ImportError:
        asyncio.run(server.run())
    else:
        uvloop.run(server.run())


def needed() -> None:
    """The libraries of the server, which a plain installation has not."""
    missing = []
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f"`deepnarrow serve` needs {', '.join(missing)}: pip install 'deepnarrow[serve]'")


def names_of(given: list[str], what: str, *, must: bool = False) -> dict[str, str]:
    """What is served by which name: NAME=WHERE, else the last part of where it is.

    >>> names_of(["runs/nq", "mine=owner/model"], "MODEL")
    {'nq': 'runs/nq', 'mine': 'owner/model'}
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, where = one.partition("=")
        if not equals and must:
            raise UserError(f"{what} {one}: write NAME=RUN, the name it is to be served under first")
        if not equals:
            name, where = one.split("@")[0].rstrip("/").rsplit("/", 1)[-1], one
        if not name or not where:
            raise UserError(f"{what} {one!r} names nothing; write NAME={where or 'RUN'}")
        if name in found:
            raise UserError(f"two would be served as {name!r}; write NAME={where} to name one of them otherwise")
        found[name] = where
    return found


def check_names(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"a model and a prompt would both be served as {name!r}; name one of them otherwise")
        if not name.isprintable() or len(name) > 96:
            raise UserError(f"{name!r} is no name to be served under; use up to 96 printable characters")
