"""Many commands without a new Python and torch for each: a process that has imported them, and forks for each command.

It reads one command a line, `{"words": [...], "folder": "...", "stdout": "FILE", "stderr": "FILE"}`, and answers with
the exit code. What runs is the whole command line, as `deepnarrow WORDS` typed in that folder: arguments, streams,
environment and exit code are a process's own. What a start costs, or imports, is for tests with a real one.
"""

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "torch._dynamo",  # which an optimizer imports
    "torch.utils.tensorboard",
    "deepnarrow.cli.app",
    "deepnarrow.measure.evaluate",
    "deepnarrow.train.finetune",
    "deepnarrow.train.pretrain",
)


class Forking:
    """Runs commands one after another: `with Forking(environment, scratch) as run: run(["shapes", "tiny"], folder)`."""

    def __init__(self, environment: dict[str, str], scratch: Path) -> None:
        self.scratch = scratch
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(self, words: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        said = {stream: self.scratch / stream for stream in ("stdout", "stderr")}
        order = {"words": [*map(str, words)], "folder": str(cwd)} | {stream: str(path) for stream, path in said.items()}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(path.read_text("utf-8") for path in said.values()))

    def __enter__(self) -> "Forking":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate(timeout=60)  # at the end of its input it ends


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            become(order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(order: dict[str, Any]) -> NoReturn:
    """The command, in this process. At its end what was imported is not taken apart, which would take half a second."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(order["stdout"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(os.open(order["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.chdir(order["folder"])
    sys.argv = ["deepnarrow", *order["words"]]
    code: object = 1
    try:
        importlib.import_module("deepnarrow.cli").main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()
