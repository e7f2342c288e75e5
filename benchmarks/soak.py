"""Minutes of everything that a server meets at once, with every answer checked.

    python benchmarks/soak.py --minutes 10 --shape small --tokenizer FOLDER
    python benchmarks/soak.py --minutes 1 --model runs/corrector

Against one `deepnarrow serve` on loopback, all the time: plain requests, streams, batches through /v1/completions and
embeddings, of 4 to 160 words and of 4, 16 or 48 tokens; clients that go away in the middle; clients that read slowly;
bodies that are broken, wrong, too large or never finished. At a fifth, a third and two fifths of the time the process
that runs the model is killed with SIGKILL. Every answer is compared with what `deepnarrow generate` answers offline.

right       the same text as offline         wrong    another one: there must be none
told        an error that says so, as it may be for what a killed process had begun; asked again
refused     429; asked again when it says    lost     neither an answer nor an error: there must be none
paused      as lost, but these very clients were stopped meanwhile, as by SIGSTOP or a machine that slept

Memory (RSS, and open files) of the server's process and the model's is taken every second; its trend is that of the
second half of the time. At the end the gauges must say that nothing is left running, and the server must end by itself
on SIGTERM with a request under way, which is answered. The last line is JSON; the exit status is 1 if any of it failed.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

import aiohttp
from serve_load import our_command, ours, prose, random_model, server_process

from deepnarrow import machine

TOKENS = (4, 16, 48)
KILLS = (0.2, 1 / 3, 0.4)  # of the time
CLIENTS = {"plain": 6, "stream": 4, "batch": 1, "embed": 1, "leave": 4, "slow": 2, "broken": 2}
PATIENCE = 60.0  # seconds after which what was not answered is lost
PAUSE = 10.0  # seconds that this process was not run at all: somebody stopped the machine, or all on it
FLAT = 1.0  # percent of growth in a minute that counts as flat, of the memory at half the time


@dataclass
class Soak:
    url: str
    texts: list[str]
    offline: dict[int, list[str]]  # the answers of each limit of tokens
    end: float
    counts: dict[str, Counter] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    vectors: dict[int, list[float]] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)  # when it was that we ourselves went on after not being run

    def note(self, kind: str, what: str, example: str = "") -> None:
        self.counts.setdefault(kind, Counter())[what] += 1
        if what in ("wrong", "lost", "failed") and len(self.examples) < 10:
            self.examples.append(f"{kind} {what}: {example[:300]}")

    def total(self, what: str) -> int:
        return sum(counter[what] for counter in self.counts.values())


def main() -> None:
    asked = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = native(asked, folder)
        texts = prose(asked.texts)
        offline = {most: answers(model, texts, most) for most in TOKENS}
        with server_process(our_command(model, asked.threads), folder / "log") as (url, process):
            found = asyncio.run(soak(asked, url, process, texts, offline))
        log = (folder / "log").read_text("utf-8", "replace")
    raised = log.count("Traceback")
    found["tracebacks in the log"] = raised
    failed = [name for name, good in verdicts(found).items() if not good]
    print(table(found))
    if failed:
        print("NOT as it must be: " + ", ".join(failed) + "\n" + "\n".join(found["examples"]))
        print(log[log.index("Traceback") :][:4000] if raised else log[-2000:])
    print(json.dumps({**machine.describe(), "benchmark": "soak", "not as it must be": failed, **found}))
    sys.exit(bool(failed))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape", help="Instead of a model: random weights.")
    parser.add_argument("--tokenizer", type=Path, help="With --shape.")
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--torch", action="store_true", help="Serve with PyTorch in place of the native library.")
    asked = parser.parse_args()
    if (asked.model is None) == (asked.shape is None) or (asked.shape and not asked.tokenizer):
        parser.error("give --model, or --shape and --tokenizer")
    return asked


def native(asked: argparse.Namespace, folder: Path) -> Path:
    model = random_model(asked.shape, asked.tokenizer, folder / "hf") if asked.shape else asked.model
    if asked.torch:
        return model
    ours("export", str(model), "--out", str(folder / "native"), "--to", "native", "--precision", "int8")
    return folder / "native"


def answers(model: Path, texts: list[str], most: int) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-m", "deepnarrow", "generate", str(model), "--file", "-", "--max-tokens", str(most),
         "--json"],
        input="\n".join(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line)["outputs"][0]["text"] for line in found.stdout.splitlines()]


async def soak(
    asked: argparse.Namespace, url: str, process: subprocess.Popen, texts: list[str], offline: dict[int, list[str]]
) -> dict:
    loop = asyncio.get_running_loop()
    start, seconds = loop.time(), 60 * asked.minutes
    state = Soak(url=url, texts=texts, offline=offline, end=start + seconds)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        await first_vectors(state, session)
        clients: dict[str, Callable[[Soak, aiohttp.ClientSession, random.Random], Awaitable[None]]] = {
            "plain": plain, "stream": stream, "batch": batch, "embed": embed, "leave": leave, "slow": slow,
            "broken": broken,
        }  # fmt: skip
        memory = asyncio.create_task(watch(state, session, process))
        killer = asyncio.create_task(kill(state, session, start, seconds))
        cpu = time.process_time()
        await asyncio.gather(
            *(
                repeat(state, session, random.Random(f"{name} {number}"), clients[name])
                for name, many in CLIENTS.items()
                for number in range(many)
            )
        )
        cpu = time.process_time() - cpu
        await killer
        samples = await memory
        left = await settled(session, url)
        ending = await shut_down(state, session, process)
    times = sorted(state.times)
    return {
        "minutes": asked.minutes, "model": asked.shape or asked.model.name,
        "counts": {kind: dict(counter) for kind, counter in sorted(state.counts.items())},
        "requests": sum(sum(counter.values()) for counter in state.counts.values()),
        "right": state.total("right"), "wrong": state.total("wrong"), "lost": state.total("lost"),
        "told": state.total("told"), "refused": state.total("refused"), "failed": state.total("failed"),
        "paused": state.total("paused"), "pauses": len(state.pauses),
        "kills": len(state.killed), "recoveries s": [round(one, 2) for one in state.recoveries],
        "p50 ms": round(1000 * median(times)), "p99 ms": round(1000 * times[int(0.99 * len(times))]),
        **trend(samples, start, seconds), "left running": left, **ending, "client CPU": round(cpu / seconds, 3),
        "examples": state.examples,
    }  # fmt: skip


# ---- the clients ----


async def repeat(
    state: Soak,
    session: aiohttp.ClientSession,
    chosen: random.Random,
    one: Callable[[Soak, aiohttp.ClientSession, random.Random], Awaitable[None]],
) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < state.end:
        start = loop.time()
        try:
            await one(state, session, chosen)
        except TimeoutError:
            held = any(end > start for end in state.pauses)
            state.note(one.__name__, "paused" if held else "lost", f"nothing within {PATIENCE} s")
        except aiohttp.ClientError as error:
            state.note(one.__name__, "lost", repr(error))
        await asyncio.sleep(chosen.expovariate(20))


def body(state: Soak, chosen: random.Random) -> tuple[dict, str]:
    """A request and its right answer."""
    number, most = chosen.randrange(len(state.texts)), chosen.choice(TOKENS)
    return {"inputs": state.texts[number], "parameters": {"max_new_tokens": most}}, state.offline[most][number]


def judge(state: Soak, kind: str, text: str, right: str) -> None:
    state.note(kind, "right" if text == right else "wrong", f"{text!r} for {right!r}")


async def refused(state: Soak, kind: str, answer: aiohttp.ClientResponse) -> bool:
    """Whether there is no answer but an honest error."""
    if answer.status == 200:
        return False
    text = await answer.text()
    if answer.status == 429:
        state.note(kind, "refused")
        await asyncio.sleep(float(answer.headers["Retry-After"]))
    elif answer.status in (500, 503) and "error" in json.loads(text):
        state.note(kind, "told" if near_a_kill(state) else "failed", text)
        await asyncio.sleep(0.2)
    else:
        state.note(kind, "failed", f"{answer.status} {text}")
    return True


def near_a_kill(state: Soak) -> bool:
    now = time.monotonic()
    return any(0 <= now - when < 30 for when in state.killed)


async def plain(state: Soak, session: aiohttp.ClientSession, chosen: random.Random) -> None:
    asked, right = body(state, chosen)
    start = time.monotonic()
    async with session.post(state.url + "/generate", json=asked) as answer:
        if not await refused(state, "plain", answer):
            judge(state, "plain", (await answer.json())["generated_text"], right)
            state.times.append(time.monotonic() - start)


async def stream(state: Soak, session: aiohttp.ClientSession, chosen: random.Random, pause: float = 0.0) -> None:
    kind = "slow" if pause else "stream"
    asked, right = body(state, chosen)
    async with session.post(state.url + "/generate_stream", json=asked) as answer:
        if await refused(state, kind, answer):
            return
        rest, last, written = b"", None, ""
        while True:
            piece = await answer.content.read(64 if pause else 65536)
            if not piece:
                break
            rest += piece
            *blocks, rest = rest.split(b"\n\n")
            for block in blocks:
                if not block.startswith(b"data:"):
                    continue
                event = json.loads(block[5:])
                if "error" in event:
                    state.note(kind, "told" if near_a_kill(state) else "failed", block.decode())
                    return
                last = event
                written += "" if event["token"]["special"] else event["token"]["text"]
            if pause:
                await asyncio.sleep(pause * chosen.random())
        if last is None or last.get("generated_text") is None:
            state.note(kind, "lost", f"the stream ended after {written!r}")
        else:
            judge(state, kind, last["generated_text"], right)


async def slow(state: Soak, session: aiohttp.ClientSession, chosen: random.Random) -> None:
    await stream(state, session, chosen, pause=0.05)


async def batch(state: Soak, session: aiohttp.ClientSession, chosen: random.Random) -> None:
    most = chosen.choice(TOKENS)
    numbers = chosen.sample(range(len(state.texts)), chosen.randint(2, 6))
    name = await model_name(state, session)
    asked = {"model": name, "prompt": [state.texts[number] for number in numbers], "max_tokens": most, "temperature": 0}
    async with session.post(state.url + "/v1/completions", json=asked) as answer:
        if await refused(state, "batch", answer):
            return
        choices = sorted((await answer.json())["choices"], key=lambda one: one["index"])
        for choice, number in zip(choices, numbers, strict=True):
            judge(state, "batch", choice["text"], state.offline[most][number])


async def model_name(state: Soak, session: aiohttp.ClientSession) -> str:
    async with session.get(state.url + "/v1/models") as answer:
        return (await answer.json())["data"][0]["id"]


async def vector(state: Soak, session: aiohttp.ClientSession, number: int) -> list[float] | None:
    asked = {"model": await model_name(state, session), "input": state.texts[number]}
    async with session.post(state.url + "/v1/embeddings", json=asked) as answer:
        if await refused(state, "embed", answer):
            return None
        return (await answer.json())["data"][0]["embedding"]


async def first_vectors(state: Soak, session: aiohttp.ClientSession) -> None:
    """Each alone, on a server that does nothing else."""
    for number in range(8):
        found = await vector(state, session, number)
        assert found
        state.vectors[number] = found


async def embed(state: Soak, session: aiohttp.ClientSession, chosen: random.Random) -> None:
    number = chosen.randrange(8)
    found = await vector(state, session, number)
    if found is not None:
        right = state.vectors[number]
        scale = max(map(abs, right))
        near = len(found) == len(right) and max(abs(a - b) for a, b in zip(found, right, strict=True)) < 0.01 * scale
        state.note("embed", "right" if near else "wrong", f"{found[:3]} for {right[:3]}")


async def leave(state: Soak, session: aiohttp.ClientSession, chosen: random.Random) -> None:
    """Go away: before anything came, or in the middle."""
    asked, _ = body(state, chosen)
    try:
        if chosen.random() < 0.5:
            async with (
                asyncio.timeout(chosen.uniform(0.001, 0.05)),
                session.post(state.url + "/generate", json=asked) as answer,
            ):
                await answer.read()
        else:
            async with session.post(state.url + "/generate_stream", json=asked) as answer:
                for _ in range(chosen.randint(1, 4)):
                    await answer.content.readline()
                answer.close()
    except (TimeoutError, aiohttp.ClientError):
        pass
    state.note("leave", "left")


BROKEN: tuple[tuple[bytes, dict[str, str]], ...] = (
    (b"{", {}),
    (b"", {}),
    (b"[]", {}),
    (b"null", {}),
    (b"\xff\xfe\x00", {}),
    (b'{"inputs": 7}', {}),
    (b'{"inputs": "a", "parameters": {"max_new_tokens": -1}}', {}),
    (b'{"inputs": "a", "parameters": {"max_new_tokens": 1e99}}', {}),
    (b'{"inputs": "a", "parameters": {"temperature": NaN, "do_sample": true}}', {}),
    (b'{"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "(((("}}}', {}),
    (b'{"inputs": "' + b"a " * 2_000_000 + b'"}', {}),
    (b"[" * 100_000, {}),
    (b"inputs=a", {"Content-Type": "application/x-www-form-urlencoded"}),
)


async def broken(state: Soak, session: aiohttp.ClientSession, chosen: random.Random) -> None:
    if chosen.random() < 0.3:
        return await unfinished(state, chosen)
    data, more = chosen.choice(BROKEN)
    path = chosen.choice(("/generate", "/generate_stream", "/v1/completions", "/v1/embeddings"))
    headers = {"Content-Type": "application/json", **more}
    try:
        async with session.post(state.url + path, data=data, headers=headers) as answer:
            await answer.read()
            good = 400 <= answer.status < 500 or (answer.status == 503 and near_a_kill(state))
            state.note("broken", "right" if good else "failed", f"{answer.status} for {data[:80]!r} {path}")
    except aiohttp.ClientError:
        state.note("broken", "right")  # a body that is too large may be hung up on
    await asyncio.sleep(0.05)
    return None


async def unfinished(state: Soak, chosen: random.Random) -> None:
    """What no HTTP library would send."""
    host, port = state.url.removeprefix("http://").split(":")
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    what = chosen.choice(
        (
            head + b'Content-Length: 4000\r\n\r\n{"inputs": "a',
            head + b"Content-Length: -5\r\n\r\n{}",
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        )
    )
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(what)
        await writer.drain()
        async with asyncio.timeout(0.3):
            seen = await reader.read(200)
        good = not seen or seen[9:10] in (b"4",)
        state.note("broken", "right" if good else "failed", f"{seen!r} for {what[:60]!r}")
    except (TimeoutError, ConnectionError):
        state.note("broken", "right")
    finally:
        writer.close()


# ---- what is done to the server, and seen of it ----


async def workers(session: aiohttp.ClientSession, url: str) -> list[dict]:
    async with session.get(url + "/health") as answer:
        return (await answer.json()).get("workers", [])


async def kill(state: Soak, session: aiohttp.ClientSession, start: float, seconds: float) -> None:
    for share in KILLS:
        await asyncio.sleep(max(0.0, start + share * seconds - asyncio.get_running_loop().time()))
        pids = [one["pid"] for one in await workers(session, state.url) if one.get("pid")]
        if not pids:
            state.note("kill", "failed", "/health names no process to kill")
            continue
        when = time.monotonic()
        state.killed.append(when)
        os.kill(pids[0], signal.SIGKILL)
        state.recoveries.append(await recovery(state, session, when))


async def recovery(state: Soak, session: aiohttp.ClientSession, when: float) -> float:
    """Seconds until a request that comes after the kill is answered rightly."""
    asked = {"inputs": state.texts[0], "parameters": {"max_new_tokens": TOKENS[0]}}
    while time.monotonic() - when < PATIENCE:
        try:
            async with session.post(state.url + "/generate", json=asked) as answer:
                if answer.status == 200:
                    judge(state, "after a kill", (await answer.json())["generated_text"], state.offline[TOKENS[0]][0])
                    return time.monotonic() - when
        except (TimeoutError, aiohttp.ClientError):
            pass
        await asyncio.sleep(0.02)
    state.note("after a kill", "lost", f"no answer within {PATIENCE} s")
    return PATIENCE


async def watch(state: Soak, session: aiohttp.ClientSession, process: subprocess.Popen) -> list[dict]:
    """RSS in MB and open files, every second."""
    samples, loop, told = [], asyncio.get_running_loop(), 0.0
    while loop.time() < state.end:
        sample: dict[str, float] = {"time": loop.time()}
        try:
            pids = {"server": process.pid, "model": (await workers(session, state.url))[0]["pid"]}
            for name, pid in pids.items():
                if pid:
                    sample[name], sample[f"{name} files"] = resident(pid), len(os.listdir(f"/proc/{pid}/fd"))
            samples.append(sample)
        except (OSError, LookupError, TimeoutError, aiohttp.ClientError):
            pass  # a process that is just being killed
        if loop.time() - told > 15:
            told = loop.time()
            print(
                f"{state.end - told:5.0f} s left  right {state.total('right')}  wrong {state.total('wrong')}  "
                f"lost {state.total('lost')}  told {state.total('told')}  failed {state.total('failed')}  "
                f"server {sample.get('server', 0):.0f} MB  model {sample.get('model', 0):.0f} MB",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        before = loop.time()
        await asyncio.sleep(1)
        if loop.time() - before > PAUSE:
            state.pauses.append(loop.time())
    return samples


def resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def trend(samples: list[dict], start: float, seconds: float) -> dict[str, float]:
    """Of the second half: memory at its start and end (means of a tenth of the time); growth in percent a minute."""
    found = {}
    for name in ("server", "model"):
        for what in (name, f"{name} files"):
            early, late = (
                [one[what] for one in samples if what in one and low <= (one["time"] - start) / seconds < high]
                for low, high in ((0.5, 0.6), (0.9, 1.0))
            )
            if early and late:
                unit = "" if "files" in what else " MB"
                found[f"{what}{unit} at half"] = round(mean(early), 1)
                found[f"{what}{unit} at end"] = round(mean(late), 1)
                if unit:
                    growth = 100 * (mean(late) / mean(early) - 1) / (0.4 * seconds / 60)
                    found[f"{name} growth % a minute"] = round(growth, 2)
    return found


async def settled(session: aiohttp.ClientSession, url: str) -> float:
    """What the gauges of /metrics say is queued or running, when nothing is asked any more."""
    for _ in range(100):
        async with session.get(url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        left = sum(float(line.split()[-1]) for line in lines if line.startswith(GAUGES))
        if not left:
            return 0
        await asyncio.sleep(0.1)
    return left


GAUGES = ("deepnarrow_waiting{", "deepnarrow_active{", "deepnarrow_rows_active{")


async def shut_down(state: Soak, session: aiohttp.ClientSession, process: subprocess.Popen) -> dict[str, object]:
    """SIGTERM while a request is under way."""
    most = max(TOKENS)
    longest = max(range(len(state.texts)), key=lambda number: len(state.texts[number]))
    asked = {"inputs": state.texts[longest], "parameters": {"max_new_tokens": most}}
    request = asyncio.create_task(plain_text(session, state.url, asked))
    await asyncio.sleep(0.01)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    text = await request
    judge(state, "at the end", text, state.offline[most][longest])
    code = await asyncio.to_thread(process.wait, 30)
    return {
        "exit status": code,
        "shut down s": round(time.monotonic() - start, 2),
        "last answer right": text == state.offline[most][longest],
    }


async def plain_text(session: aiohttp.ClientSession, url: str, asked: dict) -> str:
    try:
        async with session.post(url + "/generate", json=asked) as answer:
            return (await answer.json()).get("generated_text", f"status {answer.status}")
    except aiohttp.ClientError as error:
        return repr(error)


def verdicts(found: dict) -> dict[str, bool]:
    return {
        "every answer right": found["wrong"] == 0 and found["right"] > 0,
        "none lost": found["lost"] == 0,
        "no failure but what a kill explains": found["failed"] == 0,
        "all kills recovered": len(found["recoveries s"]) == len(KILLS) and max(found["recoveries s"]) < PATIENCE,
        "memory of the server flat": found.get("server growth % a minute", 100.0) < FLAT or found["minutes"] < 2,
        "memory of the model flat": found.get("model growth % a minute", 100.0) < FLAT or found["minutes"] < 2,
        "nothing left running": found["left running"] == 0,
        "ended by itself": found["exit status"] == 0 and bool(found["last answer right"]),
        "no traceback in the log": found["tracebacks in the log"] == 0,
    }


def table(found: dict) -> str:
    whats = ("right", "wrong", "lost", "told", "refused", "failed", "left", "paused")
    lines = [f"{'requests':<14}" + "".join(f"{what:>9}" for what in whats)]
    for kind, counter in found["counts"].items():
        lines.append(f"{kind:<14}" + "".join(f"{counter.get(what, 0):>9}" for what in whats))
    told = ("counts", "examples")
    return "\n".join([*lines, *(f"{name:<28} {value}" for name, value in found.items() if name not in told)])


if __name__ == "__main__":
    main()
