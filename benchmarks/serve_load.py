"""Our server under load, beside CTranslate2 behind the simplest dynamic batching (ctranslate2_server.py).

    python benchmarks/serve_load.py --shape small --tokenizer FOLDER       random weights: every answer has --tokens
    python benchmarks/serve_load.py --model runs/corrector                 trained weights: answers end by themselves
    python benchmarks/serve_load.py --model runs/corrector --seconds 2 --rounds 1         a quick look

Both servers hold the same weights in int8 and get the same requests, prose of 4 to 160 words from Python's own library
(or the texts of `--texts FILE.jsonl`, field "inputs"), by way of /generate on loopback from clients in a process of
their own (load_client.py), which sends the next request of each client when its last is answered. The peer first shows
which threads and batch suit it best with 64 clients; with these it runs. Then the two take turns, load by load and
round by round, so that a machine that slows down slows both; the other is idle meanwhile. Requests under way when the
time is up are waited for, and count. Every answer is compared with what the same engine answers offline.

Prints a table (medians over the rounds) and a last line of JSON. Needs `ctranslate2`, `transformers` and `aiohttp`.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from peers import CTranslate2, convert

from deepnarrow import machine
from deepnarrow.files import read_json
from deepnarrow.text import builtin
from deepnarrow.text import tokenizer as tokenizers

HERE = Path(__file__).resolve().parent
LOADS = (1, 8, 64, 256)
DECISIVE = 64  # the load at which the peer's settings are chosen
WORDS = ((0.5, 4, 16), (0.4, 16, 48), (0.1, 48, 160))  # shares of requests, and their words from and to


def main() -> None:
    asked = arguments()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(client_process())
        model, native, peer = models(asked, folder)
        say("the models are there")
        texts = given(asked.texts, asked.requests) if asked.texts else prose(asked.requests)
        bodies = [{"inputs": text, "parameters": {"max_new_tokens": asked.tokens}} for text in texts]
        offline = {"ours": our_answers(native, texts, asked.tokens), "peer": peer_answers(model, peer, texts, asked)}
        say("the answers are there")
        settings, tried = best_settings(asked, client, peer, model, bodies) if not asked.peer else (asked.peer, {})
        print(f"the peer is at its best with {settings}; tried {tried}", flush=True)
        urls = {
            "ours": stack.enter_context(server(our_command(native, asked.threads), folder / "ours.log")),
            "peer": stack.enter_context(server(peer_command(peer, model, **settings), folder / "peer.log")),
        }
        for url in urls.values():
            run(client, url, bodies, None, clients=4, seconds=1.0)
        cells: dict[tuple[str, int], list[dict]] = {(name, load): [] for load in asked.loads for name in urls}
        for round in range(asked.rounds):
            for load in asked.loads:
                for name in sorted(urls, reverse=bool(round % 2)):
                    found = run(client, urls[name], bodies, offline[name], clients=load, seconds=asked.seconds)
                    cells[name, load].append(summary(found))
                    say(f"{name} {load}: {cells[name, load][-1]['rate']:.1f} requests/s")
        rows = [{"server": name, "clients": load, **middle(found)} for (name, load), found in cells.items()]
    print(table(rows))
    print(json.dumps({**machine.describe(), **report(asked, texts, settings, tried, rows)}))


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="A run or folder with a tokenizer.")
    parser.add_argument("--shape", help="Instead of a model: random weights.")
    parser.add_argument("--tokenizer", type=Path, help="With --shape.")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--requests", type=int, default=96, help="Different ones; they are sent again and again.")
    parser.add_argument("--tokens", type=int, default=32, help="The most tokens of an answer.")
    parser.add_argument("--loads", type=int, nargs="+", default=LOADS)
    parser.add_argument("--seconds", type=float, default=6.0, help="Of one load in one round.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="Of our server; default: its own choice.")
    parser.add_argument(
        "--peer", type=json.loads, help='Known best settings, such as {"threads": 2, "batch": 16}; else they are tried.'
    )
    asked = parser.parse_args()
    if (asked.model is None) == (asked.shape is None) or (asked.shape and not asked.tokenizer):
        parser.error("give --model, or --shape and --tokenizer")
    return asked


# ---- the same weights three times ----


def models(asked: argparse.Namespace, folder: Path) -> tuple[Path, Path, Path]:
    """The folder that our export writes for transformers, our native one in int8, and CTranslate2's in int8."""
    model = folder / "hf"
    if asked.shape:
        random_model(asked.shape, asked.tokenizer, model)
    else:
        ours("export", str(asked.model), "--out", str(model), "--to", "hf")
    ours("export", str(model), "--out", str(folder / "native"), "--to", "native", "--precision", "int8")
    return model, folder / "native", convert(model, folder / "ct2", "int8")


