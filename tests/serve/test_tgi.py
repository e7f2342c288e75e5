"""text-generation-inference's routes at a real port, with the client people use, against offline answers."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.options import AnySearch, Beam, Greedy, Sample
from deepnarrow.runtime.search import generate
from deepnarrow.text.byte_tokenizer import ByteTokenizer

from .conftest import Running

TOKENIZER = ByteTokenizer()


def offline(engine: Engine, text: str, search: AnySearch, tokens: int) -> list[str]:
    [outputs] = generate(engine, [[*TOKENIZER.encode(text), 1]], search, max_tokens=tokens)
    return [TOKENIZER.decode(output.ids) for output in outputs]


def ask(tiny: Running, route: str = "/generate", **body: Any) -> httpx.Response:
    return httpx.post(tiny.url + route, json=body, timeout=60)


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_the_client_gets_offline_answers(tiny: Running, engine: Engine) -> None:
    client = InferenceClient(tiny.url)
    assert client.text_generation("one text", max_new_tokens=20) == offline(engine, "one text", Greedy(), 20)[0]
    [wanted] = offline(engine, "two", Sample(0.8, top_k=40, top_p=0.95, seed=7), 20)
    told = client.text_generation(
        "two", max_new_tokens=20, do_sample=True, temperature=0.8, top_k=40, top_p=0.95, seed=7, details=True
    )
    assert told.generated_text == wanted
    assert told.details is not None
    assert told.details.seed == 7
    assert told.details.finish_reason in ("length", "eos_token")
    assert "".join(token.text for token in told.details.tokens if not token.special) == wanted
    assert (
        "".join(client.text_generation("three", max_new_tokens=30, stream=True))
        == offline(engine, "three", Greedy(), 30)[0]
    )
    last = [*client.text_generation("three", max_new_tokens=30, stream=True, details=True)][-1]
    assert last.generated_text == offline(engine, "three", Greedy(), 30)[0]
    assert last.details is not None
    assert last.details.generated_tokens == 30


def test_best_of_ranks_samples_and_tells_the_others(tiny: Running, engine: Engine) -> None:
    client = InferenceClient(tiny.url)
    search = Sample(1.2, seed=3, num_return=3)
    [outputs] = generate(engine, [[*TOKENIZER.encode("best"), 1]], search, max_tokens=12)
    told = client.text_generation(
        "best", max_new_tokens=12, do_sample=True, temperature=1.2, seed=3, best_of=3, details=True, top_n_tokens=2
    )
    means = {TOKENIZER.decode(one.ids): one.score / min(12, len(one.ids) + 1) for one in outputs}
    assert told.generated_text == max(means, key=lambda text: means[text])
    assert told.details is not None
    others = told.details.best_of_sequences
    assert others is not None
    assert {one.generated_text for one in others} | {told.generated_text} == set(means)
    assert told.details.top_tokens is not None
    assert [len(some) for some in told.details.top_tokens] == [2] * len(told.details.tokens)


def test_beams(tiny: Running, engine: Engine) -> None:
    parameters = {"num_beams": 4, "max_new_tokens": 9, "length_penalty": 0.6}
    told = ask(tiny, inputs="beam", parameters=parameters).json()
    [wanted] = offline(engine, "beam", Beam(4, 0.6), 9)
    assert told["generated_text"] == wanted
    events = lines(ask(tiny, "/generate_stream", inputs="beam", parameters=parameters))
    assert events[-1]["generated_text"] == wanted
    assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == wanted
    assert ask(tiny, inputs="x", parameters=parameters | {"temperature": 0.5}).status_code == 422


def test_events_of_a_stream(tiny: Running, engine: Engine) -> None:
    parameters = {"max_new_tokens": 25, "temperature": 1.5, "seed": 11, "top_n_tokens": 3}
    events = lines(ask(tiny, "/generate_stream", inputs="stream", parameters=parameters))
    [wanted] = offline(engine, "stream", Sample(1.5, seed=11), 25)
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    last = events[-1]
    assert last["generated_text"] == wanted
    assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == wanted
    details = last["details"]
    assert details["input_length"] == len("stream") + 1
    assert details["seed"] == 11
    assert details["generated_tokens"] == len(events)
    timings = details["timings"]
    parts = sum(timings[name] for name in ("queue", "encode", "first_token", "decode"))
    assert parts == pytest.approx(timings["total"], abs=0.02)
    for event in events:
        assert len(event["top_tokens"]) == 3
        assert event["token"]["logprob"] <= event["top_tokens"][0]["logprob"] + 1e-5


def test_post_at_the_root_answers_in_a_list_or_streams(tiny: Running, engine: Engine) -> None:
    [wanted] = offline(engine, "root", Greedy(), 5)
    body = {"inputs": "root", "parameters": {"max_new_tokens": 5}}
    told = ask(tiny, "/", **body).json()
    assert [one["generated_text"] for one in told] == [wanted]
    assert lines(ask(tiny, "/", **body, stream=True))[-1]["generated_text"] == wanted


def test_details_on_demand_only_and_the_decoder_s_input(tiny: Running) -> None:
    bare = ask(tiny, inputs="x", parameters={"max_new_tokens": 3, "details": False}).json()
    assert set(bare) == {"generated_text"}
    whole = ask(tiny, inputs="x", parameters={"max_new_tokens": 3, "decoder_input_details": True}).json()
    assert whole["details"]["prefill"] == [{"id": 0, "text": "<pad>", "logprob": None}]


def test_grammars(tiny: Running) -> None:
    def text(kind: str, value: Any) -> str:
        found = ask(tiny, inputs="x", parameters={"max_new_tokens": 60, "grammar": {"type": kind, "value": value}})
        assert found.status_code == 200, found.text
        return found.json()["generated_text"]

    assert text("choices", ["positive", "negative"]) in ("positive", "negative")
    year = text("regex", "(19|20)[0-9]{2}")
    assert year[:2] in ("19", "20")
    assert len(year) == 4
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert set(json.loads(text("json", schema))) == {"a"}
    assert set(json.loads(text("json", json.dumps(schema)))) == {"a"}


def test_truncate_keeps_the_first_tokens(tiny: Running, engine: Engine) -> None:
    found = ask(tiny, inputs="abcdef", parameters={"max_new_tokens": 8, "truncate": 4}).json()
    assert found["generated_text"] == offline(engine, "abc", Greedy(), 8)[0]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 10**9}, "must be at most"),
        ({"temperature": 0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 99, "do_sample": True}, "answers"),
        ({"seed": -1}, "seed"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"watermark": True}, "watermark"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"top_n_tokens": 6}, "top_n_tokens"),
        ({"grammar": {"type": "regex", "value": "("}}, "regular expression"),
        ({"grammar": {"type": "regex", "value": 3}}, "regex"),
        ({"grammar": {"type": "json", "value": "[]"}}, "object"),
        ({"grammar": {"type": "choices", "value": []}}, "choices"),
        ({"grammar": {"type": "poem", "value": "x"}}, "grammar.type"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"adapter_id": "../../etc/passwd"}, "does not exist"),
        ({"num_beams": 99}, "wide"),
        ({"length_penalty": 2}, "num_beams"),
        ({"truncate": 1}, "truncate"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(tiny: Running, parameters: dict[str, Any], said: str) -> None:
    for route in ("/generate", "/generate_stream"):
        found = ask(tiny, route, inputs="x", parameters=parameters)
        assert found.status_code in (404, 422)
        told = found.json()
        assert set(told) == {"error", "error_type"}
        assert said in told["error"]
        assert "\n" not in told["error"]
        assert told["error_type"] in ("validation", "not_found")


def test_the_client_knows_our_mistakes_for_what_they_are(tiny: Running) -> None:
    with pytest.raises(ValidationError, match="must be at most"):
        InferenceClient(tiny.url).text_generation("x", max_new_tokens=10**8)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"inputs": 3}', b'{"inputs": "\\ud800"}', b"[" * 50000, b"\xff\xfe",
     b'{"inputs": ""}', b'{"inputs": "x", "parameters": {"temperature": NaN}}',
     b'{"inputs": "x", "parameters": {"seed": 1e400}}',
     b'{"inputs": "x", "stream": "perhaps"}', b'{"parameters": {}}'],
    ids=range(13),
)  # fmt: skip
def test_malformed_bodies(tiny: Running, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    found = httpx.post(tiny.url + "/generate", content=body, headers=headers)
    assert found.status_code == 422
    assert found.json()["error_type"] == "validation"


def test_too_long_an_input(tiny: Running) -> None:
    found = ask(tiny, inputs="a" * 3000)
    assert found.status_code == 422
    assert "3001 tokens" in found.json()["error"]


def test_many_at_once_are_not_mixed_up(tiny: Running, engine: Engine) -> None:
    texts = [f"text number {number} " * (1 + number % 5) for number in range(40)]
    with ThreadPoolExecutor(16) as pool:
        found = [*pool.map(lambda text: ask(tiny, inputs=text, parameters={"max_new_tokens": 15}).json(), texts)]
    for text, one in zip(texts, found, strict=True):
        assert one["generated_text"] == offline(engine, text, Greedy(), 15)[0]


def test_info_names_what_is_served_and_its_limits(tiny: Running) -> None:
    info = httpx.get(tiny.url + "/info").json()
    assert info["model_id"] == "tiny"
    assert info["max_input_tokens"] == 2048
    assert info["constraints"] == ["choices", "regex", "json"]
    assert info["models"][0]["shape"] == "tiny-dm64-ff128-kv16-nl2-v384"
    assert info["workers"][0]["state"] == "ready"
