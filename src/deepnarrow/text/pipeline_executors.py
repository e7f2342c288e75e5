"""Running a stage of a pipeline: on this machine, on a Ray cluster, or on a Slurm cluster; the tasks are the same.

datatrove marks each task that has finished (`completions/` in the stage's folder), and runs only the others. Which
executor ran a task leaves no trace in what it wrote.
"""

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import dill
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.progress import progress

ORPHANS = 60.0  # seconds to wait for the workers of a killed build; they notice within one
POLL = 5.0  # seconds between looks at a cluster
TASK_MEMORY = 2**30  # bytes that a task reserves on a Ray cluster
RAY_PATIENCE = 600.0  # seconds for a cluster to make room, by starting machines or ending other work
NO_ROOM = "the Ray cluster has no room for a task (1 CPU, 1 GiB of memory)"
GO_ON = "give the same command when it has, or use --executor local: finished tasks are kept"
SLURM_DEFAULTS = {"partition": "cpu", "time": "24:00:00"}


class Runner(Protocol):
    """Runs every unfinished task of one stage and returns when all are done."""

    def __call__(self, steps: list[Any], tasks: int, folder: Path) -> None: ...


@contextmanager
def local(workers: int, work: Path) -> Iterator[Runner]:
    """Worker processes of this machine, kept from stage to stage.

    datatrove's own `LocalPipelineExecutor.run` keeps a manager process that outlives a kill of its parent and holds
    the parent's locks; here the tasks go to a pool whose workers end with the process that started them.
    """
    os.environ["TQDM_DISABLE"] = "1"  # datatrove's own bars, in the workers; read when tqdm is imported
    work.mkdir(parents=True, exist_ok=True)
    lock = work / "workers.lock"
    wait_for_orphans(lock)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=watch, initargs=(os.getpid(), str(lock)))

    def run(steps: list[Any], tasks: int, folder: Path) -> None:
        executor = LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=str(folder))
        waiting = executor.get_incomplete_ranks()
        data = dill.dumps(executor)
        with progress(folder.name, tasks, done=tasks - len(waiting)) as bar:
            futures: list[Future[None]] = [pool.submit(run_rank, data, rank) for rank in waiting]
            for future in as_completed(futures):
                future.result()
                bar.advance()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def watch(parent: int, lock: str) -> None:
    """At the start of a worker: end when the parent does, and hold the lock as long as this process lives."""
    logger.disable("datatrove")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)  # closed by the end of the process alone
    fcntl.flock(handle, fcntl.LOCK_SH)

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run_rank(data: bytes, rank: int) -> None:
    dill.loads(data)._run_for_rank(rank, local_rank=1)


def wait_for_orphans(lock: Path) -> None:
    """Two writers of one file would spoil it: wait until the workers of an earlier, killed build are gone."""
    with lock.open("a") as file:
        until = time.monotonic() + ORPHANS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(
                        f"workers of an earlier build still write below {lock.parent}; wait for them or end them"
                    ) from None
                time.sleep(0.1)


