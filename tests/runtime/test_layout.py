"""Where every number of a converted file lies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.model.weights import sizes
from deepnarrow.runtime.layout import (
    GROUP,
    PANEL,
    PRECISIONS,
    Section,
    bfloat16,
    from_bfloat16,
    in_panels,
    layout,
    out_of_panels,
    packed,
    quantised,
    row_scales,
    stored_bytes,
    unpacked,
    unpacked_tensors,
)
from deepnarrow.shapes import BASES, Shape, parse

ODD = (
    "tiny-nl1-dm32-ff64-v96",
    "tiny-el3-dl1-dm40-ff100-kv24-nh3-v97",
    "tiny-nl2-dm33-ff7-kv5-nh6-kh2-v101",
    "tiny-nl2-dm48-ff72-kv8-nh4-kh1-shkv-v99",
    "tiny-nl2-dm32-ff64-kv16-nh2-skv-untied-v96",
    "v1_1-small-nl1-dm36-ff90-kv4-nh5-v113",
    "tiny-el2-dl0-dm32-ff64-v96",
    "tiny-nl2-dm32-ff64-swiglu-sh-v96-rb16-rd40",
)


def state_of(shape: Shape, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=tuple(size)).astype(np.float32) for name, size in sizes(shape).items()}


def payload_of(shape: Shape, precision: str, state: dict[str, np.ndarray]) -> np.ndarray:
    found = layout(shape, precision)
    payload = np.zeros(found.bytes, np.uint8)
    for section in found.sections:
        data = b"".join(piece.tobytes() for piece in packed(section, state))
        assert len(data) == section.bytes
        payload[section.offset : section.offset + section.bytes] = np.frombuffer(data, np.uint8)
    return payload


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ODD)
def test_sections_hold_every_tensor_of_a_model_and_do_not_overlap(name: str, precision: str) -> None:
    shape = parse(name)
    found = layout(shape, precision)
    end = 0
    for section in found.sections:
        assert section.offset == -(-end // 64) * 64
        assert section.rows == sum(rows for _, rows in section.parts)
        end = section.offset + section.bytes
    assert found.bytes == -(-end // 64) * 64
    held = [part for section in found.sections for part in section.parts]
    assert {name for name, _ in held} == sizes(shape).keys()
    twice = [one for one, _ in held if one == "embedding.weight"]
    assert len(held) == len(sizes(shape)) + len(twice) - 1
    assert len(twice) == (2 if shape.tied and shape.decoder_layers and precision == "int8" else 1)
    for name, rows in held:
        size = sizes(shape)[name]
        assert rows == (size[0] if len(size) == 2 else 1)


@pytest.mark.parametrize("name", BASES)
def test_a_file_is_as_large_as_its_weights(name: str) -> None:
    """Within the padding, and the embedding that int8 keeps once more."""
    shape = BASES[name]
    weights = sum(size.numel() for size in sizes(shape).values())
    assert layout(shape, "float32").bytes == pytest.approx(4 * weights, rel=1e-3)
    assert layout(shape, "bfloat16").bytes == pytest.approx(2 * weights, rel=2e-3)
    embedding = shape.vocab * shape.d_model
    more = embedding if not shape.tied else 2 * embedding  # of an untied one a second byte, of a tied one two
    assert layout(shape, "int8").bytes == pytest.approx(weights + more, rel=2e-2)


@pytest.mark.parametrize("name", ODD)
def test_float32_comes_back_to_the_bit(name: str) -> None:
    shape = parse(name)
    state = state_of(shape)
    again = unpacked_tensors(shape, "float32", payload_of(shape, "float32", state))
    assert again.keys() == state.keys()
    for tensor, wanted in state.items():
        np.testing.assert_array_equal(again[tensor], wanted)


@pytest.mark.parametrize("name", ODD)
def test_bfloat16_rounds_as_torch_does(name: str) -> None:
    shape = parse(name)
    state = state_of(shape)
    again = unpacked_tensors(shape, "bfloat16", payload_of(shape, "bfloat16", state))
    for tensor, wanted in state.items():
        exact = tensor.endswith(("norm.weight", "position.table"))
        rounded = wanted if exact else torch.tensor(wanted).bfloat16().float().numpy()
        np.testing.assert_array_equal(again[tensor], rounded)


@pytest.mark.parametrize("name", ODD)
def test_int8_is_off_by_half_a_step_at_most(name: str) -> None:
    shape = parse(name)
    state = state_of(shape)
    payload = payload_of(shape, "int8", state)
    for section in layout(shape, "int8").sections:
        wanted = np.concatenate([np.atleast_2d(state[part]) for part, _ in section.parts])
        found = unpacked(section, payload)
        if section.kind == "int8 panels":
            step = np.abs(wanted).max(1, keepdims=True) / 127
            assert (np.abs(found - wanted) <= 0.5001 * step).all()
            np.testing.assert_allclose(np.abs(found).max(1), np.abs(wanted).max(1), rtol=1e-6)
        elif section.kind == "bfloat16 rows":
            np.testing.assert_array_equal(found, torch.tensor(wanted).bfloat16().float().numpy())
        else:
            np.testing.assert_array_equal(found, wanted)


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(PRECISIONS), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_matrix_lies_as_the_specification_says(rows: int, columns: int, precision: str, seed: int) -> None:
    """Element by element, by the formulas of docs/native.md."""
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    kind = f"{precision} panels"
    section = Section("m", kind, 0, rows, columns, stored_bytes(kind, rows, columns), (("m", rows),))
    data = np.frombuffer(b"".join(piece.tobytes() for piece in packed(section, {"m": matrix})), np.uint8)
    assert len(data) == section.bytes
    group, panels = GROUP[precision], -(-rows // PANEL)
    groups = -(-columns // group)
    number = {"float32": "<f4", "bfloat16": "<u2", "int8": "i1"}[precision]
    body = panels * groups * group * PANEL * np.dtype(number).itemsize
    lying = data[:body].view(number)
    wanted = np.zeros(len(lying), number)
    values = {"float32": matrix, "bfloat16": bfloat16(matrix), "int8": quantised(matrix, row_scales(matrix))}[precision]
    for row in range(rows):
        for column in range(columns):
            panel, beside, step, inside = row // 16, row % 16, column // group, column % group
            wanted[((panel * groups + step) * 16 + beside) * group + inside] = values[row, column]
    np.testing.assert_array_equal(lying, wanted)
    if precision == "int8":
        scales = data[body:].view("<f4")
        np.testing.assert_array_equal(scales[:rows], row_scales(matrix))
        assert (scales[rows:] == 1).all()
        assert len(scales) == 16 * panels


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from((1, 2, 4)))
@settings(max_examples=60, deadline=None)
def test_panels_there_and_back(rows: int, columns: int, group: int) -> None:
    matrix = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    np.testing.assert_array_equal(out_of_panels(in_panels(matrix, group), rows, columns), matrix)


def test_a_large_matrix_is_packed_in_pieces_that_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(0).normal(size=(149, 11)).astype(np.float32)
    for precision in PRECISIONS:
        kind = f"{precision} panels"
        section = Section("m", kind, 0, 149, 11, stored_bytes(kind, 149, 11), (("m", 149),))
        monkeypatch.setattr("deepnarrow.runtime.layout.CHUNK", 1 << 22)
        whole = b"".join(piece.tobytes() for piece in packed(section, {"m": matrix}))
        monkeypatch.setattr("deepnarrow.runtime.layout.CHUNK", 11 * 40)
        pieces = [piece.tobytes() for piece in packed(section, {"m": matrix})]
        assert len(pieces) >= 4
        assert b"".join(pieces) == whole


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=2.0**127, min_value=-(2.0**127)),
        min_size=1,
    )
)
@settings(max_examples=200, deadline=None)
def test_bfloat16_of_any_number(numbers: list[float]) -> None:
    array = np.array(numbers, np.float32)
    np.testing.assert_array_equal(from_bfloat16(bfloat16(array)), torch.tensor(array).bfloat16().float().numpy())


def test_zero_and_tiny_rows_in_int8() -> None:
    rows = np.array([[0, 0, 0], [1e-45, -1e-45, 0], [3e38, -3e38, 1]], np.float32)
    scale = row_scales(rows)
    assert scale[0] == 1
    assert np.isfinite(scale).all()
    steps = quantised(rows, scale)
    assert steps[0].tolist() == [0, 0, 0]
    assert steps[2].tolist() == [127, -127, 0]


def test_what_cannot_be_packed_is_refused() -> None:
    shape = parse(ODD[0])
    state = state_of(shape)
    section = next(one for one in layout(shape, "int8").sections if one.name == "decoder.0.cross_kv")
    state["decoder.blocks.0.cross_attention.key.weight"][3, 3] = np.nan
    with pytest.raises(UserError, match=r"cross_attention.key.weight holds infinite numbers or NaN"):
        list(packed(section, state))
    state["decoder.blocks.0.cross_attention.key.weight"] = np.zeros((3, 3), np.float32)
    with pytest.raises(UserError, match=r"is \(3, 3\), but the shape makes it \(256, 32\)"):
        list(packed(section, state))
    with pytest.raises(UserError, match="unknown precision 'int4'; did you mean int8"):
        layout(shape, "int4")
