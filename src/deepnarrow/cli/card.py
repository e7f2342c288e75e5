"""`deepnarrow card`: a run's model card, its numbers from the ledger."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the numbers are; default: the nearest ledger.jsonl above."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: RUN/README.md.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; default: from shape and task.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="The licence of the weights, as the hub spells it.")
    ] = None,
) -> None:
    """Write a run's model card: shape, training, downstream performance, computational complexity.

    Every number is from the ledger or from run.json; what nobody measured is called so.

    \b
    Example:
      deepnarrow card runs/nq --ledger ledger.jsonl
      deepnarrow card runs/nq --name our-nq-small --license apache-2.0 --out CARD.md
    """
    from deepnarrow.hub.cards import write_card

    print(write_card(run, ledger=ledger, out=out, name=name, license_name=license_name))
