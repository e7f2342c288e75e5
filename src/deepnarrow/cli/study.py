"""`deepnarrow study`: several shapes through one protocol."""

from pathlib import Path

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    epilog="Example: deepnarrow study my-study.toml --out study && deepnarrow report study    (docs/studies.md)"
)
def study(
    spec: Path = typer.Argument(..., help="A study's TOML file: shapes, seeds, corpus, tasks."),
    out: Path = typer.Option(..., "--out", help="Folder for corpus, runs, ledger and report; the same again goes on."),
    device: str = typer.Option("auto", "--device", help="auto, cpu or cuda."),
    report: bool = typer.Option(True, help="Draw the report and write the cards at the end."),
    as_json: bool = typer.Option(False, "--json", help="Print every record as a JSON line."),
) -> None:
    """Pretrain, fine-tune, evaluate and time several shapes under one protocol."""
    import json
    import sys
    from dataclasses import asdict

    from deepnarrow.measure.study import run_study
    from deepnarrow.measure.study_spec import read_study

    records = run_study(read_study(spec), out, device=device, command=f"deepnarrow study {spec} --out {out}")
    if report:
        from deepnarrow.hub.cards import write_cards
        from deepnarrow.measure.report import report as draw

        drawn = draw(out)
        cards = write_cards(out)
        for measure, found in drawn.recommendations.items():
            print(f"{measure}: {found.reason}", file=sys.stderr)
        print(f"report {drawn.page}, {len(cards)} cards in {out / 'cards'}", file=sys.stderr)
    if as_json:
        for record in records:
            print(json.dumps(asdict(record)))
    else:
        print(f"{len(records)} records in {out / 'ledger.jsonl'}")
