"""`deepnarrow report`: a study's frontier as plots and one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study's folder, or a ledger file.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: beside the ledger.")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Draw this score: task, metric or task:metric. May be given again."),
    ] = None,
    cost: Annotated[
        str | None, typer.Option(help="What quality is weighed against: milliseconds, parameters or flops.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is recommended, and the files, as JSON.")] = False,
) -> None:
    """Draw a study's frontier: plots (PNG and SVG) and one HTML page that needs no network.

    The page says which shape to use and why, and where the evidence does not settle it. Every number comes from the
    ledger.

    \b
    Example:
      deepnarrow report runs/study
      deepnarrow report runs/study --metric squad:token_f1 --cost parameters --out pages
    """
    import json
    from dataclasses import asdict

    from deepnarrow.measure.report import report as write

    done = write(study, out=out, metrics=metric or (), cost=cost)
    if as_json:
        recommended = {name: asdict(found) for name, found in done.recommendations.items()}
        print(json.dumps({"page": str(done.page), "plots": list(map(str, done.plots)), "recommended": recommended}))
        return
    for name, found in done.recommendations.items():
        print(f"{name}: {found.name}\n  {found.reason}")
    print(f"{done.page}, {len(done.plots)} plots in {done.plots[0].parent}")
