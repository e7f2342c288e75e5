"""Clients of a server, in a process of their own, as light as they can be: used by serve_load.py.

Reads one JSON object a line from standard input, runs it, and writes one JSON object:

    {"url": ..., "bodies": [...], "answers": [...], "clients": 8, "seconds": 6.0}
    {"done": 431, "seconds": 6.2, "times": [...], "status": {"200": 431}, "wrong": 0, "cpu": 0.31}

Each client sends one request, waits for its answer, checks it against what was computed offline, and sends the next;
none is sent after the time is up, those under way are waited for: `seconds` is the time to the last answer, `times`
every request's own. A client that is refused (429) waits as long as it is told; the wait counts.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from itertools import count

import aiohttp


async def main() -> None:
    timeout = aiohttp.ClientTimeout(total=120)
    for line in sys.stdin:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            print(json.dumps(await load(session, **json.loads(line))), flush=True)


async def load(
    session: aiohttp.ClientSession,
    *,
    url: str,
    bodies: list[dict],
    answers: list[str] | None,
    clients: int,
    seconds: float,
) -> dict:
    encoded = [json.dumps(body).encode() for body in bodies]
    numbers, times, status = count(), [], Counter[int]()
    wrong: list[list[str]] = []
    kept: dict[int, str] = {}
    headers = {"Content-Type": "application/json"}
    loop = asyncio.get_running_loop()
    begin, cpu = loop.time(), time.process_time()
    end = begin + seconds

    async def client() -> None:
        while loop.time() < end:
            number = next(numbers) % len(encoded)
            start = loop.time()
            while True:
                async with session.post(url, data=encoded[number], headers=headers) as answer:
                    read = await answer.read()
                    status[answer.status] += 1
                    if answer.status != 429:
                        break
                    await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
            times.append(loop.time() - start)
            text = json.loads(read)["generated_text"] if answer.status == 200 else None
            if answers is None:
                kept[number] = str(text)
            elif text != answers[number]:
                wrong.append([str(text), answers[number]])

    await asyncio.gather(*(client() for _ in range(clients)))
    return {
        "done": len(times), "seconds": loop.time() - begin, "times": times, "wrong": len(wrong),
        "examples": wrong[:2], "status": {str(key): number for key, number in status.items()},
        "answers": [kept.get(number) for number in range(len(encoded))] if answers is None else None,
        "cpu": time.process_time() - cpu,
    }  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
