"""OpenAI's routes at a real port, with the official client, against offline answers."""

import base64
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.limits import Output
from deepnarrow.runtime.options import AnySearch, Beam, Greedy, Sample
from deepnarrow.runtime.search import generate
from deepnarrow.text.byte_tokenizer import ByteTokenizer

from .conftest import Running

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def client(tiny: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=tiny.url + "/v1", api_key="none", max_retries=0)


def offline(engine: Engine, texts: list[str], search: AnySearch, tokens: int) -> list[list[Output]]:
    return generate(engine, [[*TOKENIZER.encode(text), 1] for text in texts], search, max_tokens=tokens)


def text(output: Output) -> str:
    return TOKENIZER.decode(output.ids)


def test_one_greedy_answer(client: openai.OpenAI, engine: Engine) -> None:
    found = client.completions.create(model="tiny", prompt="hello", max_tokens=20, temperature=0)
    [[wanted]] = offline(engine, ["hello"], Greedy(), 20)
    [choice] = found.choices
    assert choice.text == text(wanted)
    assert choice.finish_reason == "length"
    assert found.object == "text_completion"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (6, 20, 26)


def test_several_prompts_and_several_answers_are_those_of_one_offline_call(
    client: openai.OpenAI, engine: Engine
) -> None:
    prompts = ["one", "two and more", "three"]
    found = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=15, n=2, seed=5, temperature=1.3, top_p=0.9
    )
    wanted = offline(engine, prompts, Sample(1.3, top_p=0.9, seed=5, num_return=2), 15)
    assert [choice.index for choice in found.choices] == list(range(6))
    assert [choice.text for choice in found.choices] == [text(output) for outputs in wanted for output in outputs]


def test_sampling_is_the_default_as_the_api_says_and_a_seed_repeats(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str:
        extra: dict[str, Any] = {} if seed is None else {"seed": seed}
        return client.completions.create(model="tiny", prompt="x", max_tokens=30, **extra).choices[0].text

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)
    assert len({ask(None) for _ in range(3)}) > 1


def test_ids_in_place_of_texts(client: openai.OpenAI, engine: Engine) -> None:
    ids = [*TOKENIZER.encode("hello"), 1]
    [[wanted]] = offline(engine, ["hello"], Greedy(), 10)
    one = client.completions.create(model="tiny", prompt=ids, max_tokens=10, temperature=0)
    two = client.completions.create(model="tiny", prompt=[ids, ids], max_tokens=10, temperature=0)
    assert [choice.text for choice in one.choices + two.choices] == [text(wanted)] * 3


def test_best_of_and_beams(client: openai.OpenAI, engine: Engine) -> None:
    best = client.completions.create(model="tiny", prompt="x", max_tokens=9, n=1, best_of=4, seed=2, temperature=1.5)
    outputs = offline(engine, ["x"], Sample(1.5, seed=2, num_return=4), 9)[0]
    ranked = max(outputs, key=lambda one: one.score / min(9, len(one.ids) + 1))
    assert best.choices[0].text == text(ranked)
    assert best.usage is not None
    assert best.usage.completion_tokens == sum(min(9, len(one.ids) + 1) for one in outputs)
    beams = client.completions.create(model="tiny", prompt="x", max_tokens=9, n=2, extra_body={"num_beams": 4})
    wanted = offline(engine, ["x"], Beam(4, num_return=2), 9)[0]
    assert [choice.text for choice in beams.choices] == [text(output) for output in wanted]


def test_streams_join_to_the_answers(client: openai.OpenAI, engine: Engine) -> None:
    prompts = ["one", "two"]
    stream = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=25, n=2, seed=9, temperature=1.4, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    texts, reasons, usage = [""] * 4, [""] * 4, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert not reasons[choice.index]  # nothing comes behind an end
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or ""
    wanted = offline(engine, prompts, Sample(1.4, seed=9, num_return=2), 25)
    assert texts == [text(output) for outputs in wanted for output in outputs]
    assert set(reasons) <= {"stop", "length"}
    assert usage is not None
    assert usage.prompt_tokens == 8


def test_a_stream_of_beams_comes_at_its_end(client: openai.OpenAI, engine: Engine) -> None:
    stream = client.completions.create(
        model="tiny", prompt="x", max_tokens=9, n=2, stream=True, extra_body={"num_beams": 3}
    )
    found = {choice.index: choice.text for chunk in stream for choice in chunk.choices}
    assert [found[0], found[1]] == [text(output) for output in offline(engine, ["x"], Beam(3, num_return=2), 9)[0]]


