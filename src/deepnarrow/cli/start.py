"""Where the command line begins, and what an error looks like.

The path to an answer's first token is kept short: `generate` with plain arguments (quick.py) goes to its work at once,
everything else by way of typer, whose import alone takes as long as reading a small model.
"""

import errno
import os
import sys

from deepnarrow.cli import quick
from deepnarrow.errors import UserError

# Torch then asks Linux for pages of 2 MiB: a training step frees and takes large arrays all the time, and a fifth of it
# went into small pages (docs/log.md). Torch reads this when it first takes memory; elsewhere it means nothing.
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A user's mistake ends with one line and exit code 2, an interrupt with 130."""
    os.environ.setdefault(LARGE_PAGES, "1")
    words = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(run(words) or 0)
    except UserError as error:
        stop(str(error), 2)
    except KeyboardInterrupt as error:
        interrupted(error)
    except BrokenPipeError:  # the reader went away, as in `deepnarrow catalog list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        stop(operating_system_says(error), 2)


def run(words: list[str]) -> int | None:
    given = quick.generate_arguments(words)
    if given is not None:
        from deepnarrow.cli import generating

        generating.run(**given)
        return None
    from deepnarrow.cli import app

    return app.run(words)


def interrupted(error: KeyboardInterrupt) -> None:
    stop(f"{str(error) or 'interrupted'}; run the same command again to go on", 130)


def stop(message: str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"rank {rank}: "
    print(f"deepnarrow: {who}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def operating_system_says(error: OSError) -> str:
    where = f": {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{where}; free some space and run the same command again, finished parts are kept"
    return f"{error.strerror or error}{where}"
