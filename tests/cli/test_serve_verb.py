"""`deepnarrow serve` as a user starts and stops it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import InferenceClient

from deepnarrow.cli.serve import names_of, serve
from deepnarrow.errors import UserError
from deepnarrow.hub.native import write_folder
from deepnarrow.model.adapters import Base, save_prompt
from deepnarrow.model.decode import Greedy, generate
from deepnarrow.model.folder import Opened, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.native import usable
from deepnarrow.shapes.shape import parse
from deepnarrow.text.byte_tokenizer import ByteTokenizer

SHAPE = "tiny-nl1-dm32-ff64-kv8-v384"


def model_of(seed: int) -> T5:
    model = T5(parse(SHAPE))
    initialise(model, seed=seed)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    where = tmp_path_factory.mktemp("models")
    found = [where / "first", where / "second"]
    for seed, folder in enumerate(found):
        model = model_of(seed)
        if usable():  # then it is opened without torch
            write_folder(Opened(model, ByteTokenizer(), model.shape, "made"), folder, "float32")
        else:
            save_model(model, ByteTokenizer(), folder)
    return found


@contextmanager
def served(
    tmp_path: Path, *arguments: object, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and its lines as they come."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deepnarrow", "serve", *map(str, arguments), "--port", "0", "--threads", "1"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "DEEPNARROW_CACHE": str(tmp_path / "cache"), **environment},
    )  # fmt: skip
    lines: list[str] = []
    ready = threading.Event()

    def follow() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if '"listening"' in line:
                ready.set()
        ready.set()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        assert ready.wait(120)
        port = next((json.loads(line)["port"] for line in lines if '"listening"' in line), None)
        assert port, lines
        yield process, f"http://127.0.0.1:{port}", lines
    finally:
        process.kill()
        process.wait(30)
        follower.join(30)
        assert process.stderr is not None
        process.stderr.close()


def offline(seed: int, text: str, tokens: int) -> str:
    tokenizer = ByteTokenizer()
    [[output]] = generate(model_of(seed), [[*tokenizer.encode(text), 1]], Greedy(), max_tokens=tokens)
    return tokenizer.decode(output.ids)


def test_two_models_by_name_until_told_to_stop_while_answering(folders: list[Path], tmp_path: Path) -> None:
    with served(tmp_path, folders[0], f"other={folders[1]}", "--max-new-tokens", 5000) as (process, url, lines):
        assert [model["id"] for model in httpx.get(url + "/v1/models").json()["data"]] == ["first", "other"]
        for seed, name in enumerate(("first", "other")):
            body = {"inputs": "one text", "model": name, "parameters": {"max_new_tokens": 9}}
            assert httpx.post(url + "/generate", json=body).json()["generated_text"] == offline(seed, "one text", 9)
        body = {"inputs": "x", "parameters": {"max_new_tokens": 3000}}
        with httpx.stream("POST", url + "/generate_stream", json=body, timeout=60) as answer:
            events = answer.iter_lines()
            assert next(events).startswith("data:")
            process.send_signal(signal.SIGTERM)
            last = [line for line in events if line][-1]  # the answer ends as if nothing had been said
        assert json.loads(last.removeprefix("data:"))["details"]["generated_tokens"] == 3000
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url + "/health")
        assert '"stopped"' in lines[-1]
        assert not any("Traceback" in line for line in lines)


@pytest.mark.slow  # of importing torch
def test_by_torch_with_keys_of_the_environment(tmp_path: Path) -> None:
    save_model(model_of(0), ByteTokenizer(), tmp_path / "plain")
    with served(tmp_path, tmp_path / "plain", "--runtime", "torch", DEEPNARROW_API_KEYS="correct-horse") as (
        process,
        url,
        lines,
    ):
        assert httpx.get(url + "/v1/models").status_code == 401
        auth = {"Authorization": "Bearer correct-horse"}
        assert httpx.get(url + "/info", headers=auth).json()["engine"] == "torch float32 cpu"
        body = {"inputs": "x", "parameters": {"max_new_tokens": 5}}
        found = httpx.post(url + "/generate", json=body, headers=auth)
        assert found.json()["generated_text"] == offline(0, "x", 5)
        assert '"key": "deepnarrow_api_keys-1"' in lines[-1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_mistakes_are_one_line(folders: list[Path], tmp_path: Path) -> None:
    def said(*models: object, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            serve([*map(str, models)], **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "nowhere" in said("./nowhere/to/be/found", port=0)
    assert "did you mean torch" in said(folders[0], runtime="toch")
    assert "did you mean bfloat16" in said(folders[0], precision="bfloat")
    assert "two would be served as 'first'" in said(folders[0], folders[0])
    assert "NAME=RUN" in said(folders[0], prompt=["x"])
    assert "both be served as 'first'" in said(folders[0], prompt=["first=x"])
    empty = tmp_path / "keys"
    empty.write_text("")
    assert "holds no API keys" in said(folders[0], api_key_file=empty)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot listen at" in said(folders[0], port=taken.getsockname()[1])


def test_soft_prompts_are_served_as_models(folders: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_of(0)
    base = Base.of(model, str(folders[0]))
    vectors = torch.randn(4, 32)
    model.prompt = torch.nn.Parameter(vectors)
    save_prompt(model, base, tmp_path / "mood")
    tokenizer = ByteTokenizer()
    [[wanted]] = generate(model_of(0), [[*tokenizer.encode("text"), 1]], Greedy(), max_tokens=9, prompts=[vectors])
    body = {"inputs": "text", "parameters": {"max_new_tokens": 9}}
    with served(tmp_path, folders[0], "--prompt", f"mood={tmp_path / 'mood'}") as (_, url, _):
        assert [model["id"] for model in httpx.get(url + "/v1/models").json()["data"]] == ["first", "mood"]
        assert httpx.post(url + "/generate", json=body).json()["generated_text"] == offline(0, "text", 9)
        found = [
            httpx.post(url + "/generate", json=body | {"model": "mood"}).json()["generated_text"],
            InferenceClient(url).text_generation("text", max_new_tokens=9, adapter_id="mood"),
        ]
    assert found == [tokenizer.decode(wanted.ids)] * 2


def test_names() -> None:
    assert names_of(["a/b@main", "c=d/e"], "MODEL") == {"b": "a/b@main", "c": "d/e"}
    with pytest.raises(UserError, match="names nothing"):
        names_of(["=x"], "MODEL")
    assert re.fullmatch(r"\w+", next(iter(names_of(["runs/nq/"], "MODEL"))))
