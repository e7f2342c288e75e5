"""Converted files: what is written is read, and whatever else is refused."""

import hashlib
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.model.weights import sizes
from deepnarrow.runtime import format
from deepnarrow.runtime.format import open_file, payload_offset, write
from deepnarrow.runtime.layout import PRECISIONS, layout
from deepnarrow.shapes.shape import FEED_FORWARDS, Shape, parse

SHAPE = parse("tiny-nl1-dm32-ff64-kv8-nh4-kh2-v99")


def state_of(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=tuple(size)).astype(np.float32) for name, size in sizes(shape).items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "model.dn", SHAPE, "int8", state_of(SHAPE), vocab_limit=90, eos=1, source={"origin": "here"})
    return tmp_path / "model.dn"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_there_and_back(tmp_path: Path, precision: str) -> None:
    state = state_of(SHAPE)
    write(tmp_path / "model.dn", SHAPE, precision, state, vocab_limit=97, eos=3, source={"origin": "runs/one"})
    file = open_file(tmp_path / "model.dn")
    assert (file.shape, file.precision, file.vocab_limit, file.eos) == (SHAPE, precision, 97, 3)
    assert file.source == {"origin": "runs/one"}
    assert file.bytes == layout(SHAPE, precision).bytes
    assert file.address % 4096 == 0
    assert not file.payload.flags.writeable
    whole = (tmp_path / "model.dn").read_bytes()
    assert whole[file.offset :] == file.payload.tobytes()
    assert hashlib.sha256(whole[64:]).hexdigest() == file.sha256
    again = file.tensors()
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_allclose(again[name], tensor, atol={"float32": 0, "bfloat16": 2e-2, "int8": 3e-2}[precision])


shapes = st.builds(
    lambda heads, share, **others: Shape(
        num_heads=heads[0],
        kv_heads=heads[1],
        share_encoder_decoder=share,
        **(others | ({"decoder_layers": others["encoder_layers"]} if share else {})),
    ),
    heads=st.sampled_from([(1, None), (3, 1), (4, 2), (5, None), (6, 3)]),
    share=st.booleans(),
    d_model=st.integers(1, 40),
    d_ff=st.integers(1, 40),
    d_kv=st.integers(1, 9),
    encoder_layers=st.integers(1, 3),
    decoder_layers=st.integers(0, 3),
    tie_kv=st.booleans(),
    feed_forward=st.sampled_from(FEED_FORWARDS),
    tied=st.booleans(),
    vocab=st.integers(3, 70),
    relative_buckets=st.integers(4, 9),
    relative_distance=st.integers(10, 40),
)