def random_model(shape: str, tokenizer: Path, folder: Path) -> Path:
    import torch

    from deepnarrow.model.folder import save_model
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5
    from deepnarrow.shapes import parse

    t5 = T5(parse(shape))
    initialise(t5, 0)
    with torch.no_grad():
        t5.embedding.weight.mul_(0.02)  # else tied weights repeat the last token, whatever the input
    save_model(t5, tokenizers.load(tokenizer), folder)
    return folder


def ours(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "deepnarrow", *words], check=True, stdout=subprocess.DEVNULL)


def prose(number: int) -> list[str]:
    chosen = random.Random(0)
    words = " ".join(text for text, _ in builtin.documents()).split()
    lengths = chosen.choices(WORDS, [share for share, _, _ in WORDS], k=number)
    texts = []
    for _, least, most in lengths:
        length = chosen.randint(least, most)
        at = chosen.randrange(len(words) - length)
        texts.append(" ".join(words[at : at + length]))
    return texts


def given(path: Path, number: int) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["inputs"] for line, _ in zip(lines, range(number), strict=False)]


def our_answers(native: Path, texts: Sequence[str], most: int) -> list[str]:
    """By `deepnarrow generate`, one at a time."""
    found = subprocess.run(
        [sys.executable, "-m", "deepnarrow", "generate", str(native), "--file", "-", "--max-tokens", str(most),
         "--batch", "1", "--json"],
        input="\n".join(texts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line)["outputs"][0]["text"] for line in found.stdout.splitlines()]


def peer_answers(model: Path, peer: Path, texts: Sequence[str], asked: argparse.Namespace) -> list[str]:
    tokenizer = tokenizers.load(model)
    engine = CTranslate2(peer, read_json(peer / "shared_vocabulary.json"), compute="int8", threads=2)
    rows = engine.generate([[*tokenizer.encode(text), tokenizer.eos] for text in texts], most=asked.tokens)
    engine.close()
    return [tokenizer.decode(row) for row in rows]


# ---- servers and clients ----


def our_command(native: Path, threads: int | None) -> list[str]:
    more = ["--threads", str(threads)] if threads else []
    return [sys.executable, "-m", "deepnarrow", "serve", str(native), "--cache", "0", *more]


def peer_command(peer: Path, model: Path, *, threads: int, batch: int) -> list[str]:
    return [sys.executable, str(HERE / "ctranslate2_server.py"), str(peer), "--tokenizer", str(model),
            "--threads", str(threads), "--batch", str(batch)]  # fmt: skip


@contextmanager
def server(command: Sequence[str], log: Path) -> Iterator[str]:
    with server_process(command, log) as (url, _):
        yield url


@contextmanager
def server_process(command: Sequence[str], log: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a server that answers, and its process, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        running = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out)
        try:
            wait_for(url + "/health", running, log)
            yield url, running
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()


