"""`deepnarrow shapes`: what shapes cost, side by side."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepnarrow.shapes import Cost

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def shapes(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Shapes or published names.")],
    input_length: Annotated[int, typer.Option(help="Tokens the encoder reads.")] = 512,
    target_length: Annotated[int, typer.Option(help="Tokens the decoder writes.")] = 114,
    batch: Annotated[int, typer.Option(help="Inputs at a time; FLOPs and caches are of all of them.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, exact numbers.")] = False,
) -> None:
    """Parameters, FLOPs and memory of shapes, before a weight exists.

    A NAME is a base (tiny, mini, small, base, large, xl, xxl, v1_1-small to v1_1-xxl) and edits: el and dl (encoder and
    decoder layers), nl (both), dm (d_model), ff (d_ff), kv (d_kv), nh (heads), kh (key/value heads), v (vocabulary),
    each with a number, and words such as skv, geglu, untied. Or it is published: google/flan-t5-base, t5-3b, ...

    \b
    Example:
      deepnarrow shapes base small-el16-dl2
      deepnarrow shapes google/t5-efficient-base-dl2 --input-length 1024 --target-length 32 --json
    """
    from deepnarrow.shapes import cost, shape_of

    costs = [
        (name, cost(shape_of(name), input_length=input_length, target_length=target_length, batch=batch))
        for name in names
    ]
    if as_json:
        import json

        print(json.dumps([record(name, each) for name, each in costs], indent=2))
    else:
        show(costs)


def record(name: str, cost: "Cost") -> dict[str, Any]:
    """One shape's costs as a program reads them: exact integers, FLOPs and bytes of the whole batch."""
    from dataclasses import asdict

    from deepnarrow.shapes import published

    parts = cost.parameters
    return {
        "name": name,
        "shape": str(cost.shape),
        "dimensions": asdict(cost.shape),
        "published": [entry.id for entry in published(cost.shape)],
        "input_length": cost.input_length,
        "target_length": cost.target_length,
        "batch": cost.batch,
        "parameters": parts.total,
        "parameters_by_part": {**asdict(parts), "non_embedding": parts.non_embedding},
        "flops": {
            "encode": cost.encode_flops,
            "cross_keys_values": cost.cross_keys_values_flops,
            "decode_step": cost.decode_step_flops,
            "generate": cost.generate_flops,
            "forward": cost.forward_flops,
            "training_step": cost.training_step_flops,
        },
        "bytes": {
            "weights": cost.weights,
            "self_attention_cache": cost.self_cache,
            "cross_attention_cache": cost.cross_cache,
            "training": {name: {**asdict(held), "total": held.total} for name, held in cost.training.items()},
        },
    }


def show(costs: "list[tuple[str, Cost]]") -> None:
    """Print tables of as many shapes side by side as fit, every number compared with the first shape's."""
    from rich.console import Console

    width = terminal_width()
    console = Console(width=width, highlight=False)
    first = costs[0][1]
    console.print(
        f"\n[bold]{first.input_length}[/] tokens in, [bold]{first.target_length}[/] out, batch [bold]{first.batch}[/]"
        + (f"; ratios to [bold]{first.shape}[/]" if len(costs) > 1 else "")
    )
    columns = max(1, (width - LABEL_WIDTH) // COLUMN_WIDTH)
    for start in range(0, len(costs), columns):
        console.print(table([cost for _, cost in costs[start : start + columns]], first))
    for note in notes(costs):
        console.print(f"[dim]{note}[/]")


LABEL_WIDTH, COLUMN_WIDTH = 31, 23


def terminal_width() -> int:
    """The terminal's width, at most 100; 100 where there is none."""
    from shutil import get_terminal_size

    return min(100, get_terminal_size((100, 24)).columns)


def table(costs: "list[Cost]", first: "Cost") -> Any:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 1))
    grid.add_column("", min_width=LABEL_WIDTH - 6, no_wrap=True)
    for cost in costs:
        grid.add_column(hyphenated(str(cost.shape)), justify="right", overflow="fold", min_width=14)
    for label, write in DIMENSIONS:
        grid.add_row(label, *(write(cost) for cost in costs))
    for title, unit, rows in QUANTITIES:
        grid.add_section()
        grid.add_row(f"[bold]{title}[/]")
        for label, get in rows:
            values = [(get(cost), None if cost is first else get(first)) for cost in costs]
            grid.add_row(f"  {label}", *(cell(value, unit, reference) for value, reference in values))
    return grid


