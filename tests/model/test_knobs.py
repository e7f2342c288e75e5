"""Every knob of a Shape in the running network: sizes, caching, neighbours, precision, compilation."""

import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.model.t5 import T5, shift_right
from deepnarrow.shapes import parse
from deepnarrow.shapes.counts import parameters

BASE = "tiny-nl2-dm32-ff64-kv8-nh4-v120"
KNOBS = [
    BASE,
    f"{BASE}-el4",
    f"{BASE}-untied",
    f"{BASE}-geglu",
    f"{BASE}-kh2",
    f"{BASE}-kh1",
    f"{BASE}-skv",
    f"{BASE}-sh",
    f"{BASE}-kh2-shkv",
    f"{BASE}-kv7-nh3-swiglu-untied-rb8-rd20",
]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("shape", [*KNOBS, f"{BASE}-dl0", f"{BASE}-dl0-kh1-untied", "tiny", "v1_1-small", "mini-shkv"])
def test_weights_number_what_the_shape_says(shape: str) -> None:
    with torch.device("meta"):
        model = T5(parse(shape))
    assert sum(weight.numel() for weight in model.parameters()) == parameters(parse(shape)).total


@pytest.mark.parametrize("lengths", [[11, 11], [11, 4, 1]], ids=["full", "padded"])
@pytest.mark.parametrize("shape", KNOBS)
@torch.no_grad()
def test_cached_decoding_equals_uncached(shape: str, lengths: list[int], random_model, ids) -> None:
    model = random_model(shape)
    inputs, targets = ids(lengths, 11, 120), ids([9] * len(lengths), 9, 120, seed=1)
    mask, read = inputs != 0, shift_right(targets)
    memory = model.encode(inputs, mask)
    expected = model.decode(read, memory, mask)
    cache = model.start_cache(memory, mask, 9)
    single = [model.decode(read[:, step : step + 1], None, None, cache) for step in range(9)]
    torch.testing.assert_close(torch.cat(single, 1), expected, **CLOSE)
    assert cache.position == 9
    cache = model.start_cache(memory, mask, 12)  # a longer cache than needed, filled by pieces
    pieces = [model.decode(read[:, a:b], None, None, cache) for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, **CLOSE)


@pytest.mark.parametrize("shape", [BASE, f"{BASE}-kh2-shkv"])
@torch.no_grad()
def test_rows_can_be_reordered_repeated_and_dropped(shape: str, random_model, ids) -> None:
    model = random_model(shape)
    inputs, targets = ids([8, 3], 8, 120), ids([6, 6], 6, 120, seed=1)
    mask, read = inputs != 0, shift_right(targets)
    memory = model.encode(inputs, mask)
    cache = model.start_cache(memory, mask, 6)
    model.decode(read[:, :3], None, None, cache)
    for picked in ([1, 0, 1], [2, 1]):  # rows 1 0 1, then 1 0
        cache.reorder(torch.tensor(picked))
    rows = torch.tensor([1, 0])
    found = model.decode(read[rows, 3:4], None, None, cache)
    torch.testing.assert_close(found, model.decode(read, memory, mask)[rows, 3:4], **CLOSE)
    assert cache.rows == 2


@torch.no_grad()
def test_beams_of_one_input_may_leave_the_memory_in_place(random_model, ids) -> None:
    model = random_model(BASE)
    inputs, targets = ids([8, 3], 8, 120)[[0, 0, 1, 1]], ids([4] * 4, 4, 120, seed=1)
    mask, read = inputs != 0, shift_right(targets)
    memory = model.encode(inputs, mask)
    cache = model.start_cache(memory, mask, 4)
    model.decode(read[:, :3], None, None, cache)
    before = cache.memory[0].key_BGMK
    rows = torch.tensor([1, 1, 2, 3])
    cache.reorder(rows, same_memory=True)
    assert cache.memory[0].key_BGMK is before
    torch.testing.assert_close(
        model.decode(read[rows, 3:4], None, None, cache), model.decode(read[rows], memory, mask)[:, 3:4], **CLOSE
    )


