"""`deepnarrow pretrain --plan`: what a run would cost, told before it starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.text.corpus import Corpus
    from deepnarrow.train.config import Config
    from deepnarrow.train.plan import Memory, Plan


def tell(
    config: "Config", corpora: "Sequence[Corpus]", out: Path | None, *, flops: str | None, devices: int, as_json: bool
) -> None:
    """Print the plan of a config, as a table or as JSON."""
    from deepnarrow.train.plan import plan

    device_flops, source = rate(flops, out)
    found = plan(
        config,
        batches=real_batches(config, corpora) if corpora else None,
        corpus_tokens=sum(corpus.tokens for corpus in corpora) or None,
        devices=devices,
        device_flops=device_flops,
        device_flops_source=source,
    )
    if as_json:
        print(json.dumps({"config": config.to_json(), **found.to_json()}, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, width=100)
    console.print(table(config, found))
    for line in notes(config, found, bool(corpora)):
        console.print(f"[dim]{line}[/]")


def rate(flops: str | None, out: Path | None) -> tuple[float, str]:
    """FLOP/s that one device reaches, and how that is known."""
    from deepnarrow.shapes import magnitude

    if flops is not None:
        try:
            return float(magnitude.read(flops)), "given"
        except UserError:
            raise UserError(f"cannot read {flops!r} as FLOP/s of one device; write --flops 150T or 90G") from None
    if out is not None and (found := reached(out)):
        return found, f"reached by {out}"
    from deepnarrow.train.plan import product_flops

    return product_flops(), "numpy's matrix product here, which a run stays below"


def reached(out: Path) -> float | None:
    """FLOP/s over all steps so far of a run that was begun in `out`."""
    from deepnarrow.shapes import parse
    from deepnarrow.train import run_folder
    from deepnarrow.train.config import Config
    from deepnarrow.train.plan import flops_of, pretended_step

    if not (out / run_folder.FILE).exists() or not (out / "log.jsonl").exists():
        return None
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    timed = [row for row in rows if row.get("seconds") and row.get("step")]
    if not timed:
        return None
    old = Config.from_json(run_folder.read_run(out)["config"])
    each = flops_of(parse(old.shape), pretended_step(old), recompute=old.recompute)
    return float(each * timed[-1]["step"] / timed[-1]["seconds"])


def real_batches(config: "Config", corpora: "Sequence[Corpus]") -> Any:
    from deepnarrow.text.batches import CorpusBatches

    options = {"density": config.density, "mean_span": config.mean_span}
    return CorpusBatches(
        corpus=corpora, seed=config.seed, batch=config.batch, input_length=config.input_length,
        target_length=config.target_length, objective=config.objective, mixture=config.mixture,
        options={name: value for name, value in options.items() if value is not None}, batching=config.batching,
    )  # fmt: skip


def table(config: "Config", found: "Plan") -> Any:
    from rich import box
    from rich.table import Table

    from deepnarrow.shapes.magnitude import write

    several = found.devices > 1
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 1))
    grid.add_column(found.shape, min_width=34, no_wrap=True)
    grid.add_column("ddp" if several else "", justify="right")
    if several:
        grid.add_column("fsdp", justify="right")

    def row(label: str, value: str) -> None:
        grid.add_row(label, value)

    step = found.step
    row("parameters", write(found.parameters))
    row("steps", f"{found.steps:,}")
    row("a batch", f"{round(step.rows):,} x {step.input_length:.0f} in, {step.target_length:.0f} out")
    if round(step.rows) != step.examples:
        row("  examples packed in it", f"{step.examples:,}")
    grid.add_section()
    row("input tokens", write(found.inputs))
    row("target tokens", write(found.targets))
    if found.epochs is not None:
        row("times through the corpus", f"{found.epochs:.3g}")
    row("FLOPs of a step", write(found.step_flops))
    row("FLOPs", write(found.flops))
    grid.add_section()
    grid.add_row("[bold]Memory of a device[/]")
    kinds: Sequence[Memory] = (found.memory, found.memory_sharded)[: 2 if several else 1]
    for label, name in (
        ("  weights, float32", "weights"),
        ("  gradients", "gradients"),
        (f"  {config.optimizer}", "optimizer"),
        (f"  activations, {config.dtype} (estimate)", "activations"),
        ("  in all", "total"),
    ):
        grid.add_row(label, *(write(getattr(kind, name), "B") for kind in kinds))
    grid.add_section()
    row("a checkpoint", write(found.checkpoint, "B"))
    row(f"disk, {found.checkpoints_kept} kept and one on its way", write(found.disk, "B"))
    grid.add_section()
    row("devices", f"{found.devices:,}")
    if found.device_flops is not None and found.hours is not None:
        row("FLOP/s of each", write(found.device_flops))
        row("hours", f"{found.hours:,.3g}")
    return grid


def notes(config: "Config", found: "Plan", real: bool) -> list[str]:
    """What one must know to read the numbers."""
    said = [f"FLOP/s: {found.device_flops_source}. Evaluations and saving come on top of the hours."]
    if not real:
        said.append("Batches: made by the objective from pretended text; --corpus DIR counts real ones.")
    if found.memory.activations > 2 * (found.memory.total - found.memory.activations) and not config.recompute:
        said.append("--accumulate N divides the activations by N; --recompute keeps few of them for a third more time.")
    said.append("Activations are plain PyTorch's, as on a GPU; the compiled kernels of a CPU keep less.")
    said.append("FLOPs: matrix products, 2 per multiply-add, padding included. MB is 10**6 bytes.")
    return said