def wait_for(url: str, running: subprocess.Popen, log: Path, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running.poll() is not None:
            sys.exit(f"{running.args} ended:\n{log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{url} does not answer")


@contextmanager
def client_process() -> Iterator[subprocess.Popen]:
    client = subprocess.Popen(
        [sys.executable, str(HERE / "load_client.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield client
    finally:
        client.terminate()
        client.wait()


def run(
    client: subprocess.Popen,
    url: str,
    bodies: Sequence[dict],
    answers: Sequence[str] | None,
    *,
    clients: int,
    seconds: float,
) -> dict:
    assert client.stdin
    assert client.stdout
    work = {"url": url + "/generate", "bodies": bodies, "answers": answers, "clients": clients, "seconds": seconds}
    client.stdin.write(json.dumps(work) + "\n")
    client.stdin.flush()
    line = client.stdout.readline()
    if not line:
        sys.exit("the clients' process ended")
    return json.loads(line)


def best_settings(
    asked: argparse.Namespace, client: subprocess.Popen, peer: Path, model: Path, bodies: Sequence[dict]
) -> tuple[dict[str, int], dict[str, float]]:
    """The peer's threads and batch with the highest throughput at the decisive load."""
    cores = os.cpu_count() or 1
    tried: dict[str, float] = {}
    found: list[tuple[float, dict[str, int]]] = []
    for threads in sorted({1, min(2, cores)}):
        for batch in (8, 16, 64):
            settings = {"threads": threads, "batch": batch}
            with (
                tempfile.TemporaryDirectory() as folder,
                server(peer_command(peer, model, **settings), Path(folder) / "log") as url,
            ):
                run(client, url, bodies, None, clients=4, seconds=0.5)
                seen = run(client, url, bodies, None, clients=DECISIVE, seconds=asked.seconds)
            rate = seen["done"] / seen["seconds"]
            tried[f"{threads} threads, batch {batch}"] = round(rate, 1)
            say(f"peer with {settings}: {rate:.1f} requests/s")
            found.append((rate, settings))
    return max(found, key=lambda one: one[0])[1], tried


# ---- what was seen ----


def summary(found: dict) -> dict[str, float]:
    """Requests a second, and quantiles in milliseconds."""
    times = sorted(found["times"])
    share = {name: times[min(len(times) - 1, int(part * len(times)))] * 1000 for name, part in PARTS.items()}
    refused = sum(number for status, number in found["status"].items() if status == "429")
    failed = sum(number for status, number in found["status"].items() if status not in ("200", "429"))
    return {
        "rate": found["done"] / found["seconds"], **share, "done": found["done"], "wrong": found["wrong"],
        "refused": refused, "failed": failed, "client_cpu": found["cpu"] / found["seconds"],
    }  # fmt: skip


PARTS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def middle(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over rounds; what is counted, in sum."""
    counted = ("done", "wrong", "refused", "failed")
    return {name: (sum if name in counted else median)(one[name] for one in found) for name in found[0]}


def table(rows: Sequence[dict]) -> str:
    head = f"{'clients':>7}  {'server':<13}{'req/s':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'done':>7}{'wrong':>7}"
    lines = [head + f"{'429':>6}{'failed':>8}{'client CPU':>12}"]
    for row in rows:
        name = {"ours": "deepnarrow", "peer": "CTranslate2"}[row["server"]]
        lines.append(
            f"{row['clients']:>7}  {name:<13}{row['rate']:>8.1f}{row['p50']:>9.0f}{row['p95']:>9.0f}{row['p99']:>9.0f}"
            f"{row['done']:>7}{row['wrong']:>7}{row['refused']:>6}{row['failed']:>8}{row['client_cpu']:>11.0%}"
        )
    return "\n".join(lines)


def report(
    asked: argparse.Namespace, texts: Sequence[str], settings: dict, tried: dict, rows: Sequence[dict]
) -> dict[str, object]:
    by = {(row["server"], row["clients"]): row for row in rows}
    ratios = {
        str(load): {
            "throughput": round(by["ours", load]["rate"] / by["peer", load]["rate"], 2),
            "p95": round(by["ours", load]["p95"] / by["peer", load]["p95"], 2),
        }
        for load in asked.loads
    }
    rounded = [
        {name: round(seen, 3) if isinstance(seen, float) else seen for name, seen in row.items()} for row in rows
    ]
    return {
        "benchmark": "serve_load", "model": str(asked.shape or asked.model.name), "tokens": asked.tokens,
        "requests": len(texts), "seconds": asked.seconds, "rounds": asked.rounds, "peer": settings, "tried": tried,
        "rows": rounded, "ours over peer": ratios,
    }  # fmt: skip


if __name__ == "__main__":
    main()
