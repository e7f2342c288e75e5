"""The compiled kernels against plain PyTorch: values, gradients, precision, and when they step aside."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deepnarrow.model import native
from deepnarrow.model.init import initialise
from deepnarrow.model.layers import KeysValues, attend, dense
from deepnarrow.model.native import Sight
from deepnarrow.model.t5 import T5, mask_ranges, segment_ranges
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch
from deepnarrow.train import loss

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler, or the kernels are switched off")
CPU = torch.device("cpu")
BASE = "tiny-nl2-dm32-ff64-kv8-nh4-v120"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "d", "f"), [(1, 1, 1), (5, 7, 17), (73, 300, 40), (150, 33, 129), (6, 5000, 16)])
@pytest.mark.parametrize("kind", ["NN", "NT", "TN"])
def test_products_of_any_size(n: int, d: int, f: int, kind: str, dtype: torch.dtype) -> None:
    if not native.multiplies():
        pytest.skip("this processor's own bfloat16 is used")
    torch.manual_seed(0)
    a = torch.randn(n, d, dtype=dtype) if kind[0] == "N" else torch.randn(d, n, dtype=dtype).T
    b = torch.randn(d, f, dtype=dtype) if kind[1] == "N" else torch.randn(f, d, dtype=dtype).T
    keep, gate = torch.rand(1, f), torch.randn(n, f)
    exact = a.double() @ b.double()
    found = native.product(a, b, torch.empty(n, f), keep_BF=torch.ones(1, f))  # so that float32 is ours, too
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * d**0.5)
    found = native.product(a, b, torch.empty(n, f), relu=True, keep_BF=keep)
    torch.testing.assert_close(found.double(), exact.relu() * keep, rtol=1e-5, atol=1e-5 * d**0.5)
    found = native.product(a, b, torch.empty(n, f), gate_NF=gate)
    torch.testing.assert_close(found.double(), exact * (gate > 0), rtol=1e-5, atol=1e-5 * d**0.5)


def ranges(name: str, batch: int, queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    if name == "all":
        return None
    if name == "padded":
        mask = torch.arange(keys) < torch.tensor([[keys], [max(1, keys // 3)]])
        return mask_ranges(mask.expand(batch, -1), queries)[1]
    own = (torch.arange(queries) * 3 // queries + 1).expand(batch, -1)
    return segment_ranges(own, (torch.arange(keys) * 3 // keys + 1).expand(batch, -1))


@pytest.mark.parametrize("keep", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("sight", ["all", "padded", "segments"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "groups", "width"),
    [(9, 9, 2, 2, 8), (70, 70, 4, 2, 16), (50, 50, 3, 1, 7), (33, 83, 2, 2, 64)],
)  # fmt: skip
def test_attention_and_its_gradients(
    queries: int, keys: int, heads: int, groups: int, width: int, causal: bool, sight: str, keep: bool
) -> None:
    if causal and queries != keys:
        pytest.skip("causal attention is of a sequence to itself")
    torch.manual_seed(0)
    shapes = [(2, queries, heads, width), (2, keys, groups, width), (2, keys, groups, width)]
    ours = [torch.randn(shape).mul_(width**-0.25).requires_grad_() for shape in shapes]
    bias = torch.randn(heads, queries + keys - 1).requires_grad_()
    seen = Sight(bias, ranges(sight, 2, queries, keys), causal)
    kept = torch.bernoulli(torch.full((2, groups, keys), 0.8)) / 0.8 if keep else None
    weights = torch.randn(2, queries, heads, width)
    found = native.attention(*ours, seen, kept)
    (found * weights).sum().backward()

    theirs = [x.detach().double().requires_grad_() for x in ours]
    bias64 = bias.detach().double().requires_grad_()
    laid_out = dense(Sight(bias64, seen.ranges), queries, keys)
    if causal:
        laid_out = laid_out.masked_fill(torch.ones(queries, keys).triu(1).bool(), -1e30)
    q, k, v = (x.transpose(1, 2) for x in theirs)
    v = v if kept is None else v * kept.double()[..., None]
    k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))
    expected = ((q @ k.transpose(-1, -2) + laid_out).softmax(-1) @ v).transpose(1, 2)
    (expected * weights).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip([*ours, bias], [*theirs, bias64], strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=2e-5)


def test_attention_in_bfloat16_errs_no_more_than_twice_what_plain_torch_errs() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, 64, 4, 16).mul_(0.5).bfloat16().double().requires_grad_() for _ in range(3)]
    weights = torch.randn(2, 64, 4, 16)

    def run(inputs: list[torch.Tensor], ours: bool) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        q, k, v = (x.transpose(1, 2) for x in leaves)
        found = native.attention(*leaves, Sight(), None) if ours else attend(q, KeysValues(k, v), None).transpose(1, 2)
        (found.double() * weights).sum().backward()
        return [found.detach(), *(x.grad for x in leaves)]

    expected = []
    q, k, v = (x.transpose(1, 2) for x in exact)
    out = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)
    (out * weights).sum().backward()
    expected = [out.detach(), *(x.grad for x in exact)]
    low = [x.detach().bfloat16() for x in exact]
    for ours, plain, right in zip(run(low, True), run(low, False), expected, strict=True):
        assert (ours.double() - right).norm() <= 2 * (plain.double() - right).norm()


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.randn(1, 8, 2, 8)
    x[0, 3, 0, 0] = float("nan")
    assert (
        native.attention(x.requires_grad_(), torch.randn(1, 8, 2, 8), torch.randn(1, 8, 2, 8), Sight(), None)
        .isnan()
        .any()
    )
    hidden = torch.full((2, 4), float("nan"), requires_grad=True)
    objective, nll = native.output_loss(hidden, torch.randn(9, 4), torch.tensor([1, 2]), z_loss=0.0, divisor=1, rows=2)
    assert objective.isnan()
    assert nll.isnan()


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("vocab", [5, 97, 2048])
def test_loss_of_the_output_matrix(vocab: int, rows: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 12), torch.randn(vocab, 12)
    targets = torch.randint(0, vocab, (7,))
    found, expected = (
        [x.clone().to(kind).requires_grad_() for x in (hidden, weight)] for kind in (torch.float32, torch.float64)
    )
    objective, nll = native.output_loss(*found, targets, z_loss=0.1, divisor=3.0, rows=rows)
    (2 * objective).backward()
    logits = expected[0] @ expected[1].T
    right = F.cross_entropy(logits, targets, reduction="sum")
    whole = (right + 0.1 * logits.logsumexp(-1).square().sum()) / 3
    (2 * whole).backward()
    torch.testing.assert_close(nll.double(), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(objective.double(), whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def gradients(
    shape: str, kind: torch.dtype, *, plain: bool, monkeypatch: pytest.MonkeyPatch, dropout: float = 0.0
) -> dict[str, torch.Tensor]:
    """Of one batch with padding on both sides; `plain` switches the kernels off."""
    random = np.random.default_rng(0)
    inputs, targets = random.integers(2, 120, (3, 64)), random.integers(2, 120, (3, 24))
    inputs[1, 40:] = targets[1, 9:] = inputs[2, :30] = 0
    made = T5(parse(shape), dropout=dropout).train()
    initialise(made, 3)
    torch.nn.init.normal_(made.decoder.position.table, generator=torch.Generator().manual_seed(1))
    with monkeypatch.context() as patch:
        if plain:
            patch.setattr(native, "library", lambda: None)
        torch.manual_seed(5)
        wide = kind is torch.float64
        loss.accumulate(made.double() if wide else made, Batch(inputs, targets), divisor=50, device=CPU, z_loss=1e-3,
                        dtype=torch.float32 if wide else kind)  # fmt: skip
    return {name: weight.grad.double() for name, weight in made.named_parameters()}


@pytest.mark.parametrize("shape", [BASE, f"{BASE}-geglu-untied", f"{BASE}-kh2-shkv", f"{BASE}-sh", f"{BASE}-kv7-nh3"])
def test_the_whole_network_with_dropout_equals_plain_torch(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gradients(shape, torch.float32, plain=False, dropout=0.2, monkeypatch=monkeypatch)
    expected = gradients(shape, torch.float32, plain=True, dropout=0.2, monkeypatch=monkeypatch)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 2e-5 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [BASE, f"{BASE}-geglu-untied-kh2"])
def test_gradients_err_no_more_than_twice_what_plain_torch_errs(
    shape: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = gradients(shape, torch.float64, plain=True, monkeypatch=monkeypatch)
    found, plain = (gradients(shape, kind, plain=side, monkeypatch=monkeypatch) for side in (False, True))

    def error(of: dict[str, torch.Tensor]) -> float:
        return sum(float((of[name] - exact[name]).square().sum()) for name in exact) ** 0.5

    assert 0 < error(found) <= 2 * error(plain)


def test_they_step_aside() -> None:
    x = torch.randn(2, 3)
    assert native.usable(x, torch.nn.Parameter(x))
    assert not native.usable(x.double())
    assert not native.usable(x.to("meta"))

    class Other(torch.Tensor):
        """A kind of tensor whose memory the kernels know nothing about."""

    assert not native.usable(x.as_subclass(Other))
    with torch.no_grad():
        assert not native.usable(x)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        assert not native.usable(x)


@pytest.mark.parametrize("mask", [[[1, 0, 1]], [[0, 1, 0, 1]]])
def test_a_mask_with_holes_is_no_stretch(mask: list[list[int]]) -> None:
    assert mask_ranges(torch.tensor(mask).bool(), 2) == (False, None)


def test_a_mask_with_holes_is_heeded_all_the_same(random_model, ids) -> None:
    model, inputs = random_model(BASE), ids([9, 9], 9, 120)
    mask = torch.ones_like(inputs).bool()
    mask[0, 4] = False
    with torch.no_grad():
        expected = model.encode(inputs, mask)
    torch.testing.assert_close(model.encode(inputs, mask), expected, rtol=1e-5, atol=1e-5)


def test_without_a_compiler_training_goes_on_with_one_line(tmp_path) -> None:
    code = (
        "import torch; from deepnarrow.model.t5 import T5; from deepnarrow.shapes import parse\n"
        f"model = T5(parse('{BASE}')).train(); ids = torch.ones(2, 5, dtype=torch.long)\n"
        "for _ in range(2): model(ids, ids).sum().backward()"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "DEEPNARROW_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("CXX", None)
    for switch, lines in (("1", 1), ("0", 0)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, native.SWITCH: switch},
            capture_output=True,
            text=True,
            check=True,
        )
        said = [line for line in done.stderr.splitlines() if "deepnarrow" in line]
        assert len(said) == lines, done.stderr
        assert all("no C++ compiler" in line for line in said)
