"""Batches by a budget of tokens, and the encoder's pieces: nothing is lost, and nothing comes out otherwise."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.model import inference, native
from deepnarrow.model.decode import Beam, Greedy, generate
from deepnarrow.model.inference import LEAST, batches_by_length, budget, distinct, encode_rows, pad
from deepnarrow.model.likelihood import rank, score
from deepnarrow.model.t5 import T5

SHAPE = "tiny-nl2-dm32-ff64-nh2-kv16-v96"


@pytest.fixture
def model(random_model) -> T5:
    return random_model(SHAPE)


def rows(lengths: list[int]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [[*torch.randint(2, 96, (length - 1,), generator=draw).tolist(), 1] for length in lengths]


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(LEAST, 400))
def test_every_row_once_and_no_batch_beyond_the_budget(lengths: list[int], tokens: int) -> None:
    batches = list(batches_by_length([[5] * length for length in lengths], None, tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert lengths[batch[0]] == longest
        assert len(batch) == 1 or len(batch) * max(longest, LEAST) <= tokens
        assert len(batch) <= max(1, tokens // LEAST)


def test_windows_bound_what_waits_for_its_answer() -> None:
    lengths = [10 + n % 50 for n in range(2000)]
    first = next(iter(batches_by_length([[5] * length for length in lengths], None, 64)))
    assert max(first) < 64 * inference.WINDOW // LEAST


def test_a_beam_has_its_share_of_the_budget() -> None:
    cpu = torch.device("cpu")
    assert budget(cpu, 4) == budget(cpu) // 4
    assert budget(cpu, 10**6) == LEAST


def test_distinct_rows_lead_back() -> None:
    some = [(1, 2), (3,), (1, 2), (), (3,)]
    different, places = distinct(some)
    assert different == [(1, 2), (3,), ()]
    assert [different[place] for place in places] == some


@pytest.mark.parametrize("lengths", [[40, 31, 30, 17, 8, 8, 3, 2, 1], [40] * 5, [5]])
def test_pieces_are_the_whole(model: T5, monkeypatch: pytest.MonkeyPatch, lengths: list[int]) -> None:
    input_BL = pad(rows(lengths))
    with inference.inference(model):
        whole_BLD, mask_BL = encode_rows(model, input_BL)
        taken: list[int] = []
        encode = model.encode
        monkeypatch.setattr(
            model, "encode", lambda ids, *rest, **more: (taken.append(ids.numel()), encode(ids, *rest, **more))[1]
        )
        monkeypatch.setattr(inference, "PIECE", 64)
        pieces_BLD, pieces_mask_BL = encode_rows(model, input_BL)
    assert torch.equal(mask_BL, pieces_mask_BL)
    torch.testing.assert_close(pieces_BLD[mask_BL], whole_BLD[mask_BL], atol=2e-6, rtol=1e-5)
    assert not pieces_BLD.isnan().any()
    assert len(lengths) == 1 or (len(taken) > 1 and max(taken) <= 64)


def test_pieces_go_by_the_kernels_of_training(random_model: Callable[..., T5], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are any: then each block's feed-forward is one call, and outside nothing has changed."""
    if native.library() is None:
        pytest.skip("needs the compiled kernels")
    model, input_BL, calls = random_model(SHAPE), pad(rows([40, 31, 30, 17])), []
    fused = native.feed_forward
    monkeypatch.setattr(native, "feed_forward", lambda *given: (calls.append(1), fused(*given))[1])
    monkeypatch.setattr(inference, "PIECE", 64)
    with inference.inference(model):
        plain_BLD = model.encode(input_BL)
        assert not calls
        pieces_BLD, mask_BL = encode_rows(model, input_BL)
        assert len(calls) == 2 * 3  # blocks times pieces: [40], [31, 30], [17]
        assert not native.usable(input_BL.float())
    torch.testing.assert_close(pieces_BLD[mask_BL], plain_BLD[mask_BL], atol=2e-6, rtol=1e-5)
    low, before = model.to(torch.bfloat16), len(calls)
    with inference.inference(low):
        encode_rows(low, input_BL)
    assert len(calls) == before


@pytest.mark.parametrize("piece", [1, 48, 2048])
def test_answers_and_likelihoods_do_not_depend_on_pieces(
    model: T5, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    inputs = [*rows([3, 44, 17, 8, 44, 30, 1, 25]), [0, 7, 0, 9, 1, 0]]
    targets = rows([4, 2, 3, 9, 1, 5, 7, 2, 3])
    one = [generate(model, inputs, search, max_tokens=6, batch=1) for search in (Greedy(), Beam(3))]
    nats, table = score(model, inputs, targets, batch=1), rank(model, inputs, targets[:3], batch=1)
    monkeypatch.setattr(inference, "PIECE", piece)
    for search, alone in zip((Greedy(), Beam(3)), one, strict=True):
        found = generate(model, inputs, search, max_tokens=6)
        assert [each[0].ids for each in found] == [each[0].ids for each in alone]
    assert score(model, inputs, targets) == pytest.approx(nats, abs=1e-4)
    torch.testing.assert_close(
        torch.from_numpy(rank(model, inputs, targets[:3])), torch.from_numpy(table), atol=1e-4, rtol=0
    )