def hyphenated(name: str, width: int = COLUMN_WIDTH - 3) -> str:
    """A long name broken at its hyphens.

    >>> hyphenated("v1_1-small-dm1472-ff3584-el12").split()
    ['v1_1-small-dm1472-', 'ff3584-el12']
    """
    lines = [""]
    for part in name.replace("-", "-\n").split("\n"):
        if len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def cell(value: int, unit: str, reference: int | None) -> str:
    """`128.5 M`, and how many times the first shape's it is."""
    from deepnarrow.shapes import magnitude

    text = magnitude.write(value, unit)
    if reference is None or not reference:
        return f"{text}{' ' * 8 if reference == 0 else ''}"
    return f"{text} [dim]{value / reference:6.2f}x[/]"


def _heads(cost: "Cost") -> str:
    shape = cost.shape
    grouped = f", {shape.kv_heads} k/v" if shape.kv_heads else ""
    return f"{shape.num_heads} x {shape.d_kv}{grouped}{', k = v' if shape.tie_kv else ''}"


DIMENSIONS: list[tuple[str, Any]] = [
    ("Layers, encoder + decoder", lambda cost: f"{cost.shape.encoder_layers} + {cost.shape.decoder_layers}"),
    ("d_model, d_ff", lambda cost: f"{cost.shape.d_model}, {cost.shape.d_ff}"),
    ("Heads x d_kv", _heads),
    ("Feed-forward, output matrix", lambda cost: f"{cost.shape.feed_forward}, {'tied' if cost.shape.tied else 'own'}"),
]
QUANTITIES: list[tuple[str, str, list[tuple[str, Any]]]] = [
    (
        "Parameters",
        "",
        [
            ("total", lambda cost: cost.parameters.total),
            ("without vocabulary", lambda cost: cost.parameters.non_embedding),
        ],
    ),
    (
        "FLOPs",
        "",
        [
            ("encode the input", lambda cost: cost.encode_flops),
            ("cross-attention keys, values", lambda cost: cost.cross_keys_values_flops),
            ("decode the last token", lambda cost: cost.decode_step_flops),
            ("generate all tokens", lambda cost: cost.generate_flops),
            ("forward, target given", lambda cost: cost.forward_flops),
            ("training step", lambda cost: cost.training_step_flops),
        ],
    ),
    (
        "Weights",
        "B",
        [
            ("float32", lambda cost: cost.weights["float32"]),
            ("bfloat16", lambda cost: cost.weights["bfloat16"]),
            ("int8 (wo, vocabulary 16 bit)", lambda cost: cost.weights["int8"]),
        ],
    ),
    (
        "Decoding cache, float32",
        "B",
        [
            ("self-attention", lambda cost: cost.self_cache["float32"]),
            ("cross-attention", lambda cost: cost.cross_cache["float32"]),
        ],
    ),
    (
        "Training state, float32",
        "B",
        [
            ("adafactor", lambda cost: cost.training["adafactor"].total),
            ("adamw, adamw_scale", lambda cost: cost.training["adamw"].total),
        ],
    ),
]


def notes(costs: "list[tuple[str, Cost]]") -> list[str]:
    """What one must know to read the numbers."""
    from deepnarrow.shapes import published

    found = [
        "FLOPs: matrix products only, 2 per multiply-add, causal attention as computed. Training state: weights, "
        "gradients, moments; no activations. MB is 10**6 bytes. More in docs/shapes.md.",
    ]
    for name, cost in costs:
        ids = [entry.id for entry in published(cost.shape)]
        if ids and name not in ids:
            found.append(f"{cost.shape}: published as {', '.join(ids)}")
    if any(cost.shape.share_encoder_decoder for _, cost in costs):
        found.append("sh is read as encoder and decoder sharing weights, which is not settled: docs/shapes.md.")
    return found
