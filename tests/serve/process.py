"""A small model with a real vocabulary, and `deepnarrow serve` over it as a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from deepnarrow.model.folder import save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text import builtin
from deepnarrow.text.train_tokenizer import train

ANSWERS = 0.02  # weights tied to embeddings of full size repeat the last token; with these an answer is of its input


def save_small(folder: Path) -> Path:
    """A model of random weights that hardly ever ends by itself, its vocabulary trained on the language reference."""
    tokenizer = train((topic.text for topic in builtin.topics()), vocab=512, max_bytes=100_000)
    model = T5(parse("tiny-nl2-v512"))
    initialise(model, 0)
    with torch.no_grad():
        model.embedding.weight.mul_(ANSWERS)
    save_model(model, tokenizer, folder)
    return folder


@contextmanager
def serving(words: list[str], log: Path, **environment: str) -> Iterator[str]:
    """`deepnarrow serve WORDS` at a free port of this machine, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deepnarrow", "serve", *words, "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
        try:
            wait_for(url + "/health", running, log)
            yield url
        finally:
            running.terminate()
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_for(url: str, running: subprocess.Popen, log: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert running.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer:\n{log.read_text()[-3000:]}")
