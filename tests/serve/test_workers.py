"""Workers at a real port: places freed, queues that are full, deadlines, engines that die."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepnarrow.runtime.engine import Chosen, Engine
from deepnarrow.runtime.options import Greedy
from deepnarrow.runtime.search import generate
from deepnarrow.serve import workers
from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.channel import Channel
from deepnarrow.serve.jobs import Broken, Job, Ready
from deepnarrow.serve.opening import Spec, open_served
from deepnarrow.serve.scheduler import Room
from deepnarrow.serve.worker import FAILED, work
from deepnarrow.serve.workers import Rate
from deepnarrow.text.byte_tokenizer import ByteTokenizer

from .conftest import Running, running

LONG = 20000  # tokens: many seconds


@pytest.fixture(scope="module")
def narrow(folder: Path) -> Iterator[Running]:
    """Room for one answer at a time, and for two that wait."""
    with running(folder, room=Room(rows=1), allowed=Allowed(new_tokens=LONG, waiting=2)) as found:
        yield found


def ask(server: Running, text: str, tokens: int, seconds: float | None = None, **more: Any) -> httpx.Response:
    headers = {} if seconds is None else {"X-Request-Timeout": str(seconds)}
    body = {"inputs": text, "parameters": {"max_new_tokens": tokens, "details": False} | more}
    return httpx.post(server.url + "/generate", json=body, headers=headers, timeout=120)


def wanted(engine: Engine, text: str, tokens: int) -> str:
    tokenizer = ByteTokenizer()
    [[output]] = generate(engine, [[*tokenizer.encode(text), 1]], Greedy(), max_tokens=tokens)
    return tokenizer.decode(output.ids)


def wait_for(test: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


class Held:
    """A request that runs until it is given up."""

    def __init__(self, server: Running, route: str = "/generate_stream") -> None:
        self.server = server
        self.client = httpx.Client(timeout=120)
        body = {"inputs": "held", "parameters": {"max_new_tokens": LONG}}
        self.context = self.client.stream("POST", server.url + route, json=body)

    def __enter__(self) -> "Held":
        self.answer = self.context.__enter__()
        self.lines = self.answer.iter_lines()
        assert next(self.lines).startswith("data:")
        return self

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(None, None, None)
        self.client.close()


def test_a_client_that_leaves_a_stream_frees_its_place(narrow: Running, engine: Engine) -> None:
    cancelled = narrow.worker.counts.cancelled
    with Held(narrow):
        assert narrow.worker.active == 1
    wait_for(lambda: narrow.worker.active == 0)
    assert narrow.worker.counts.cancelled == cancelled + 1
    assert ask(narrow, "next", 5).json()["generated_text"] == wanted(engine, "next", 5)
    wait_for(lambda: narrow.worker.load.rows == 0)


def test_a_client_that_leaves_before_its_answer_frees_its_place(narrow: Running, engine: Engine) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            narrow.url + "/generate", json={"inputs": "x", "parameters": {"max_new_tokens": LONG}},
            timeout=httpx.Timeout(10, read=0.3),
        )  # fmt: skip
    wait_for(lambda: narrow.worker.active == 0)
    assert ask(narrow, "next", 5).json()["generated_text"] == wanted(engine, "next", 5)


def test_a_full_queue_refuses_with_a_time_to_come_again(narrow: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        with Held(narrow):
            waiting = [pool.submit(ask, narrow, "waits", 3) for _ in range(2)]
            wait_for(lambda: narrow.worker.waiting == 2)
            before = narrow.worker.counts.refused
            refused = ask(narrow, "one too many", 3)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error_type"] == "overloaded"
            openai = httpx.post(narrow.url + "/v1/completions", json={"model": "tiny", "prompt": "x"})
            assert openai.status_code == 429
            assert openai.json()["error"]["code"] == "rate_limit_exceeded"
            assert narrow.worker.counts.refused == before + 2
        assert [one.result().status_code for one in waiting] == [200, 200]


def test_a_request_of_several_is_taken_whole_or_not_at_all(narrow: Running) -> None:
    refused = httpx.post(narrow.url + "/v1/embeddings", json={"model": "tiny", "input": ["a", "b", "c"]})
    assert refused.status_code == 429
    assert narrow.worker.waiting == narrow.worker.active == 0


def test_deadlines_while_waiting_and_while_answering(narrow: Running) -> None:
    with Held(narrow):
        late = ask(narrow, "waits", 3, 0.3)
        assert late.status_code == 504
        assert late.json()["error_type"] == "timeout"
    wait_for(lambda: narrow.worker.active == 0)
    late = ask(narrow, "takes long", LONG, 0.5)
    assert late.status_code == 504
    stream = httpx.post(
        narrow.url + "/generate_stream", json={"inputs": "x", "parameters": {"max_new_tokens": LONG}},
        headers={"X-Request-Timeout": "0.5"}, timeout=60,
    )  # fmt: skip
    assert stream.status_code == 200
    assert '"error_type":"timeout"' in stream.text.strip().splitlines()[-1]
    wait_for(lambda: narrow.worker.active == 0)
    for wrong in ("x", "-1", "nan", "inf"):
        found = httpx.post(narrow.url + "/generate", json={"inputs": "x"}, headers={"X-Request-Timeout": wrong})
        assert found.status_code == 422


def test_what_waits_longer_than_it_may_is_refused_at_once() -> None:
    rate = Rate()
    assert rate.seconds(100) == 0.0  # nothing is known
    rate.begin(0.0)
    for now in (1.0, 2.0):
        rate.add(now, 50)
    assert rate.seconds(100) == pytest.approx(2.0)
    rate.begin(1000.0)  # a pause is no work
    rate.add(1001.0, 50)
    assert rate.seconds(100) == pytest.approx(2.0)


def test_a_killed_worker_loses_only_what_it_held(folder: Path, engine: Engine) -> None:
    with running(folder, room=Room(rows=1), allowed=Allowed(new_tokens=LONG)) as server, ThreadPoolExecutor(4) as pool:
        with Held(server) as held:
            waiting = [pool.submit(ask, server, f"waits {number}", 4) for number in range(3)]
            wait_for(lambda: server.worker.waiting == 3)
            pid = server.worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            *_, last = [line for line in held.lines if line]
            assert '"error_type":"generation"' in last
        for number, one in enumerate(waiting):
            assert one.result().json() == {"generated_text": wanted(engine, f"waits {number}", 4)}
        assert server.worker.pid != pid
        assert server.worker.counts.restarts == 1
        assert any('"event": "worker ended"' in line and '"held": 1' in line for line in server.log)
        health = httpx.get(server.url + "/health")
        assert health.status_code == 200
        assert health.json()["workers"][0]["restarts"] == 1
        assert 'deepnarrow_worker_restarts_total{worker="tiny"} 1.0' in httpx.get(server.url + "/metrics").text


def test_health_is_not_ready_while_a_worker_starts_again(tiny_again: Running) -> None:
    pid = tiny_again.worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: tiny_again.worker.state != "ready")
    health = httpx.get(tiny_again.url + "/health")
    if tiny_again.worker.state != "ready":
        assert health.status_code == 503
        assert health.json()["error_type"] == "healthcheck"
    wait_for(lambda: httpx.get(tiny_again.url + "/health").status_code == 200)
    assert ask(tiny_again, "x", 2).status_code == 200


def test_deadlines_hold_while_no_worker_can_be_started(tiny_again: Running) -> None:
    worker = tiny_again.worker
    right, pid = worker.spec, worker.pid
    assert pid is not None
    worker.spec = replace(right, model="./nowhere")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: worker.counts.restarts >= 2)
    begun = time.monotonic()
    late = ask(tiny_again, "x", 2, 0.3)
    assert late.status_code == 504
    assert time.monotonic() - begun < 5
    assert httpx.get(tiny_again.url + "/health").status_code == 503
    worker.spec = right
    assert ask(tiny_again, "x", 2).status_code == 200
    assert worker.waiting == worker.active == 0


def test_a_worker_that_is_stuck_is_killed_and_started_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "STALLED", 1.5)
    with running(folder) as server, ThreadPoolExecutor(1) as pool:
        pid = server.worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        asked = pool.submit(ask, server, "x", 2)  # it had not begun, so the next worker has it
        assert asked.result().status_code == 200
        assert server.worker.counts.stalled == 1
        assert server.worker.pid != pid


def test_an_engine_that_fails_names_what_it_held(folder: Path) -> None:
    served = open_served(Spec(model=str(folder), device="cpu", threads=1))
    real, steps = served.engine.step, 0

    def step(*arguments: Any, **options: Any) -> Chosen:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise MemoryError("no more of it")
        return real(*arguments, **options)

    served.engine.step = step  # type: ignore[method-assign]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel, here = Channel(theirs), Channel(ours)
        for number in (1, 2):
            here.send(Job(number=number, ids=(5, 6, 1), max_tokens=9))
        room = Room(rows=1)
        assert work(served, Spec(model="", room=room), channel) == FAILED
        told = here.receive()
    assert isinstance(told[0], Ready)
    assert isinstance(told[-1], Broken)
    assert (told[-1].held, told[-1].error) == ([1], "MemoryError")  # the other one waits for the next engine


@pytest.fixture
def tiny_again(folder: Path) -> Iterator[Running]:
    with running(folder) as found:
        yield found


def test_metrics_split_where_time_goes(tiny: Running) -> None:
    ask(tiny, "metrics", 8)
    ask(tiny, "metrics", 8)
    text = httpx.get(tiny.url + "/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    for name in ("queue", "encode", "first_token", "token", "input"):
        assert float(values[f'deepnarrow_{name}_seconds_count{{model="tiny"}}']) >= 2
    assert float(values['deepnarrow_cache_hits_total{worker="tiny"}']) >= 1
    assert float(values['deepnarrow_up{worker="tiny"}']) == 1
    assert float(values['deepnarrow_requests_total{route="/generate",status="200"}']) >= 2
    assert float(values['deepnarrow_steps_total{worker="tiny"}']) > 0
