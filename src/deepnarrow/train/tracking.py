"""What a run tells while it trains: `log.jsonl`, TensorBoard, and the note beside the progress bar.

A line of `log.jsonl` every `log_every` steps, and one for every evaluation:

    {"step": 20, "loss": 5.1, "learning_rate": 0.01, "grad_norm": 1.2, "tokens": 12520, "tokens_per_second": 2900.0,
     "seconds": 4.3, "share_of_peak": 0.41}
    {"step": 100, "held_out_loss": 4.2, "exact_match": 31.0}

`loss` is the mean negative log-likelihood per target token, in nats, since the line before; z-loss is not in it.
`grad_norm` is that step's, before clipping. `tokens` counts real inputs and targets since step 0. `seconds` are those
spent in steps. `share_of_peak` is the model's FLOPs (shapes/counts.py) over what this machine's matrix product reaches.
"""

import json
from pathlib import Path
from typing import Any

from deepnarrow.files import append_json, read_json_lines, write_text

FILE = "log.jsonl"
TIMINGS = ("tokens_per_second", "seconds", "share_of_peak")  # what may differ between two runs of the same config


def cut_log(out: Path, *, step: int, evaluated: int) -> None:
    """Drop training lines after `step` and evaluations after `evaluated`: they will be written again."""
    path = out / FILE
    rows = read_json_lines(path)
    kept = [row for row in rows if row["step"] <= (step if "loss" in row else evaluated)]
    if path.exists() and len(kept) < len(rows):
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


class Log:
    """Writes each row to `log.jsonl` and, unless switched off, its numbers to TensorBoard."""

    def __init__(self, out: Path, *, step: int, tensorboard: bool) -> None:
        self.path = out / FILE
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides points a killed run wrote after the checkpoint it goes on from
            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def add(self, row: dict[str, Any]) -> None:
        append_json(self.path, row)
        if self.writer is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def note(row: dict[str, Any]) -> str:
    """
    >>> note({"loss": 5.123, "tokens_per_second": 2912.3, "share_of_peak": 0.41})
    'loss 5.123, 2,912 tokens/s, 41 % of peak'
    """
    parts = [f"loss {row['loss']:.3f}", f"{row['tokens_per_second']:,.0f} tokens/s"]
    if row.get("share_of_peak") is not None:
        parts.append(f"{row['share_of_peak']:.0%} of peak".replace("%", " %"))
    return ", ".join(parts)
