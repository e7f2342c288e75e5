"""One engine in a process of its own: jobs come in by a channel, news go out; `python -m deepnarrow.serve.worker`.

If the engine raises, what it held is named and the process ends; if it crashes or is killed, the channel closes. Either
way the server starts another. When the server is gone the channel closes too, and the worker ends.
"""

import gc
import os
import signal
import socket
import sys
import time
import traceback

from deepnarrow.errors import UserError
from deepnarrow.serve.channel import Channel
from deepnarrow.serve.jobs import Broken, Cancel, Job, News, NotReady, Ready
from deepnarrow.serve.opening import Served, Spec, open_served
from deepnarrow.serve.rules import rule_maker
from deepnarrow.serve.scheduler import Scheduler

HEARTBEAT = 1.0  # seconds between news at most while there is work
FAILED = 3  # exit status behind a failed engine


def main(descriptor: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl C at a terminal is for the server, which lets work finish
    channel = Channel(socket.socket(fileno=descriptor))
    try:
        [spec] = channel.receive(wait=None)
        served = opened(spec, channel)
        gc.freeze()  # what is there now stays; collections need not walk it
        return work(served, spec, channel) if served else 2
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0


def opened(spec: Spec, channel: Channel) -> Served | None:
    try:
        return open_served(spec)
    except UserError as error:
        channel.send(NotReady(str(error)))
    except Exception as error:
        traceback.print_exc()
        channel.send(NotReady(f"{spec.model} could not be opened: {type(error).__name__}: {error}"))
    return None


def work(served: Served, spec: Spec, channel: Channel) -> int:
    maker, kinds = rule_maker(served.tokenizer, served.engine.shape.vocab)
    scheduler = Scheduler(
        served.engine, served.tokenizer, spec.room, prompts=served.prompts, own=served.own, constraints=maker
    )
    lengths = {name: len(vectors) for name, vectors in served.prompts.items()}
    channel.send(Ready(served.engine.name, served.engine.shape, served.tokenizer, lengths, kinds))
    told = time.monotonic()
    while True:
        for message in channel.receive(wait=None if scheduler.idle else 0.0):
            if isinstance(message, Job):
                scheduler.submit(message)
            elif isinstance(message, Cancel):
                scheduler.cancel(message.number)
        begun = scheduler.let_in()
        if begun:
            channel.send(News(begun, scheduler.load))
        try:
            events = scheduler.work()
        except Exception as error:
            traceback.print_exc()
            channel.send(Broken(scheduler.held, type(error).__name__))
            return FAILED
        now = time.monotonic()
        if events or scheduler.idle or now - told > HEARTBEAT:
            channel.send(News(events, scheduler.load))
            told = now


if __name__ == "__main__":
    status = main(int(sys.argv[1]))
    sys.stderr.flush()
    os._exit(status)  # threads of libraries and their locks need not be unwound
