"""CTranslate2 behind the simplest dynamic batching, as many put it into production: the peer of serve_load.py.

    python benchmarks/ctranslate2_server.py MODEL --port 8001 --tokenizer FOLDER --threads 2 --batch 32

One queue: what waits when the engine is free, at most `--batch` requests, goes to it at once; a batch that could still
grow waits `--wait` milliseconds for more. Everything else is FastAPI and uvicorn, as in our server.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ctranslate2
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from deepnarrow.files import read_json
from deepnarrow.text import tokenizer as tokenizers


class Parameters(BaseModel):
    max_new_tokens: int = 64


class Request(BaseModel):
    inputs: str
    parameters: Parameters = Parameters()


class Batcher:
    def __init__(self, model: Path, tokenizer: Path, *, threads: int, compute: str, batch: int, wait: float) -> None:
        self.engine = ctranslate2.Translator(
            str(model), device="cpu", compute_type=compute, intra_threads=threads, inter_threads=1
        )
        self.names: list[str] = read_json(model / "shared_vocabulary.json")
        self.ids = {name: id for id, name in enumerate(self.names)}
        self.tokenizer = tokenizers.load(tokenizer)
        self.batch, self.wait = batch, wait
        self.queue: asyncio.Queue[tuple[list[str], int, asyncio.Future[list[str]]]] = asyncio.Queue()
        self.pool = ThreadPoolExecutor(1)

    async def answer(self, text: str, most: int) -> str:
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        names = [self.names[id] for id in (*self.tokenizer.encode(text), self.tokenizer.eos)]
        await self.queue.put((names, most, future))
        return self.tokenizer.decode([self.ids[name] for name in await future])

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            found = [await self.queue.get()]
            until = loop.time() + self.wait
            while len(found) < self.batch:
                try:
                    found.append(await asyncio.wait_for(self.queue.get(), max(0.0, until - loop.time())))
                except TimeoutError:
                    break
            results = await loop.run_in_executor(self.pool, self.translate, found)
            for result, (_, _, future) in zip(results, found, strict=True):
                if not future.cancelled():
                    future.set_result(result)

    def translate(self, found: list[tuple[list[str], int, Any]]) -> list[list[str]]:
        most = max(most for _, most, _ in found)
        results = self.engine.translate_batch([names for names, _, _ in found], beam_size=1, max_decoding_length=most)
        return [one.hypotheses[0][:limit] for one, (_, limit, _) in zip(results, found, strict=True)]


def application(batcher: Batcher) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    def health() -> dict:
        return {}

    @app.post("/generate")
    async def generate(request: Request) -> dict[str, str]:
        return {"generated_text": await batcher.answer(request.inputs, request.parameters.max_new_tokens)}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compute", default="int8")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait", type=float, default=2.0, help="Milliseconds.")
    asked = parser.parse_args()
    batcher = Batcher(
        asked.model, asked.tokenizer, threads=asked.threads, compute=asked.compute, batch=asked.batch,
        wait=asked.wait / 1000,
    )  # fmt: skip
    uvicorn.run(application(batcher), host="127.0.0.1", port=asked.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
