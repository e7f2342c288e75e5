"""What stands in front of the routes, at a real port: keys, bodies, slow clients, safety, logs."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deepnarrow.errors import UserError
from deepnarrow.serve.allowed import Allowed
from deepnarrow.serve.keys import Keys, read_keys

from .conftest import Running, running

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def strict(folder: Path):
    """Keys, and little patience."""
    allowed = Allowed(body=2000, new_tokens=20000, header_seconds=0.6, body_seconds=0.6, write_seconds=0.6)
    with running(folder, allowed=allowed, keys=Keys([("ada", "correct-horse"), ("bob", "battery-staple")])) as found:
        yield found


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server.port), timeout=10)


def head(length: int | str, *, key: str = "correct-horse", route: str = "/generate") -> bytes:
    size = f"Content-Length: {length}" if isinstance(length, int) else f"Transfer-Encoding: {length}"
    lines = [
        f"POST {route} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        size,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def until_closed(client: socket.socket) -> bytes:
    held = b""
    while part := client.recv(65536):
        held += part
    return held


def test_keys_are_asked_for_but_at_the_page_and_health(strict: Running) -> None:
    for route, status in (
        ("/", 200),
        ("/health", 200),
        ("/page.js", 200),
        ("/info", 401),
        ("/metrics", 401),
        ("/x", 401),
    ):
        assert httpx.get(strict.url + route).status_code == status
    told = httpx.post(strict.url + "/generate", json={"inputs": "x"})
    assert told.json()["error_type"] == "authentication"
    assert told.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": "Bearer battery-staple"}
    assert httpx.get(strict.url + "/info", headers=right).status_code == 200
    for wrong in ("Bearer battery-stapl", "Bearer", "Basic battery-staple", "battery-staple"):
        assert httpx.get(strict.url + "/info", headers={"Authorization": wrong}).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=strict.url + "/v1", api_key="wrong", max_retries=0).models.list()
    assert openai.OpenAI(base_url=strict.url + "/v1", api_key="correct-horse").models.list().data


def test_keys_are_read_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# who may ask\nada correct-horse\n\nbattery-staple  # nobody's\n")
    keys = read_keys(file, "from-outside, and-another")
    holders = [
        keys.holder(f"bearer {key}") for key in ("correct-horse", "battery-staple", "from-outside", "and-another")
    ]
    assert holders == ["ada", "key-2", "deepnarrow_api_keys-1", "deepnarrow_api_keys-2"]
    assert keys.holder("Bearer ada") is None
    assert keys.holder(None) is None
    assert not read_keys(None, "")
    for content, said in (("a b c", "line 1"), ("short", "shorter than"), ("# none", "no API keys")):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            read_keys(file, "")


def test_bodies_that_are_too_large_are_not_read_to_the_end(strict: Running) -> None:
    auth = {"Authorization": "Bearer correct-horse"}
    told = httpx.post(strict.url + "/generate", content=b"x" * 3000, headers=JSON | auth)
    assert told.status_code == 413
    assert told.json()["error_type"] == "validation"
    with connected(strict) as client:  # in chunks, of which there would be no end
        client.sendall(head("chunked") + (b"64\r\n" + b"x" * 100 + b"\r\n") * 30)
        assert b" 413 " in client.recv(65536).split(b"\r\n")[0]


def test_slow_headers_and_slow_bodies_are_not_waited_for(strict: Running) -> None:
    with connected(strict) as client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost:")
        begun = time.monotonic()
        assert until_closed(client) == b""
        assert time.monotonic() - begun < 5
    with connected(strict) as client:
        client.sendall(head(100) + b'{"inp')
        told = until_closed(client)
        assert b" 408 " in told.split(b"\r\n")[0]


def test_a_client_that_does_not_read_is_given_up(strict: Running) -> None:
    """Its answer is cancelled, and its place is free."""
    before = strict.worker.counts.cancelled
    body = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 20000, "top_n_tokens": 5}}).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", strict.server.port))
    with client:
        client.sendall(head(len(body), route="/generate_stream") + body)
        wait_for(lambda: strict.worker.active == 1)
        wait_for(lambda: strict.worker.counts.cancelled == before + 1)
    assert strict.worker.active == 0


def wait_for(test, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_only_json_is_taken_since_a_page_elsewhere_cannot_send_it(tiny: Running, media: str) -> None:
    told = httpx.post(tiny.url + "/generate", content=b'{"inputs": "x"}', headers={"Content-Type": media})
    assert told.status_code == 415
    assert "access-control-allow-origin" not in told.headers


def test_every_answer_has_headers_of_safety(tiny: Running) -> None:
    for route in ("/", "/info", "/nowhere", "/v1/models"):
        headers = httpx.get(tiny.url + route).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers
    assert httpx.get(tiny.url + "/info", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    strange = httpx.get(tiny.url + "/info", headers={"X-Request-ID": "a b<c>"}).headers["x-request-id"]
    assert strange != "a b<c>"


@pytest.mark.parametrize(
    "path",
    ["/..%2f..%2fetc/passwd", "/%2e%2e/http.py", "/web/index.html", "/index.html", "/page.js/../http.py", "/static/x"],
)
def test_no_path_reaches_a_file(tiny: Running, path: str) -> None:
    with connected(tiny) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        told = until_closed(client)
    assert b" 404 " in told.split(b"\r\n")[0]


def test_routes_and_methods_that_are_not(tiny: Running) -> None:
    assert httpx.get(tiny.url + "/generate").json()["error_type"] == "method_not_allowed"
    assert httpx.get(tiny.url + "/generate").headers["allow"] == "POST"
    assert httpx.delete(tiny.url + "/v1/models").json()["error"]["code"] == "method_not_supported"
    assert httpx.get(tiny.url + "/v1/chat/completions").json()["error"]["code"] == "unknown_url"


def requests(server: Running) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log]
    return [line for line in lines if line["event"] == "request"]


def test_the_log_has_times_and_counts_but_no_text(tiny: Running) -> None:
    secret = "nobody else may read this"
    time.sleep(0.1)  # for lines of others
    before = len(requests(tiny))
    httpx.post(tiny.url + "/generate", json={"inputs": secret, "parameters": {"max_new_tokens": 3, "stop": [secret]}})
    httpx.post(tiny.url + "/generate", json={"inputs": secret, "parameters": {"unheard": secret}})
    httpx.get(tiny.url + "/" + secret)
    wait_for(lambda: len(requests(tiny)) >= before + 3)  # a line is written behind its answer
    assert secret not in "\n".join(tiny.log)
    assert secret.replace(" ", "%20") not in "\n".join(tiny.log)
    [done, refused, nowhere] = requests(tiny)[before : before + 3]
    assert (done["status"], refused["status"], nowhere["status"]) == (200, 422, 404)
    assert done["input_tokens"] == len(secret) + 1
    assert done["generated_tokens"] == 3
    for name in ("queue", "encode", "first_token", "decode", "seconds", "id", "model"):
        assert name in done


def test_texts_are_in_the_log_where_that_is_asked_for(folder: Path) -> None:
    with running(folder, texts=True) as server:
        told = httpx.post(server.url + "/generate", json={"inputs": "mine", "parameters": {"max_new_tokens": 3}}).json()
        wait_for(lambda: len(requests(server)) == 1)
        [line] = requests(server)
    assert (line["input_texts"], line["answer_texts"]) == (["mine"], [[told["generated_text"]]])


def test_broken_requests_end_with_a_status(tiny: Running) -> None:
    for raw in (
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        with connected(tiny) as client:
            client.sendall(raw)
            told = client.recv(4096)
        assert told.startswith(b"HTTP/1.1 4"), told
