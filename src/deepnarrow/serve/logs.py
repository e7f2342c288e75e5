"""One JSON object a line on standard error, without what users wrote."""

import json
import logging
import sys
import time
from typing import Any, TextIO


class Log:
    """`texts` lets what users wrote into the log; nothing else does."""

    def __init__(self, out: TextIO | None = None, *, texts: bool = False) -> None:
        self.out, self.texts = out or sys.stderr, texts

    def __call__(self, event: str, **fields: Any) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        line = {"time": stamp, "event": event} | {key: value for key, value in fields.items() if value is not None}
        try:
            print(json.dumps(line, ensure_ascii=True, default=str), file=self.out, flush=True)
        except (OSError, ValueError):  # nobody reads the log any longer: serving goes on
            return


class LogHandler(logging.Handler):
    """What libraries report, on the same lines."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        where = None
        if error is not None and error.__traceback__:
            last = error.__traceback__
            while last.tb_next:
                last = last.tb_next
            where = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
        name = type(error).__name__ if error is not None else None  # its message might quote a user
        self.log("problem", logger=record.name, message=record.msg, error=name, where=where)