@torch.no_grad()
def test_the_cache_refuses_what_does_not_fit(random_model, ids) -> None:
    model = random_model(BASE)
    inputs = ids([4, 4], 4, 120)
    cache = model.start_cache(model.encode(inputs), None, 3)
    model.decode(torch.zeros(2, 2, dtype=torch.long), None, None, cache)
    with pytest.raises(ValueError, match="cannot take 2 more tokens in 2 rows"):
        model.decode(torch.zeros(2, 2, dtype=torch.long), None, None, cache)
    with pytest.raises(ValueError, match="in 3 rows"):
        model.decode(torch.zeros(3, 1, dtype=torch.long), None, None, cache)


@torch.no_grad()
def test_tied_keys_and_values_are_one_tensor_in_the_cache(random_model, ids) -> None:
    inputs = ids([6], 6, 120)
    sizes = {}
    for shape in (BASE, f"{BASE}-skv", f"{BASE}-kh1", f"{BASE}-kh1-skv"):
        model = random_model(shape)
        sizes[shape] = model.start_cache(model.encode(inputs), None, 10).bytes
    assert sizes[BASE] == 2 * 2 * (6 + 10) * 32 * 4  # keys and values, 2 layers, 6 + 10 positions, width 32, 4 bytes
    assert sizes[f"{BASE}-skv"] == sizes[BASE] // 2
    assert sizes[f"{BASE}-kh1"] == sizes[BASE] // 4
    assert sizes[f"{BASE}-kh1-skv"] == sizes[BASE] // 8


@pytest.mark.parametrize("gradient", [False, True], ids=["fused", "spelt out"])
@pytest.mark.parametrize("shape", KNOBS)
def test_neighbours_do_not_matter(shape: str, gradient: bool, random_model, ids) -> None:
    """A row in a batch of unequal lengths, however padded, gives what it gives alone."""
    model, lengths = random_model(shape), [12, 5, 1, 9]
    targets = ids([7, 2, 5, 4], 7, 120, seed=1)
    with torch.set_grad_enabled(gradient):
        for left in (False, True):
            inputs = ids(lengths, 12, 120, left=left)
            together = model(inputs, targets)
            for row, length in enumerate(lengths):
                alone = inputs[row][inputs[row] != 0][None]
                assert alone.shape[1] == length
                real = int((targets[row] != 0).sum())
                single = model(alone, targets[row : row + 1, :real])
                torch.testing.assert_close(together[row : row + 1, :real], single, **CLOSE)


@pytest.mark.parametrize("gradient", [False, True], ids=["fused", "spelt out"])
def test_a_row_of_padding_alone_is_finite(gradient: bool, random_model, ids) -> None:
    model = random_model(BASE)
    with torch.set_grad_enabled(gradient):
        logits = model(ids([4, 0], 4, 120), ids([3, 0], 3, 120))
    assert logits.isfinite().all()
    if gradient:
        logits.square().mean().backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_what_comes_later_in_the_target_does_not_matter(random_model, ids) -> None:
    model, inputs, targets = random_model(BASE), ids([8], 8, 120), ids([6], 6, 120, seed=1)
    changed = targets.clone()
    changed[0, 3:] = 5
    torch.testing.assert_close(model(inputs, targets)[:, :4], model(inputs, changed)[:, :4], **CLOSE)
    assert not torch.allclose(model(inputs, targets)[:, 4:], model(inputs, changed)[:, 4:])


def test_shared_stacks_share_all_but_cross_attention(random_model) -> None:
    shared, apart = random_model(f"{BASE}-sh"), random_model(BASE)
    names = set(shared.state_dict())
    assert names == {name for name in apart.state_dict() if not name.startswith("encoder.")}