@given(shape=shapes, precision=st.sampled_from(PRECISIONS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape_there_and_back(tmp_path: Path, shape: Shape, precision: str) -> None:
    state = state_of(shape)
    write(tmp_path / "any.dn", shape, precision, state)
    file = open_file(tmp_path / "any.dn")
    assert (file.shape, file.precision, file.vocab_limit) == (shape, precision, shape.vocab)
    again = file.tensors()
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        allowed = {"float32": 0, "bfloat16": 0.004, "int8": 0.004}[precision] * np.abs(tensor).max()
        assert np.abs(again[name] - tensor).max() <= allowed


def test_equal_models_make_equal_files(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "other.dn", SHAPE, "int8", state_of(SHAPE), vocab_limit=90, eos=1, source={"origin": "here"})
    assert (tmp_path / "other.dn").read_bytes() == path.read_bytes()


def test_a_description_that_fills_its_page_to_the_byte(tmp_path: Path) -> None:
    """The payload's place is part of the text that decides it."""
    state, seen = state_of(SHAPE), set()
    for length in range(0, 4200, 70):
        write(tmp_path / "model.dn", SHAPE, "int8", state, source={"note": "x" * length})
        file = open_file(tmp_path / "model.dn")
        assert file.source == {"note": "x" * length}
        seen.add(file.offset)
    assert seen == {4096, 8192}


def test_one_tensor_is_asked_for_at_a_time(tmp_path: Path) -> None:
    """So that a model larger than memory can come from a file."""

    class Held(Mapping[str, np.ndarray]):
        def __init__(self) -> None:
            self.state, self.asked = state_of(SHAPE), list[str]()

        def __getitem__(self, name: str) -> np.ndarray:
            self.asked.append(name)
            return self.state[name]

        def __iter__(self) -> Iterator[str]:
            return iter(self.state)

        def __len__(self) -> int:
            return len(self.state)

    held = Held()
    write(tmp_path / "model.dn", SHAPE, "float32", held)
    assert sorted(held.asked) == sorted(held.state)  # each once


def test_what_fails_leaves_what_was_there(path: Path) -> None:
    before, state = path.read_bytes(), state_of(SHAPE, 1)
    state["decoder.norm.weight"][0] = np.inf
    with pytest.raises(UserError, match=r"decoder.norm.weight holds infinite"):
        write(path, SHAPE, "int8", state)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["model.dn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_limit": 100}, "the tokenizer has 100 ids but the model 99 rows"),
        ({"vocab_limit": 0}, "the tokenizer has 0 ids"),
        ({"eos": 99}, "the id of EOS must be from 0 to 98, not 99"),
        ({"eos": -1}, "the id of EOS"),
    ],
)
def test_ids_that_cannot_be(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(tmp_path / "model.dn", SHAPE, "int8", state_of(SHAPE), **options)
    assert not list(tmp_path.iterdir())


def rehashed(data: bytes) -> bytes:
    """What someone writes who means it: the hash agrees with the nonsense."""
    return data[:16] + hashlib.sha256(data[64:]).digest() + data[48:]


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """The file with its description changed, and everything else made to agree."""

    def damage(data: bytes) -> bytes:
        length = struct.unpack_from("<I", data, 12)[0]
        said = json.loads(data[64 : 64 + length])
        payload = data[payload_offset(length) :]
        text = change(said)
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        front = data[:12] + struct.pack("<I", len(text)) + bytes(48) + text
        return rehashed(front + bytes(payload_offset(len(text)) - len(front)) + payload)

    return damage


def put(**values: object) -> Callable[[bytes], bytes]:
    return described(lambda said: said | values)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "cut in its front": (lambda data: data[:63], "cut short"),
    "cut in its description": (lambda data: data[:200], "is cut short: 200 of"),
    "cut in its payload": (lambda data: data[:-1], "is damaged|is cut short"),
    "another kind of file": (lambda data: b"PK\x03\x04" + data[4:], "does not begin with DNARROW1"),
    "text": (lambda data: b"a model\n" * 20, "does not begin with DNARROW1"),
    "a newer version": (lambda data: data[:8] + struct.pack("<I", 2) + data[12:], "format 2.*update deepnarrow"),
    "version 0": (lambda data: data[:8] + bytes(4) + data[12:], "first 64 bytes make no sense"),
    "no description": (lambda data: data[:12] + bytes(4) + data[16:], "first 64 bytes make no sense"),
    "an endless description": (lambda data: data[:12] + b"\xff" * 4 + data[16:], "first 64 bytes make no sense"),
    "a description beyond the end": (
        lambda data: data[:12] + struct.pack("<I", 1 << 25) + data[16:],
        "is cut short",
    ),
    "something in the zeros": (lambda data: data[:50] + b"x" + data[51:], "first 64 bytes make no sense"),
    "another hash": (lambda data: data[:16] + bytes(32) + data[48:], "its SHA-256 is not what it states"),
    "a bit of the description": (lambda data: data[:70] + bytes([data[70] ^ 1]) + data[71:], "SHA-256"),
    "a bit of the padding": (lambda data: data[:4090] + b"x" + data[4091:], "SHA-256"),
    "a bit of the payload": (lambda data: data[:-700] + bytes([data[-700] ^ 16]) + data[-699:], "SHA-256"),
    "the last bit": (lambda data: data[:-1] + bytes([data[-1] ^ 128]), "SHA-256"),
    "a longer file": (lambda data: data + b"\n", "SHA-256"),
    "a longer file, meant so": (lambda data: rehashed(data + bytes(64)), "64 bytes more than its tiny"),
    "a shorter file, meant so": (lambda data: rehashed(data[:-64]), "is cut short"),
    "no JSON": (described(lambda said: b"{" * 900), "is no JSON object"),
    "deep JSON": (described(lambda said: b"[" * 100_000), "is no JSON object"),
    "no UTF-8": (described(lambda said: b'{"a": "\xff"}'), "is no JSON object"),
    "a list": (described(lambda said: [1, 2]), "is no JSON object"),
    "nothing said": (described(lambda said: {}), "its format is None"),
    "no shape": (put(shape=None), "its shape is None"),
    "a shape of number": (put(shape=7), "its shape is 7"),
    "an unknown shape": (put(shape="tyny"), "unknown base 'tyny'"),
    "a shape in other words": (
        put(shape="tiny-nl1-dm32-ff64-kv8-kh2-v99"),
        "is written tiny-dm32-ff64-kv8-kh2-nl1-v99",
    ),
    "another shape": (put(shape="tiny-dm32-ff64-kv8-nl1-v99"), "is cut short"),
    "a smaller shape": (put(shape="tiny-dm32-ff64-kv8-kh1-nl1-v99"), "bytes more than its"),
    "a giant": (put(shape="xxl-nl2000000000"), "bytes cannot be a"),
    "another precision": (put(precision="bfloat16"), "is cut short"),
    "an unknown precision": (put(precision="int4"), "its precision is 'int4'"),
    "a precision of list": (put(precision=["int8"]), "its precision is"),
    "too many ids": (put(vocab_limit=100), "100 ids"),
    "a limit of truth": (put(vocab_limit=True), "its vocab_limit is True"),
    "a limit of text": (put(vocab_limit="90"), "its vocab_limit is '90'"),
    "an end beyond": (put(eos=95), "EOS must be from 0 to 89"),
    "a source of text": (put(source="here"), "its source is 'here'"),
    "another place": (put(payload=8192), "states 'payload' otherwise"),
    "another length": (put(bytes=1 << 40), "states 'bytes' otherwise"),
    "other sections": (
        described(lambda said: said | {"sections": said["sections"][:-1]}),
        "states 'sections' otherwise",
    ),
    "sections the other way": (
        described(lambda said: said | {"sections": said["sections"][::-1]}),
        "states 'sections' otherwise",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_refused_in_one_line(path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    data = change(path.read_bytes())
    assert data != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as refused:
        open_file(path)
    said = str(refused.value)
    assert "\n" not in said
    assert str(path) in said
    assert "deepnarrow export" in said  # what to do


@pytest.mark.parametrize("damage", [name for name, (_, said) in DAMAGES.items() if "SHA-256" not in said])
def test_without_the_hash_all_that_could_lead_outside_the_file_is_refused(path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        open_file(path, verify=False)


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bit_that_flips_is_noticed(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    broken = path.with_name("broken.dn")
    broken.write_bytes(data)
    with pytest.raises(UserError):
        open_file(broken)


@given(data=st.binary(max_size=300), keep=st.integers(0, 200))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_behind_a_true_front_are_refused(path: Path, data: bytes, keep: int) -> None:
    broken = path.with_name("broken.dn")
    broken.write_bytes(path.read_bytes()[:keep] + data)
    for verify in (True, False):
        with pytest.raises(UserError):
            open_file(broken, verify=verify)


def test_other_things_by_that_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; name the file in it, .*model.dn"):
        open_file(tmp_path)
    with pytest.raises(UserError, match=r"no converted model .*nothing.dn; write it again with deepnarrow export"):
        open_file(tmp_path / "nothing.dn")


def test_the_mapping_outlives_the_file_and_ends_with_its_last_view(path: Path) -> None:
    file = open_file(path)
    view, before = file.payload[100:200], file.payload[100:200].tobytes()
    path.unlink()
    del file
    assert view.tobytes() == before


def test_several_threads_open_one_file(path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(open_file(path).sha256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_nothing_heavy_is_imported(path: Path) -> None:
    script = (
        "import sys; from deepnarrow.runtime.format import open_file; file = open_file(sys.argv[1])\n"
        "heavy = {'torch', 'transformers', 'typer', 'rich', 'tokenizers', 'pydantic'} & sys.modules.keys()\n"
        "print(file.precision, file.bytes, *heavy)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["int8", str(open_file(path).bytes)]


def test_the_documentation_states_this_version() -> None:
    text = (Path(__file__).parents[2] / "docs" / "native.md").read_text("utf-8")
    assert f"version {format.VERSION}" in text
    assert format.MAGIC.decode() in text
