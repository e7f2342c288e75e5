"""`deepnarrow demo`: the whole way in miniature, on prose that every machine with Python has."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from deepnarrow.measure.report import Report
    from deepnarrow.measure.study_spec import Study

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ANSWERED = "stdlib_summary"  # the task whose model answers a sentence at the end


@app.command(epilog="Example: deepnarrow demo --out demo    (interrupt it and start it again: it goes on)")
def demo(
    out: Path = typer.Option(Path("demo"), "--out", help="Folder for everything the demo makes."),
    device: str = typer.Option("auto", "--device", help="auto, cpu or cuda."),
) -> None:
    """Three shapes of about equal size, from raw text to a measured frontier: which would you choose?"""
    import sys
    import time

    from deepnarrow.hub.cards import write_cards
    from deepnarrow.measure.report import report
    from deepnarrow.measure.study import announce, run_study

    began = time.monotonic()
    study = demo_study()
    announce(
        f"{study.name}\n{', '.join(study.shapes)}\nAbout eight minutes on two cores. Ctrl-C stops; again goes on.\n"
    )
    run_study(study, out, device=device, command="make demo")
    drawn = report(out)
    cards = write_cards(out)
    print_results(out)
    print_recommendation(drawn)
    answer_one(out, study, drawn)
    print(f"\nreport  {drawn.page}\ncards   {len(cards)} in {out / 'cards'}\nledger  {out / 'ledger.jsonl'}")
    print(f"{time.monotonic() - began:.0f} seconds", file=sys.stderr)


def demo_study() -> "Study":
    import tomllib
    from importlib import resources

    from deepnarrow.measure.study_spec import study_from

    text = (resources.files("deepnarrow.measure") / "demo.toml").read_text("utf-8")
    return study_from(tomllib.loads(text), where="the demo's study", beside=Path())


def print_results(out: Path) -> None:
    from rich.console import Console

    from deepnarrow.measure.ledger import read
    from deepnarrow.measure.results_table import results_table

    Console().print(results_table(read(out / "ledger.jsonl")))


def print_recommendation(drawn: "Report") -> None:
    print()
    names = {found.name for found in drawn.recommendations.values()}
    if len(names) == 1:
        print(f"Recommended: {names.pop()}")
    else:
        print("The tasks disagree; choose by the one that is like yours.")
    for measure, found in drawn.recommendations.items():
        print(f"  {measure}: {found.reason}")


def answer_one(out: Path, study: "Study", drawn: "Report") -> None:
    """Ask the recommended shape for the summary of one text it was neither trained nor judged on."""
    from deepnarrow.measure.evaluate import encode
    from deepnarrow.model.decode import Beam, generate
    from deepnarrow.model.folder import open_model
    from deepnarrow.tasks import get, load_pairs

    task = get(ANSWERED)
    winner = next(found.name for key, found in drawn.recommendations.items() if key.startswith(ANSWERED))
    opened = open_model(out / "runs" / winner / f"seed-{study.seeds[0]}" / ANSWERED)
    assert opened.tokenizer is not None
    pair = min(load_pairs(task, "validation"), key=lambda pair: abs(len(pair.inputs) - 160))
    ids, _ = encode([pair.inputs], opened.tokenizer, task.input_tokens)
    outputs = generate(
        opened.model, ids, Beam(width=4), max_tokens=24, eos=opened.tokenizer.eos, vocab_limit=opened.tokenizer.size
    )
    print(f"\n{winner} was asked   {pair.inputs}")
    print(f"it answered   {opened.tokenizer.decode(outputs[0][0].ids)}")
    print(f"its author wrote   {pair.accepted[0]}")
