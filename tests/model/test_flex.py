"""Attention inside FlexAttention against the plain path. What runs without a GPU: torch's own tracing of it, and its
unfused implementation with that one's backward pass. The compiled kernel is tested on a GPU, and skipped without one.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from deepnarrow.model import flex, native
from deepnarrow.model.init import initialise
from deepnarrow.model.layers import split
from deepnarrow.model.position import PositionBias
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch
from deepnarrow.train import loss

BASE = "tiny-nl2-dm32-ff64-kv16-nh4-v120"
# torch's tracing asks after gradients of what is no leaf, and hides its own warning only where none is an error
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@cache
def traced_by(backend: str) -> Callable[..., Tensor]:
    return torch.compile(flex.attend, dynamic=True, fullgraph=True, backend=backend)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[int]:
    """On a CPU as on a GPU, but that torch's tracing ends in its unfused implementation; one entry for each call.

    Torch refuses gradients on a CPU, where it has no kernel for them; the unfused implementation has them.
    """
    made, compiled = [], traced_by(getattr(request, "param", "eager"))

    def counted(query: Tensor, *rest: object) -> Tensor:
        made.append(query.shape[2])
        return compiled(query, *rest)

    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(flex, "DEVICE", "cpu")
    monkeypatch.setattr(flex, "compiles", lambda: True)
    monkeypatch.setattr(flex, "compiled", lambda: counted)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    return made


def numbers(name: str, batch: int, length: int) -> Tensor:
    """Who belongs where: all to one, one row with padding in front and one with padding behind, or three examples."""
    at = torch.arange(length).expand(batch, -1)
    if name == "all":
        return torch.ones(batch, length, dtype=torch.long)
    if name == "padded":
        row = torch.arange(batch)[:, None]
        return torch.where(row % 2 == 0, at < max(1, length // 3), at >= length // 4).long()
    return (at * 3 // length + 1).masked_fill(at >= length - length // 8, 0)


def attended(
    run: Callable[..., Tensor], batch: int, queries: int, keys: int, heads: int, groups: int, *, width: int = 16,
    tied: bool = False, biased: bool = True, device: str = "cpu", dtype: torch.dtype = torch.float32,
) -> list[Tensor]:  # fmt: skip
    """The result of `run(query, key, value, bias)` and its gradients, of always the same draws."""
    draws = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=draws).to(device, dtype).mul_(width**-0.25).requires_grad_()

    leaves = [drawn(batch, n, h * width) for n, h in [(queries, heads), (keys, groups), (keys, groups)][: 3 - tied]]
    table = torch.randn(32, heads, generator=draws).to(device).requires_grad_()
    weight = torch.randn(batch, heads, queries, width, generator=draws).to(device)
    query = split(leaves[0], heads)
    key, value = split(leaves[1], groups), split(leaves[1 if tied else 2], groups)
    out = run(query, key, key if tied else value, table)
    (out.double() * weight).sum().backward()
    return [out.detach(), *(x.grad for x in [*leaves, *([table] if biased else [])])]


def both(
    own: str, other: str, batch: int, queries: int, keys: int, heads: int, groups: int, *, causal: bool = False,
    biased: bool = True, device: str = "cpu", **how: object,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Ours, and float64 spelt out: position bias from a table laid out as a matrix, and masks."""
    position = PositionBias(parse(f"{BASE}-nh{heads}"))
    own_BL = numbers(own, batch, queries).to(device)
    other_BM = own_BL if causal else numbers(other, batch, keys).to(device)

    def ours(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        del position.table
        position.table = table  # a plain tensor, for its gradient
        bias = flex.bias_by_offset(position, causal=causal) if biased else None
        return flex.attention(query, key, value, flex.view(bias, own_BL, other_BM, causal=causal))

    def plain(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        del position.table
        position.table = table.double()
        key, value = (x.double().repeat_interleave(heads // groups, 1) for x in (key, value))
        logits = query.double() @ key.mT
        if biased:
            logits = logits + position(queries, keys, causal=causal)
        seen = (own_BL[:, None, :, None] == other_BM[:, None, None]) & (own_BL != 0)[:, None, :, None]
        seen = seen.tril() if causal else seen
        return logits.masked_fill(~seen, -1e300).softmax(-1).where(seen.any(-1, keepdim=True), 0.0) @ value

    how |= {"biased": biased, "device": device}
    return tuple(attended(run, batch, queries, keys, heads, groups, **how) for run in (ours, plain))  # type: ignore[return-value,arg-type]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=2e-5)


def test_encoder_decoder_and_cross_attention_and_their_gradients(calls: list[int]) -> None:
    for batch, length in [(2, 40), (3, 300)]:
        for own in ["all", "padded", "packed"]:
            queries = "all" if own == "padded" else own  # of padded rows all queries look
            assert_close(*both(queries, own, batch, length, length, 4, 4))
            assert_close(*both(queries, own, batch, length, length, 4, 4, causal=True))
            assert_close(*both(queries, own, batch, length, length // 2 + 3, 4, 4, biased=False))
    assert calls


@pytest.mark.parametrize(("groups", "tied"), [(2, False), (1, True)])
def test_grouped_and_tied_keys(groups: int, tied: bool, calls: list[int]) -> None:
    assert_close(*both("packed", "packed", 2, 140, 140, 4, groups, causal=True, tied=tied))
    assert_close(*both("packed", "packed", 2, 30, 70, 4, groups, biased=False, tied=tied))


def test_beyond_the_span_the_nearest_offset_counts(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "SPAN", 1)  # then it is where T5's buckets end, at 128
    assert_close(*both("all", "all", 1, 400, 400, 2, 2))


def gradients(
    shape: str, batch: Batch, monkeypatch: pytest.MonkeyPatch, *,
    plain: bool = False, dropout: float = 0.0, recompute: bool = False, device: str = "cpu",
) -> list[Tensor]:  # fmt: skip
    """The loss of a batch and every weight's gradient."""
    made = T5(parse(shape), dropout=dropout, recompute=recompute).train()
    initialise(made, 3)
    for name, weight in made.named_parameters():
        if name.endswith("table"):
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    made.to(device)
    torch.manual_seed(5)
    with monkeypatch.context() as patch:
        if plain:
            patch.setenv(flex.SWITCH, "0")
        found = loss.accumulate(made, batch, divisor=50, device=torch.device(device), z_loss=1e-3)
    return [torch.as_tensor(found.nll), *(weight.grad for weight in made.parameters())]


def batch_of(kind: str, rows: int, inputs: int, targets: int) -> Batch:
    random, sides = np.random.default_rng(0), []
    number = [numbers(kind, rows, length).numpy() for length in (inputs, targets)]
    for n in number:
        sides.append(np.where(n > 0, random.integers(2, 120, n.shape), 0))
    return Batch(*sides, *number) if kind == "packed" else Batch(*sides)


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all((a - b).norm() <= 1e-5 * b.norm() + 1e-6 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [BASE, f"{BASE}-kh2-geglu-untied", f"{BASE}-kh1-skv", f"{BASE}-sh"])
def test_the_whole_network_with_dropout_equals_the_plain_path(
    shape: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ["packed", "padded"]:
        made = batch_of(kind, 3, 150, 24)
        expected = gradients(shape, made, monkeypatch, plain=True, dropout=0.2)
        assert not calls
        assert equal(gradients(shape, made, monkeypatch, dropout=0.2), expected)
        assert calls == [150, 150, 128, 128, 128, 128]
        calls.clear()


@pytest.mark.parametrize("calls", ["aot_eager"], indirect=True)
def test_it_computes_again_in_the_backward_pass(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    made = batch_of("packed", 3, 150, 24)
    expected = gradients(BASE, made, monkeypatch, plain=True)
    assert equal(gradients(BASE, made, monkeypatch, recompute=True), expected)
    assert len(calls) == 12  # twice for each of six


LENGTHS = [(4, 33), (40, 7), (128, 128), (129, 127), (300, 114), (256, 256), (90, 200), (130, 390), (512, 3), (9, 9)]


def graphs_of_ten_lengths(monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> list[int]:
    """How many graphs there are after each. Each has another batch size, too."""
    torch.compiler.reset()
    before, found = counters["stats"]["unique_graphs"], []
    for rows, (inputs, targets) in enumerate(LENGTHS, 2):
        gradients(f"{BASE}-nl1", batch_of("packed", rows, inputs, targets), monkeypatch, device=device)
        found.append(counters["stats"]["unique_graphs"] - before)
    return found


def test_other_lengths_and_batch_sizes_compile_nothing(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three graphs for a network of two stacks: the encoder's, the decoder's, and that between them."""
    assert graphs_of_ten_lengths(monkeypatch) == [3] * 10


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that anything makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_nothing_is_laid_out_by_query_and_key() -> None:
    length, heads, position = 512, 4, PositionBias(parse(BASE))
    own = numbers("packed", 2, length)
    with Largest() as ours:
        view = flex.view(flex.bias_by_offset(position, causal=True), own, own, causal=True)
        view.bias_HO.sum().backward()
    assert heads * flex.SPAN <= ours.elements < length * length // 4
    with Largest() as laid_out:
        flex.dense(view, length, length)
    assert laid_out.elements >= heads * length * length


def test_the_traced_graph_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the projections and the kernel torch sees nothing that it would compute by itself."""
    calls, length = [], 512

    def backend(graph: torch.fx.GraphModule, inputs: list[object]) -> Callable:
        calls.extend(node for node in graph.graph.nodes if node.op in ("call_function", "call_method"))
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(flex, "compiled", lambda: torch.compile(flex.attend, dynamic=True, backend=backend))
    x, ones = torch.randn(2, length, 64), torch.ones(2, length)
    view = flex.view(flex.bias_by_offset(PositionBias(parse(BASE)), causal=False).detach(), ones, ones)
    flex.attention(split(x, 4), split(x, 4), split(x, 4), view)
    made = [node.meta["example_value"] for node in calls]
    tensors = [x for value in made for x in (value if isinstance(value, tuple) else [value]) if isinstance(x, Tensor)]
    assert "flex_attention" in [str(node.target) for node in calls]
    assert all(x.numel() <= 2 * length * 64 for x in tensors)
    torch.compiler.reset()


def listed(number: Tensor, block: Tensor) -> Tensor:
    """[B, X, Y] from lists."""
    seen = torch.zeros(block[:, 0].shape, dtype=torch.bool)
    for row, n in np.ndenumerate(number[:, 0].numpy()):
        seen[row][block[:, 0][row][:n].long()] = True
    return seen


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("own", "other"), [("all", "padded"), ("packed", "packed"), ("all", "all"), ("any", "any")])
def test_the_blocks_visited(own: str, other: str, causal: bool) -> None:
    queries, keys = 500, 500 if causal else 270
    torch.manual_seed(0)
    number = [torch.randint(0, 4, (3, n)) if own == "any" else numbers(name, 3, n)
              for name, n in [(own, queries), (own if causal else other, keys)]]  # fmt: skip
    view = flex.view(None, *number, causal=causal)
    seen = (number[0][:, :, None] == number[1][:, None]) & (number[0] != 0)[:, :, None]
    seen = seen.tril() if causal else seen
    blocks = torch.nn.functional.pad(seen, (0, -keys % 128, 0, -queries % 128))
    blocks = blocks.unflatten(2, (-1, 128)).unflatten(1, (-1, 128)).transpose(2, 3).flatten(3)
    part, whole = listed(*view.lists[:2]), listed(*view.lists[2:4])
    assert torch.equal(whole, blocks.all(-1))
    assert not (part & whole).any()
    assert not (blocks.any(-1) & ~part & ~whole).any()
    if own != "any":
        assert torch.equal(part | whole, blocks.any(-1))
    assert torch.equal(listed(*view.lists[4:6]), part.mT)
    assert torch.equal(listed(*view.lists[6:]), whole.mT)


def test_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    assert not flex.usable(x, width=64)  # never on a CPU
    monkeypatch.setattr(flex, "DEVICE", "cpu")
    monkeypatch.setattr(flex, "compiles", lambda: True)
    assert flex.usable(x, x.bfloat16(), width=64)
    assert not flex.usable(x, x.double(), width=64)
    assert not any(flex.usable(x, width=width) for width in (8, 24, 85))
    with torch.no_grad():
        assert not flex.usable(x, width=64)
    with Largest():
        assert not flex.usable(x, width=64)
    torch.use_deterministic_algorithms(True)
    try:
        assert not flex.usable(x, width=64)
    finally:
        torch.use_deterministic_algorithms(False)
    with monkeypatch.context() as patch:
        patch.setattr(flex, "compiles", lambda: False)
        assert not flex.usable(x, width=64)
    monkeypatch.setenv(flex.SWITCH, "0")
    assert not flex.usable(x, width=64)


def test_a_layer_it_does_not_fit_gets_a_matrix(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(BASE, batch_of("packed", 2, 50, 20), monkeypatch, plain=True)
    usable = flex.usable  # where a stack asks, with one tensor, but not where a layer does, with three
    monkeypatch.setattr(flex, "usable", lambda *tensors, width: len(tensors) == 1 and usable(*tensors, width=width))
    assert equal(gradients(BASE, batch_of("packed", 2, 50, 20), monkeypatch), expected)
    assert not calls


def test_a_draw_for_each_attention_weight_is_left_to_the_plain_path(calls: list[int]) -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    T5(parse(BASE), dropout=0.5, dropout_shared=False).train()(ids, ids)
    assert not calls
    T5(parse(BASE), dropout=0.5).train()(ids, ids)
    assert calls


@needs_gpu
@pytest.mark.parametrize("causal", [False, True])
def test_the_compiled_kernel(causal: bool) -> None:
    """Never yet run: no GPU was at hand."""
    for queries, keys in [(40, 40), (300, 300), *([] if causal else [(130, 70)])]:
        for groups, tied in [(4, False), (2, False), (1, True)]:
            found, expected = both(
                "packed", "packed", 2, queries, keys, 4, groups, causal=causal, tied=tied, device="cuda"
            )
            for one, other in zip(found, expected, strict=True):
                assert (one - other).norm() <= 1e-3 * other.norm()  # products may be in TF32


@needs_gpu
def test_bfloat16_errs_no_more_than_twice_what_sdpa_errs() -> None:
    """Never yet run: no GPU was at hand."""
    how = {"device": "cuda", "dtype": torch.bfloat16, "width": 64}
    found, exact = both("packed", "packed", 2, 300, 300, 4, 4, **how)
    position, own_BL = PositionBias(parse(BASE)), numbers("packed", 2, 300).cuda()

    def sdpa(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        del position.table
        position.table = table
        view = flex.view(flex.bias_by_offset(position, causal=False), own_BL, own_BL)
        bias = flex.dense(view, 300, 300).to(query.dtype)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return mixed.where((own_BL != 0)[:, None, :, None], 0.0)

    plain = attended(sdpa, 2, 300, 300, 4, 4, **how)
    for ours, theirs, right in zip(found, plain, exact, strict=True):
        assert (ours.double() - right).norm() <= 2 * (theirs.double() - right).norm()


@needs_gpu
def test_other_lengths_and_batch_sizes_compile_nothing_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never yet run: no GPU was at hand."""
    flex.compiled.cache_clear()
    assert graphs_of_ten_lengths(monkeypatch, "cuda") == [3] * 10


@needs_gpu
def test_memory_at_4096_positions() -> None:
    """Never yet run: no GPU was at hand."""
    length, heads = 4096, 8

    def step() -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        query = split(
            torch.randn(1, length, heads * 64, device="cuda", dtype=torch.bfloat16, requires_grad=True), heads
        )
        position = PositionBias(parse(f"{BASE}-nh{heads}")).cuda()
        own = torch.ones(1, length, device="cuda")
        view = flex.view(flex.bias_by_offset(position, causal=True), own, own, causal=True)
        flex.attention(query, query * 1, query * 2, view).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    step()
    assert step() < heads * length * length * 2 // 4  # a quarter of the bias alone in bfloat16
