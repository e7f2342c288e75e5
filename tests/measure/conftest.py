"""A study whose numbers are invented: smooth functions of the shapes with noise from a seeded generator.

It has what a real one has: shapes, seeds, two tasks, losses, timings, one shape that ran out of memory, and logs.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepnarrow.measure.ledger import Record, append
from deepnarrow.shapes import counts, parse

SHAPES = ("tiny-nl2", "tiny", "tiny-el8-dl2", "tiny-dm128-nl8", "tiny-dm128-ff=512-nl16", "tiny-el12-dl2", "mini",
          "mini-nl8", "small-dl2", "small")  # fmt: skip
NAME = "Invented numbers, for the tests"
MACHINE = {"processor": "Invented CPU at 2 GHz", "cores": 2, "memory_gib": 16.0, "system": "Linux x86_64"}
VERSIONS = {"python": "3.11.0", "deepnarrow": "0.1.0", "torch": "2.13.0"}
CONDITIONS = {"input_length": 128, "target_length": 32, "batch": 1, "dtype": "float32", "device": "cpu", "threads": 2,
              "optimizer": "adafactor"}  # fmt: skip


def invented(seeds: int = 3, shapes: tuple[str, ...] = SHAPES) -> list[Record]:
    draw = np.random.default_rng(7)
    records = []
    for day, name in enumerate(f"{shape}-v4096" for shape in shapes):
        shape = parse(name)
        size = counts.parameters(shape).total
        depth = shape.encoder_layers + shape.decoder_layers
        skill = 6.5 * math.log10(size / 1e6) + 5 * math.log2(depth / 4) * (depth < 30)
        common = {
            "shape": str(shape), "parameters": size, "commit": "0123456789ab", "versions": VERSIONS,
            "machine": MACHINE, "date": f"2026-11-{10 + day:02d}T08:00:00Z",
        }  # fmt: skip
        for seed in range(seeds):
            run = {**common, "model": f"runs/{shape}/seed-{seed}", "seed": seed}
            noise = draw.normal(0, 0.9, 3)
            for task, metric, value, half, n, base in (
                ("squad", "exact_match", 22 + skill + noise[0], 2.1, 2000, None),
                ("squad", "token_f1", 31 + skill + noise[0], 1.9, 2000, None),
                ("sst2", "accuracy", 62 + 1.2 * skill + noise[1], 2.9, 872, ("majority label", 50.9)),
            ):
                extra = {"baseline_name": base[0], "baseline": base[1]} if base else {}
                records.append(Record(kind="score", task=task, task_version=1, split="validation", metric=metric,
                                      value=float(value), low=float(value - half), high=float(value + half),
                                      n=n, unit="%", extra=extra, **run))  # fmt: skip
            loss = 3.4 - 0.022 * skill + 0.01 * noise[2]
            records.append(Record(kind="training", metric="held_out_loss", value=float(loss), unit="nats/token", **run))
        flops = counts.generate_flops(shape, input_length=128, target_length=32)
        speed = 2.0 * depth + flops / 9e7
        timing = {**common, "model": str(shape), "kind": "timing", "extra": {"conditions": CONDITIONS, "outcome": "ok"}}
        if shape.d_model == 512 and shape.decoder_layers == 6:
            timing["extra"] = {**timing["extra"], "outcome": "OOM"}
            records.append(Record(metric="end_to_end", value=None, unit="ms", **timing))
            continue
        records += [
            Record(metric="end_to_end", value=speed, low=speed * 0.97, high=speed * 1.05, n=7, unit="ms", **timing),
            Record(metric="per_token", value=speed / 40, unit="ms", **timing),
            Record(metric="peak_memory", value=size * 5.2e-6 + 20, unit="MB", **timing),
        ]
    return records


def write_study(folder: Path, records: list[Record], *, logs: bool = True) -> Path:
    append(folder / "ledger.jsonl", records)
    command = "deepnarrow study invented.toml --out runs/invented"
    (folder / "study.json").write_text(json.dumps({"name": NAME, "command": command}))
    if not logs:
        return folder
    draw = np.random.default_rng(5)
    for one in records:
        if one.metric not in ("held_out_loss", "accuracy") or one.value is None or one.seed != 0:
            continue
        stage = "pretrain" if one.kind == "training" else "finetune"
        run = folder / one.model / stage
        run.mkdir(parents=True)
        origin = {"task": one.task} if one.task else {}
        config = {"seed": one.seed}
        (run / "run.json").write_text(
            json.dumps({"format": 1, "kind": stage, "shape": one.shape, "config": config, "origin": origin})
        )
        end = one.value if one.kind == "training" else 0.8 - one.value / 200
        start = 8.0 if one.kind == "training" else 2.0
        lines = [
            {"step": step, "loss": end + (start - end) * math.exp(-step / 300) + float(draw.normal(0, 0.01))}
            for step in range(10, 2001, 10)
        ]
        lines.append({"step": 2000, "held_out_loss": end})
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def records() -> Callable[..., list[Record]]:
    """Invented records; `seeds` and `shapes` may be chosen."""
    return invented


@pytest.fixture(scope="session")
def write_invented_study() -> Callable[[Path], Path]:
    """Writes a study with invented records and logs into a folder."""
    return lambda folder: write_study(folder, invented())


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder with invented records and logs."""
    return write_study(tmp_path / "study", invented())