@pytest.mark.parametrize("shape", KNOBS)
def test_every_weight_learns(shape: str, random_model, ids) -> None:
    model = random_model(shape, dropout=0.1).train()
    model(ids([9, 4], 9, 120), ids([6, 3], 6, 120)).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_an_encoder_alone_encodes_and_says_so_otherwise(random_model, ids) -> None:
    model = random_model(f"{BASE}-dl0-untied")
    assert model.encode(ids([4], 4, 120)).shape == (1, 4, 32)
    assert not any(name.startswith(("decoder", "output")) for name, _ in model.named_parameters())
    with pytest.raises(UserError, match="an encoder alone"):
        model(ids([4], 4, 120), ids([4], 4, 120))


def test_hidden_and_logits_are_forward_in_two_steps(random_model, ids) -> None:
    for shape in (BASE, f"{BASE}-untied"):
        model, inputs, targets = random_model(shape), ids([5, 2], 5, 120), ids([4, 4], 4, 120)
        hidden = model.hidden(inputs, targets)
        assert hidden.shape == (2, 4, 32)
        assert torch.equal(model.logits(hidden), model(inputs, targets))
        parts = torch.cat([model.logits(part) for part in hidden.flatten(0, 1).split(3)])
        torch.testing.assert_close(parts.view(2, 4, 120), model(inputs, targets))


def test_dropout_acts_in_training_only(random_model, ids) -> None:
    model, inputs, targets = random_model(BASE, dropout=0.2), ids([5], 5, 120), ids([4], 4, 120)
    assert torch.equal(model(inputs, targets), model(inputs, targets))
    model.train()
    assert not torch.equal(model(inputs, targets), model(inputs, targets))
    with pytest.raises(UserError, match="dropout must be at least 0 and below 1"):
        T5(parse(BASE), dropout=1.0)


@pytest.mark.parametrize("gradient", [False, True], ids=["fused", "spelt out"])
@pytest.mark.parametrize("shape", [BASE, f"{BASE}-kh2-shkv", f"{BASE}-geglu-untied"])
def test_bfloat16_is_near_float32(shape: str, gradient: bool, random_model, ids) -> None:
    """Under autocast and cast whole, padded, no worse than rounding explains, and never NaN."""
    model = random_model(shape)
    inputs, targets = ids([9, 4, 0], 9, 120), ids([6, 6, 6], 6, 120)
    with torch.set_grad_enabled(gradient):
        exact = model(inputs, targets)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(inputs, targets)
        low = model.bfloat16()(inputs, targets)
    for found in (mixed, low):
        assert found.isfinite().all()
        error = (found.float() - exact).norm() / exact.norm()
        assert error < 0.03, error
    assert low.dtype is torch.bfloat16


@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "cast whole"])
@torch.no_grad()
def test_bfloat16_cached_decoding(whole: bool, random_model, ids) -> None:
    model, inputs, targets = random_model(BASE), ids([9, 4], 9, 120), ids([5, 5], 5, 120)
    exact = model(inputs, targets)
    model = model.bfloat16() if whole else model
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        mask = inputs != 0
        cache = model.start_cache(model.encode(inputs), mask, 5)
        found = [model.decode(shift_right(targets)[:, t : t + 1], None, None, cache) for t in range(5)]
    assert cache.past[0].key_BGMK.dtype is torch.bfloat16
    assert (torch.cat(found, 1).float() - exact).norm() / exact.norm() < 0.03


def test_float16_is_refused_with_the_reason(random_model, ids) -> None:
    model = random_model(BASE)
    with torch.autocast("cpu", torch.float16), pytest.raises(UserError, match="65,504"):
        model.encode(ids([3], 3, 120))
    with pytest.raises(UserError, match="use bfloat16 or float32"):
        model.half()(ids([3], 3, 120), ids([3], 3, 120))


def test_it_compiles_into_one_graph(random_model, ids) -> None:
    """Tracing and its gradients; what a compiler makes of the graph is the compiler's affair."""
    model = random_model(f"{BASE}-kh2").train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs, targets = ids([9, 4], 9, 120), ids([6, 6], 6, 120)
    torch.testing.assert_close(compiled(inputs, targets), model(inputs, targets), **CLOSE)