def test_stop_texts_are_cut_off_and_never_streamed_in_part(client: openai.OpenAI, engine: Engine) -> None:
    whole = text(offline(engine, ["stop"], Sample(1.5, seed=3), 60)[0][0])
    at = next(
        place
        for place in range(5, len(whole))
        if whole[place : place + 2].isascii() and whole[place : place + 2].strip()
    )
    end = whole[at : at + 2]
    wanted = whole[: whole.index(end)]
    asked: dict[str, Any] = {
        "model": "tiny", "prompt": "stop", "max_tokens": 60, "temperature": 1.5, "seed": 3, "stop": ["zzzzz", end]
    }  # fmt: skip
    [choice] = client.completions.create(**asked).choices
    assert (choice.text, choice.finish_reason) == (wanted, "stop")
    chunks = [one for chunk in client.completions.create(**asked, stream=True) for one in chunk.choices]
    assert "".join(one.text for one in chunks) == wanted
    assert chunks[-1].finish_reason == "stop"


def test_logprobs(client: openai.OpenAI, engine: Engine) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "prompt": "x", "max_tokens": 30, "temperature": 1.4, "seed": 4, "logprobs": 3
    }  # fmt: skip
    [choice] = client.completions.create(**asked).choices
    assert choice.text == text(offline(engine, ["x"], Sample(1.4, seed=4), 30)[0][0])
    logs = choice.logprobs
    assert logs is not None
    tokens, token_logs, tops, offsets = logs.tokens, logs.token_logprobs, logs.top_logprobs, logs.text_offset
    assert tokens
    assert token_logs is not None
    assert tops is not None
    assert "".join(tokens) == choice.text
    assert offsets == np.cumsum([0, *map(len, tokens[:-1])]).tolist()
    for log, top in zip(token_logs, tops, strict=True):
        assert len(top) == 3
        assert log <= max(top.values()) + 1e-6
    parts = [one.logprobs for chunk in client.completions.create(**asked, stream=True) for one in chunk.choices]
    assert [token for part in parts if part for token in part.tokens or []] == tokens
    assert [at for part in parts if part for at in part.text_offset or []] == offsets
    assert [log for part in parts if part for log in part.token_logprobs or []] == pytest.approx(token_logs, abs=1e-5)


def test_embeddings_are_means_of_the_encoder(client: openai.OpenAI, engine: Engine, tiny: Running) -> None:
    texts = ["short", "a text that is a little longer", "x"]
    wanted = engine.embed([[*TOKENIZER.encode(one), 1] for one in texts])
    found = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    assert np.allclose([one.embedding for one in found.data], wanted, atol=1e-5)
    assert found.usage.prompt_tokens == sum(len(one) + 1 for one in texts)
    plain = httpx.post(tiny.url + "/v1/embeddings", json={"model": "tiny", "input": "x", "encoding_format": "float"})
    assert np.allclose(plain.json()["data"][0]["embedding"], wanted[2], atol=1e-5)
    coded = httpx.post(tiny.url + "/v1/embeddings", json={"model": "tiny", "input": "x", "encoding_format": "base64"})
    bytes_of = base64.b64decode(coded.json()["data"][0]["embedding"])
    assert np.allclose(np.frombuffer(bytes_of, "<f4"), wanted[2], atol=1e-5)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "deepnarrow"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_a_grammar_of_ours(client: openai.OpenAI) -> None:
    grammar = {"type": "choices", "value": ["yes", "no"]}
    found = client.completions.create(model="tiny", prompt="x", max_tokens=9, seed=1, extra_body={"grammar": grammar})
    assert found.choices[0].text in ("yes", "no")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"logprobs": 6}, "logprobs"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 99}, "n"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [384]}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"num_beams": 2, "temperature": 1}, "num_beams"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_mistakes_have_the_api_s_shape(tiny: Running, change: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "prompt": "x"} | change
    found = httpx.post(tiny.url + "/v1/completions", json=body)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert "\n" not in error["message"]


def test_the_client_knows_our_mistakes_for_what_they_are(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="/etc/passwd", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x" * 5000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="x", dimensions=8)
