"""The folder of a run: one process at a time, one config for ever, and `run.json` to say what it is.

RUN/run.json   {format, kind, config, shape, origin, versions, machine, commit, started}
RUN/log.jsonl, tensorboard/, checkpoints/, checkpoints.json
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepnarrow import machine
from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.train.config import Config, differences
from deepnarrow.train.schedule import OPEN_ENDED, open_ended

FORMAT = 1
FILE = "run.json"


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the run for this process. The operating system lets go of it however the process ends."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give --out a folder, new or of a run to go on with")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two processes on one run are not noticed there
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {out}; wait for it, stop it, or use another --out"
            ) from None
        yield


def enter(out: Path, config: Config, *, kind: str, origin: Mapping[str, Any], step: int | None) -> None:
    """Start the run, or make sure that going on with it means the same thing. `step` is its last checkpoint's.

    Raises UserError where `out` is something else, or was started with another config, other data or another model.
    """
    path = out / FILE
    if not path.exists():
        foreign = sorted(item.name for item in out.iterdir() if not item.name.startswith("."))
        if foreign:
            raise UserError(
                f"{out} holds {foreign[0]!r} but no run.json, so it is no run; choose a new folder for --out"
            )
        write_json(path, describe(config, kind, origin))
        return
    found = read_run(out)
    if found["kind"] != kind:
        raise UserError(f"{out} is a {found['kind']} run; choose another --out to {kind}")
    old = Config.from_json(found["config"])
    check_same(out, old, config, step)
    before, now = found["origin"].get("fingerprints", {}), origin.get("fingerprints", {})
    changed = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
    if changed:
        raise UserError(f"the {' and the '.join(changed)} changed since {out} was started; give a new --out")
    if old != config:
        write_json(path, {**found, "config": config.to_json()})


def check_same(out: Path, old: Config, new: Config, step: int | None) -> None:
    """Everything that decides the weights must be as it was, but `steps` may move where the schedule allows it."""
    names = differences(old, new)
    if names == ["steps"]:
        if not open_ended(new):
            ramp = " with its final ramp" if new.ramp_down else ""
            raise UserError(
                f"{out} was started with steps {old.steps}, and its {new.schedule} schedule{ramp} was laid out for "
                f"them; only {' and '.join(OPEN_ENDED)} without a ramp can be prolonged: keep --steps {old.steps}, "
                "or start a new --out"
            )
        if step is not None and step > new.steps:
            raise UserError(f"{out} is already at step {step}, past the {new.steps} steps asked for")
        return
    if names:
        changes = ", ".join(f"{name} (was {getattr(old, name)}, now {getattr(new, name)})" for name in names)
        raise UserError(f"{out} was started with another config: {changes}; give the same to go on, or a new --out")


def read_run(out: Path) -> dict[str, Any]:
    found = read_json(out / FILE)
    if not isinstance(found, dict) or found.get("format") != FORMAT or "config" not in found:
        raise UserError(f"{out / FILE} is not a run of format {FORMAT}; was it written by another version?")
    return found


def describe(config: Config, kind: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": kind,
        "config": config.to_json(),
        "shape": config.shape,
        "origin": dict(origin),
        "versions": machine.versions(),
        "machine": machine.describe(),
        "commit": machine.commit(),
        "started": machine.today(),
    }