@contextmanager
def ray(workers: int, work: Path) -> Iterator[Runner]:
    """The Ray cluster that RAY_ADDRESS names, else one started here for the length of the build.

    Each task of a stage is a task of Ray, `workers` of them at once; Ray runs those of a lost machine again.

    datatrove's own `RayPipelineExecutor` is not used: it places tasks from threads whose errors it never looks at, and
    then waits for ever. A deprecation warning of Ray, turned into an error as tests do, is enough.
    """
    try:
        import ray as library
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install 'deepnarrow[data]'") from None
    logger.disable("datatrove")
    address = os.environ.get("RAY_ADDRESS")
    started = not library.is_initialized()
    if started and address:
        library.init(address=address, log_to_driver=False)
    elif started:
        library.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    needs = library.remote(num_cpus=1, memory=TASK_MEMORY)

    def run(steps: list[Any], tasks: int, folder: Path) -> None:
        executor = LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=str(folder))
        waiting = executor.get_incomplete_ranks()
        data, task = library.put(dill.dumps(executor)), needs(run_rank)
        running: list[Any] = []
        with progress(folder.name, tasks, done=tasks - len(waiting)) as bar:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(task.remote(data, waiting.pop(0)))
                done, running = library.wait(running, timeout=RAY_PATIENCE)
                if not done and not any(has_room(node) for node in library.nodes()):
                    raise UserError(f"{NO_ROOM}: its machines are gone, or too small; {GO_ON}")
                bar.advance(len(done))
        require_complete(executor, folder, f"see {folder}/logs")

    try:
        try:
            library.get(needs(nothing).remote(), timeout=RAY_PATIENCE)
        except library.exceptions.GetTimeoutError:
            have = library.cluster_resources()
            there = f"{have.get('CPU', 0):g} CPUs and {have.get('memory', 0) / 2**30:.1f} GiB, some perhaps in use"
            raise UserError(f"{NO_ROOM} within {RAY_PATIENCE:g} seconds (it has {there}); {GO_ON}") from None
        yield run
    finally:
        if started:
            library.shutdown()


def nothing() -> None:
    """A first task, to see that the cluster runs any."""


def has_room(node: Mapping[str, Any]) -> bool:
    """Whether a machine, as Ray describes it, could run a task if it did nothing else.

    >>> has_room({"Alive": True, "Resources": {"CPU": 2.0, "memory": 5e9}})
    True
    >>> has_room({"Alive": True, "Resources": {"memory": 5e9}})
    False
    """
    resources = node["Resources"]
    return bool(node["Alive"] and resources.get("CPU", 0) >= 1 and resources.get("memory", 0) >= TASK_MEMORY)


@contextmanager
def slurm(workers: int, work: Path, options: Mapping[str, str]) -> Iterator[Runner]:
    """Job arrays, one for each stage; this process submits them and waits. `options` go to sbatch."""
    logger.disable("datatrove")
    chosen = {**SLURM_DEFAULTS, **options}
    named = {"partition": chosen.pop("partition"), "time": chosen.pop("time"), "qos": chosen.pop("qos", "")}

    def run(steps: list[Any], tasks: int, folder: Path) -> None:
        executor = SlurmPipelineExecutor(
            steps,
            tasks=tasks,
            workers=workers,
            logging_dir=str(folder),
            job_name=f"deepnarrow-{folder.name}",
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
            sbatch_args=dict(chosen),
            **named,
        )
        job = folder / "job.json"  # so that the same command, given again, waits for the jobs that already run
        known = read_json(job)["id"] if job.exists() else None
        if executor.get_incomplete_ranks() and not (known and in_queue(known)):
            try:
                executor.run()
            except (OSError, subprocess.CalledProcessError) as error:
                raise UserError(f"cannot submit to Slurm ({error}); is sbatch on this machine?") from None
            known = executor.job_id
            write_json(job, {"id": known})
        waiting = tasks
        with progress(folder.name, tasks) as bar:
            while waiting:
                queued = known is not None and in_queue(known)  # asked before counting, lest a task end in between
                left = len(executor.get_incomplete_ranks())
                bar.advance(waiting - left)
                waiting = left
                if not queued:
                    break
                time.sleep(POLL)
        require_complete(executor, folder, f"see {folder}/slurm_logs")

    yield run


def in_queue(job: str) -> bool:
    """Whether Slurm still has the job, waiting or running."""
    try:
        found = subprocess.run(["squeue", "--noheader", "--jobs", str(job)], capture_output=True, text=True)
    except OSError:
        raise UserError("cannot ask Slurm about its jobs: squeue is not on this machine") from None
    return found.returncode == 0 and bool(found.stdout.strip())


def require_complete(executor: Any, folder: Path, where: str) -> None:
    if left := executor.get_incomplete_ranks():
        said = sorted((folder / "failures").glob("*.txt"))
        reason = said[0].read_text("utf-8") if said else f"{len(left)} task(s) of {folder.name} failed: {where}"
        raise UserError(reason)
