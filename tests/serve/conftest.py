"""A tiny model with random weights, converted once, and servers over it at real ports."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.engine import Engine
from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.http import Server, use_log
from deepnarrow.serve.keys import Keys
from deepnarrow.serve.logs import Log
from deepnarrow.serve.opening import Spec, open_served
from deepnarrow.serve.scheduler import Room
from deepnarrow.serve.workers import Worker
from deepnarrow.shapes.shape import parse
from deepnarrow.text.byte_tokenizer import ByteTokenizer

SHAPE = "tiny-nl2-dm64-ff128-kv16-v384"


def made(seed: int = 0) -> T5:
    model = T5(parse(SHAPE))
    initialise(model, seed=seed)
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Converted where the native library is there, so that a worker opens it without torch."""
    from deepnarrow.hub.native import write_folder
    from deepnarrow.model.folder import Opened, save_model
    from deepnarrow.runtime.native import usable

    where = tmp_path_factory.mktemp("served") / "tiny"
    model = made()
    if usable():
        write_folder(Opened(model, ByteTokenizer(), model.shape, "tiny"), where, "float32")
    else:
        save_model(model, ByteTokenizer(), where)
    return where


@pytest.fixture(scope="session")
def engine(folder: Path) -> Engine:
    """What the workers run, here, for the answers they should give."""
    return open_served(Spec(model=str(folder), device="cpu", threads=1)).engine


class Running:
    """A server in a thread."""

    def __init__(self, server: Server, out: io.StringIO) -> None:
        self.server, self.out = server, out

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def worker(self) -> Worker:
        return self.server.workers[0]

    @property
    def log(self) -> list[str]:
        return self.out.getvalue().splitlines()


@contextmanager
def running(
    folder: Path,
    *,
    room: Room | None = None,
    allowed: Allowed | None = None,
    keys: Keys | None = None,
    texts: bool = False,
) -> Iterator[Running]:
    allowed = allowed or Allowed(new_tokens=20000)
    out = io.StringIO()
    log = Log(out, texts=texts)
    use_log(log)
    spec = Spec(model=str(folder), device="cpu", threads=1, room=room or Room())
    worker = Worker("tiny", spec, most_waiting=allowed.waiting)
    server = Server([worker], port=0, allowed=allowed, keys=keys, log=log)
    problems: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(server.run(signals=False))
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and not server.server.started:
        thread.join(0.01)
    try:
        if problems:
            raise problems[0]
        yield Running(server, out)
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with running(folder) as found:
        yield found
