"""Processes for the tests of several ranks and of kills. Each job forks, so that torch is imported once for all.

    python ranks_at_work.py FOLDER     reads FOLDER/plan.json, a list of jobs, and writes FOLDER/outcome.json

A job is {"size": ranks, "runs": [run, ...]} and, to be killed, "kill": {"after": seconds} of training, or
{"during": pattern}, as soon as a file of that pattern is in the run's checkpoints. A run is {"into": folder's name,
"config": changes, "execution": how, "stop": step of a Ctrl-C to rank 1, "packed": several examples to a row}; or
one of test_adapt.py: {"into": folder's name, "tune": kind, "config": changes}.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
from test_adapt import config as adapt_config
from test_adapt import tune
from test_loop import config, pairs, run

from deepnarrow.text.batches import Batch, PairBatches
from deepnarrow.train.interrupt import Interrupted
from deepnarrow.train.parallel import Execution

GATED = "tiny-dm32-ff64-kv16-nh4-kh2-nl2-v512-untied-geglu"
USUAL = {"batch": 6, "steps": 4, "save_every": 2, "log_every": 1, "eval_every": 2}  # parts of 3 rows, for 2 ranks
PATIENCE = 120.0  # seconds until a job counts as hung


def carry_out(what: dict[str, Any], folder: Path) -> None:
    """One run, in this process, which may be one of several ranks."""
    if "tune" in what:
        tune(adapt_config(what["tune"], **what["config"]), folder / what["into"])
        return
    made = config(**{**USUAL, **what.get("config", {})})
    batches = PairBatches(sources=[pairs()], seed=made.seed, batch=made.batch)
    stop = what.get("stop")

    def asked(n: int) -> Batch:
        if n == stop and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGINT)
        return packed(batches(2 * n), batches(2 * n + 1)) if what.get("packed") else batches(n)

    held_out = [PairBatches(sources=[pairs()], seed=9, batch=7)(0)]
    execution = Execution(**what.get("execution", {}))
    try:
        run(made, folder / what["into"], held_out=held_out, execution=execution, batches=asked)
    except Interrupted as stopped:
        (folder / what["into"] / f"stopped-{os.environ.get('RANK', '0')}").write_text(str(stopped.step))


def packed(first: Batch, second: Batch) -> Batch:
    """Rows of two examples, one behind the other."""
    import numpy as np

    def both(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        marks = [np.where(side != 0, number, 0) for number, side in ((1, one), (2, two))]
        return np.concatenate([one, two], axis=1), np.concatenate(marks, axis=1)

    (inputs, input_marks), (targets, target_marks) = (
        both(first.inputs, second.inputs),
        both(*(b.targets for b in (first, second))),
    )
    return Batch(inputs, targets, input_marks, target_marks)


def rank(number: int, size: int, job: int, runs: list[dict[str, Any]], folder: Path) -> None:
    """A forked process. It never returns."""
    code = 1
    try:
        torch.set_num_threads(1)
        if size > 1:
            os.environ.update(RANK=str(number), WORLD_SIZE=str(size))
            meeting = f"file://{folder / f'meeting-{job}'}"
            dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=size)
        for what in runs:
            carry_out(what, folder)
        code = 0
    except BaseException:
        (folder / f"error-{job}-{number}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def work(number: int, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    out = folder / job["runs"][0]["into"]
    log = out / "log.jsonl"
    before = log.stat().st_size if log.exists() else 0
    processes = []
    for each in range(job["size"]):
        process = os.fork()
        if process == 0:
            rank(each, job["size"], number, job["runs"], folder)
        processes.append(process)
    found: dict[str, Any] = {}
    kill, began = job.get("kill"), time.monotonic()
    waiting, codes = list(processes), []
    since: float | None = None
    while waiting:
        for process in list(waiting):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                waiting.remove(process)
                codes.append(os.waitstatus_to_exitcode(status))
        if since is None and log.exists() and log.stat().st_size != before:
            since = time.monotonic()
        now = time.monotonic()
        late = now - began > PATIENCE
        due = kill and "after" in kill and since is not None and now - since >= kill["after"]
        saving = kill and "during" in kill and next((out / "checkpoints").glob(kill["during"]), None) is not None
        if (due or saving or late) and waiting:
            for process in waiting:
                os.kill(process, signal.SIGKILL)
            found = {"killed": not late, "half_written": bool(list((out / "checkpoints").glob(".step-*")))}
            kill = None
        time.sleep(0.0005 if kill and "during" in kill else 0.002)
    return {**found, "codes": codes, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    outcome = [work(number, job, place) for number, job in enumerate(json.loads((place / "plan.json").read_text()))]
    (place / "outcome.json").write_text(json.dumps(outcome))
