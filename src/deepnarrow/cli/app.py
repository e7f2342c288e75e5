"""`deepnarrow`: the table of verbs."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from deepnarrow import __version__
from deepnarrow.cli.start import interrupted
from deepnarrow.errors import UserError, nearest

VERBS = {  # verb -> one line for the overview; its module is `deepnarrow.cli.<verb>` and holds `app`
    "shapes": "Parameters, FLOPs and memory of shapes, before a weight exists.",
    "catalog": "The published family: list, show, search.",
    "tokenizer": "Train a vocabulary, encode, decode.",
    "corpus": "Turn documents into token shards.",
    "pretrain": "Pretrain a shape on a corpus.",
    "finetune": "Fine-tune a model on a task.",
    "evaluate": "Score a model on a task, with intervals.",
    "compare": "Models side by side on a task, and whether the difference is real.",
    "errors": "What a model gets wrong: the worst, by length, by label, confusions.",
    "generate": "Answer texts with a model.",
    "serve": "Serve models over HTTP: batches, streams, the APIs people know, a page.",
    "embed": "Vectors of texts, and how well their angles match what people find alike.",
    "bench": "Time and weigh a model on this machine, beside the machine's ceilings.",
    "study": "Several shapes, one protocol: pretrain, fine-tune, evaluate, time.",
    "report": "Draw a study's frontier: plots and one HTML page.",
    "card": "Write a run's model card from the ledger.",
    "export": "Write a run as a folder that transformers or the native runtime loads.",
    "demo": "The whole way in miniature, on this machine.",
}
ALIASES = {"catalogue": "catalog"}


CommandError: Any = typer.BadParameter.__mro__[2]  # what every wrong flag or argument is; typer exports no name for it


class Verbs(TyperGroup):
    """Looks a verb up in `VERBS` and imports its module then, so that `deepnarrow shapes` never waits for torch."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in VERBS:
            raise UserError(f"no such verb: {cmd_name}; {nearest(cmd_name, VERBS, limit=2)} (deepnarrow --help)")
        command = typer.main.get_command(import_module(f"deepnarrow.cli.{name}").app)
        command.name = name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an interrupt is told here, since typer leaves without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            interrupted(error)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print("Usage: deepnarrow VERB [OPTIONS]\n")
        print("Find, train, measure and serve the T5 that fits your budget.\n\nVerbs:")
        for name, line in VERBS.items():
            print(f"  {name:<10} {line}")
        print("\nStart with `deepnarrow demo` or `deepnarrow shapes small-el16-dl2`; every verb has --help.")


app = typer.Typer(cls=Verbs, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deepnarrow {__version__}")
        raise typer.Exit


@app.callback()
def deepnarrow(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Find, train, measure and serve the T5 that fits your budget."""


def run(arguments: list[str]) -> Any:
    """Read the arguments and call their verb; a wrong one is a `UserError`."""
    try:
        return app(arguments, prog_name="deepnarrow", standalone_mode=False)
    except CommandError as error:
        verb = next((f"{word} " for word in arguments if word in VERBS), "")
        raise UserError(f"{error.format_message().rstrip('.')}; see deepnarrow {verb}--help") from None
