"""The kernels of kernels.cpp in autograd: products, attention, norm, feed-forward and loss of a training step on a CPU.

Shape key   N rows   D inner   F columns   B batch   L queries   M keys   H heads   G key/value heads   K d_kv
            O offsets = L + M - 1   V vocabulary

The library is compiled once for each text, torch and processor, into a cache folder (`DEEPNARROW_CACHE`, else
`~/.cache/deepnarrow`). Without a compiler, or with `DEEPNARROW_NATIVE=0`, everything runs in plain PyTorch. Kernels see
the memory of plain CPU tensors only: where anything else comes along (a DTensor, a compiler's tracing, a counter of
FLOPs), its callers step aside.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepnarrow.files import cache_folder

SOURCE = Path(__file__).with_name("kernels.cpp")

SWITCH = "DEEPNARROW_NATIVE"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=c++17", "-shared", "-fPIC")
COMPILE_SECONDS = 180
NORM_ROWS = 64  # as in kernels.cpp
DTYPES = (torch.float32, torch.bfloat16)


class _Product(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("rows", "columns", "depth")),
        ("a", c_void_p), ("a_row", c_int64), ("a_column", c_int64),
        ("b", c_void_p), ("b_row", c_int64), ("b_column", c_int64),
        ("c", c_void_p), ("c_row", c_int64),
        *((name, c_int32) for name in ("a_bf16", "b_bf16", "c_bf16", "add", "relu", "gate_bf16")),
        ("keep", c_void_p), ("keep_rows", c_int64), ("gate", c_void_p),
    )  # fmt: skip


class _Attention(Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "width")),
        *((name, c_void_p) for name in ("query", "key", "value", "out", "log_z", "bias", "first", "last", "keep")),
        *((name, c_int32) for name in ("causal", "is_bf16")),
        *(
            (name, c_void_p)
            for name in ("out_gradient", "query_gradient", "key_gradient", "value_gradient", "bias_gradient")
        ),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or cannot be had, which is said once, in one line."""
    if os.environ.get(SWITCH, "1") == "0" or sys.platform == "win32" or sys.byteorder == "big":
        return None
    try:
        parallel = ctypes.cast(ctypes.CDLL(_torch_library()).torch_parallel_for, c_void_p)
        found = ctypes.CDLL(str(_built()))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(
            f"deepnarrow: running in plain PyTorch, which is slower ({reason}); {SWITCH}=0 hides this", file=sys.stderr
        )
        return None
    found.dn_start(parallel)
    found.dn_multiply.argtypes = (POINTER(_Product), c_int32)
    found.dn_attend.argtypes = found.dn_attend_back.argtypes = (POINTER(_Attention), c_int32)
    found.dn_norm.argtypes = (
        c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_float, c_int32,
    )  # fmt: skip
    found.dn_norm_back.argtypes = (
        c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_void_p, c_int32,
    )  # fmt: skip
    found.dn_loss.argtypes = (
        c_int64, c_int64, c_void_p, c_void_p, c_float, c_float, c_int32, c_void_p, c_void_p, c_int32,
    )  # fmt: skip
    return found


def _torch_library() -> str:
    folder = Path(torch.__file__).parent / "lib"
    return str(folder / ("libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"))


def _built() -> Path:
    """The library's file, compiled if it is not there yet. Of several processes one compiles, the others wait."""
    text = SOURCE.read_bytes()
    key = [text, *(part.encode() for part in (torch.__version__, platform.machine(), _processor(), " ".join(FLAGS)))]
    folder = cache_folder()
    file = folder / f"kernels-{hashlib.sha256(b'|'.join(key)).hexdigest()[:16]}.so"
    if file.exists():
        return file
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler found; install g++")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        import fcntl  # Unix alone

        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / file.name
                command = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
                subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS)
                made.rename(file)
    return file


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(next((line for line in lines if line.startswith(word)), "") for word in ("model name", "flags"))


class _Inference(threading.local):
    wanted: bool = False


_inference = _Inference()


@contextmanager
def without_gradient() -> Iterator[None]:
    """Kernels also where no gradient is wanted, which pays for large batches; else they are left to training."""
    before, _inference.wanted = _inference.wanted, True
    try:
        yield
    finally:
        _inference.wanted = before


def wanted() -> bool:
    """Whether kernels are asked for at all. Cheap, for decoding asks it hundreds of times a token."""
    return not torch.compiler.is_compiling() and (torch.is_grad_enabled() or _inference.wanted)


def usable(*tensors: Tensor | None) -> bool:
    """Whether kernels may run now, on these: plain float32 or bfloat16 tensors on a CPU, outside tracing."""
    if not wanted() or torch._C._len_torch_dispatch_stack():
        return False
    for x in tensors:
        if x is not None and (type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu" or x.dtype not in DTYPES):
            return False
    return library() is not None


@cache
def multiplies() -> bool:
    """Whether our matrix products may be used: where a processor has AVX2 and no more (docs/log.md).

    There torch's bfloat16 products reach a tenth of its float32 ones (17 and 157 GFLOP/s, 4096^3), while ours widen
    their operands on the way to the cache; its plain float32 ones are a little faster than ours, but cannot be followed
    by other work while a block is hot.
    With AVX-512 torch's own libraries do well, and have the units for bfloat16. Decided by the processor and not by a
    clock, so that a run's bits do not depend on a timing.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _is_bf16(x: Tensor | None) -> int:
    return int(x is not None and x.dtype is torch.bfloat16)


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def product(
    a_ND: Tensor,
    b_DF: Tensor,
    out_NF: Tensor,
    *,
    add: bool = False,
    relu: bool = False,
    keep_BF: Tensor | None = None,
    gate_NF: Tensor | None = None,
) -> Tensor:
    """out (+)= a b. Then, if asked: max(out, 0); times `keep` of the row's example; 0 where `gate` is not positive.

    `a` and `b` may be transposed views. Sums are float32 whatever the dtypes.
    """
    rows, columns = out_NF.shape
    plain = not (relu or keep_BF is not None or gate_NF is not None)
    low = _is_bf16(a_ND) or _is_bf16(b_DF) or _is_bf16(out_NF)
    if not multiplies() or (plain and not low):
        return _torch_product(a_ND, b_DF, out_NF, add=add, relu=relu, keep_BF=keep_BF, gate_NF=gate_NF)
    asked = _Product(
        rows, columns, a_ND.shape[1],
        _at(a_ND), *a_ND.stride(), _at(b_DF), *b_DF.stride(), _at(out_NF), out_NF.stride(0),
        _is_bf16(a_ND), _is_bf16(b_DF), _is_bf16(out_NF), add, relu, _is_bf16(gate_NF),
        _at(keep_BF), max(1, rows // len(keep_BF)) if keep_BF is not None else 1, _at(gate_NF),
    )  # fmt: skip
    _library().dn_multiply(byref(asked), torch.get_num_threads())
    return out_NF


def _torch_product(
    a_ND: Tensor,
    b_DF: Tensor,
    out_NF: Tensor,
    *,
    add: bool,
    relu: bool,
    keep_BF: Tensor | None,
    gate_NF: Tensor | None,
) -> Tensor:
    """The same by torch's libraries."""
    low = torch.bfloat16 if _is_bf16(out_NF) or _is_bf16(a_ND) else torch.float32
    a_ND, b_DF = a_ND.to(low), b_DF.to(low)
    if add:
        return out_NF.addmm_(a_ND, b_DF) if out_NF.dtype is low else out_NF.add_(a_ND @ b_DF)
    if out_NF.dtype is low:
        torch.mm(a_ND, b_DF, out=out_NF)
    else:
        out_NF.copy_(a_ND @ b_DF)
    if relu:
        out_NF.relu_()
    if keep_BF is not None:
        out_NF.view(len(keep_BF), -1, out_NF.shape[1]).mul_(keep_BF[:, None])
    if gate_NF is not None:
        out_NF.masked_fill_(gate_NF <= 0, 0.0)
    return out_NF


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None, "ask `usable` first"
    return found


def flat(x: Tensor) -> Tensor:
    """[..., D] -> [N, D], contiguous."""
    return x.reshape(-1, x.shape[-1]).contiguous()


class _Gathered(threading.local):
    """Gradients of output matrices that embeddings add theirs to: by where the weights lie; None outside `gathered`."""

    of: dict[int, Tensor] | None = None


_gathered = _Gathered()


@contextmanager
def gathered() -> Iterator[None]:
    """Around a backward pass: an embedding that is the output matrix too adds its rows to that one's gradient.

    Otherwise each look-up makes a gradient as large as the matrix, nearly all of it zeros, for autograd to add up:
    most of the time of an update on a few short texts that goes beside the products. Where `output_loss` made no
    gradient for the matrix before, nothing is gained and nothing changes.
    """
    _gathered.of = {}
    try:
        yield
    finally:
        _gathered.of = None


def embed(ids: Tensor, weight_VD: Tensor) -> Tensor:
    """Rows of the matrix, one for each id."""
    result: Tensor = _Embed.apply(weight_VD, ids)
    return result


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight_VD.data_ptr(), len(weight_VD)
        return F.embedding(ids, weight_VD)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (ids,), (where, vocab) = ctx.saved_tensors, ctx.weight
        slope = gradients[0]
        whole_VD = None if _gathered.of is None else _gathered.of.get(where)
        if whole_VD is None or whole_VD.dtype is not slope.dtype:
            return torch.ops.aten.embedding_dense_backward(slope, ids, vocab, -1, False), None
        whole_VD.index_add_(0, ids.flatten(), slope.flatten(0, -2))
        return None, None


def linear(x: Tensor, weight_FD: Tensor, dtype: torch.dtype) -> Tensor:
    """x weight^T in `dtype`, the weight itself never rounded to it."""
    result: Tensor = _Linear.apply(x, weight_FD, dtype)
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_FD: Tensor, dtype: torch.dtype) -> Tensor:
        x_ND = flat(x).to(dtype)
        ctx.save_for_backward(x_ND if ctx.needs_input_grad[1] else None, weight_FD)  # a frozen weight asks for no input
        ctx.input = x.shape, x.dtype
        out_NF = torch.empty(len(x_ND), len(weight_FD), dtype=dtype)
        return product(x_ND, weight_FD.T, out_NF).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_ND, weight_FD = ctx.saved_tensors
        slope_NF, (shape, dtype) = flat(gradients[0]), ctx.input
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = product(slope_NF, weight_FD, slope_NF.new_empty(len(slope_NF), weight_FD.shape[1]))
            x_gradient = x_gradient.view(shape).to(dtype)
        if ctx.needs_input_grad[1]:
            weight_gradient = product(slope_NF.T, x_ND, torch.empty_like(weight_FD))
        return x_gradient, weight_gradient, None


def feed_forward(x: Tensor, wi_FD: Tensor, wo_DF: Tensor, keep_BF: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(relu(x wi^T) * keep) wo^T, of which only x and the hidden layer are kept for the backward pass."""
    result: Tensor = _FeedForward.apply(x, wi_FD, wo_DF, keep_BF, dtype)
    return result


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, wi_FD: Tensor, wo_DF: Tensor, keep_BF: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        x_ND = flat(x).to(dtype)
        hidden_NF = torch.empty(len(x_ND), len(wi_FD), dtype=dtype)
        product(x_ND, wi_FD.T, hidden_NF, relu=True, keep_BF=keep_BF)
        ctx.save_for_backward(x_ND if ctx.needs_input_grad[1] else None, wi_FD, wo_DF, keep_BF, hidden_NF)
        ctx.input = x.shape, x.dtype
        return product(hidden_NF, wo_DF.T, torch.empty(len(x_ND), len(wo_DF), dtype=dtype)).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, wi_FD, wo_DF, keep_BF, hidden_NF = ctx.saved_tensors
        slope_ND, (shape, dtype) = flat(gradients[0]), ctx.input
        x_gradient = wi_gradient = wo_gradient = None
        if ctx.needs_input_grad[2]:
            wo_gradient = product(slope_ND.T, hidden_NF, torch.empty_like(wo_DF))
        slope_NF = product(slope_ND, wo_DF, torch.empty_like(hidden_NF), keep_BF=keep_BF, gate_NF=hidden_NF)
        if ctx.needs_input_grad[1]:
            wi_gradient = product(slope_NF.T, x_ND, torch.empty_like(wi_FD))
        if ctx.needs_input_grad[0]:
            x_gradient = product(slope_NF, wi_FD, torch.empty_like(slope_ND)).view(shape).to(dtype)
        return x_gradient, wi_gradient, wo_gradient, None, None


class Sight(NamedTuple):
    """Which keys a query sees, and its bias: never laid out as a matrix.

    bias_HO   float32, one number for each head and each `key - query` from 1 - L to M - 1; None: no bias
    ranges    int32 [B, L] first key and one behind the last, of every query; None: all keys
    causal    a query sees no key behind its own position
    """

    bias_HO: Tensor | None = None
    ranges: tuple[Tensor, Tensor] | None = None
    causal: bool = False


def attention(
    query_BLHK: Tensor, key_BMGK: Tensor, value_BMGK: Tensor, sight: Sight, keep_BGM: Tensor | None
) -> Tensor:
    """softmax(query key^T + bias) (keep * value), [B, L, H, K]. Probabilities are computed again in the backward pass.

    A query that sees nothing gets zeros.
    """
    first, last = sight.ranges or (None, None)
    result: Tensor = _Attend.apply(
        query_BLHK.contiguous(), key_BMGK.contiguous(), value_BMGK.contiguous(),
        sight.bias_HO, first, last, sight.causal, keep_BGM,
    )  # fmt: skip
    return result


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias_HO: Tensor | None,
        first_BL: Tensor | None,
        last_BL: Tensor | None,
        causal: bool,
        keep_BGM: Tensor | None,
    ) -> Tensor:
        out = torch.empty_like(query)
        log_z = torch.empty(query.shape[0], query.shape[2], query.shape[1])
        if bias_HO is not None:
            bias_HO = bias_HO.float().contiguous()
        if keep_BGM is not None:
            keep_BGM = keep_BGM.contiguous()
        ctx.causal = causal
        ctx.save_for_backward(query, key, value, bias_HO, first_BL, last_BL, keep_BGM, out, log_z)
        asked = _asked(query, key, value, bias_HO, first_BL, last_BL, keep_BGM, out, log_z, causal)
        _library().dn_attend(byref(asked), torch.get_num_threads())
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias_HO, first_BL, last_BL, keep_BGM, out, log_z = ctx.saved_tensors
        asked = _asked(query, key, value, bias_HO, first_BL, last_BL, keep_BGM, out, log_z, ctx.causal)
        slope = gradients[0].to(query.dtype).contiguous()
        found = [torch.empty_like(x) for x in (query, key, value)]
        bias_BHO = None
        if bias_HO is not None and ctx.needs_input_grad[3]:
            bias_BHO = torch.empty(query.shape[0], *bias_HO.shape)
        asked.out_gradient, asked.bias_gradient = _at(slope), _at(bias_BHO)
        asked.query_gradient, asked.key_gradient, asked.value_gradient = (_at(x) for x in found)
        _library().dn_attend_back(byref(asked), torch.get_num_threads())
        return *found, None if bias_BHO is None else bias_BHO.sum(0), None, None, None, None


def _asked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_HO: Tensor | None,
    first_BL: Tensor | None,
    last_BL: Tensor | None,
    keep_BGM: Tensor | None,
    out: Tensor,
    log_z: Tensor,
    causal: bool,
) -> _Attention:
    batch, queries, heads, width = query.shape
    pointers = (_at(x) for x in (query, key, value, out, log_z, bias_HO, first_BL, last_BL, keep_BGM))
    return _Attention(
        batch, heads, key.shape[2], queries, key.shape[1], width, *pointers, int(causal), _is_bf16(query)
    )  # fmt: skip


def norm(x: Tensor, weight_D: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """RMS norm of float32, the result in `dtype`."""
    result: Tensor = _Norm.apply(x, weight_D, epsilon, dtype)
    return result


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        out, inverse_N = torch.empty_like(x, dtype=dtype), torch.empty(rows)
        _library().dn_norm(
            rows,
            width,
            _at(x),
            _at(weight_D),
            _at(out),
            _is_bf16(out),
            _at(inverse_N),
            epsilon,
            torch.get_num_threads(),
        )
        ctx.save_for_backward(x, weight_D, inverse_N)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight_D, inverse_N = ctx.saved_tensors
        slope, rows, width = gradients[0].contiguous(), len(inverse_N), x.shape[-1]
        x_gradient, parts = torch.empty_like(x), torch.empty(-(-rows // NORM_ROWS), width)
        _library().dn_norm_back(
            rows, width, _at(x), _at(weight_D), _at(inverse_N), _at(slope), _is_bf16(slope),
            _at(x_gradient), _at(parts), torch.get_num_threads(),
        )  # fmt: skip
        return x_gradient, parts.sum(0), None, None


def output_loss(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, z_loss: float, divisor: float, rows: int
) -> tuple[Tensor, Tensor]:
    """Summed objective / divisor, and summed negative log-likelihood, of logits hidden weight^T; float32 throughout.

    At most `rows` positions have logits at a time, and these become their own gradient in place; the gradients of
    `hidden` and `weight` are complete when this returns.
    """
    result: tuple[Tensor, Tensor] = _OutputLoss.apply(hidden_ND, weight_VD, targets_N, z_loss, divisor, rows)
    return result


class _OutputLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float, divisor: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        hidden_ND, targets_N = hidden_ND.contiguous(), targets_N.contiguous()
        count, vocab, threads = len(targets_N), len(weight_VD), torch.get_num_threads()
        hidden_gradient = torch.empty_like(hidden_ND)
        weight_gradient = torch.empty_like(weight_VD) if ctx.needs_input_grad[1] else None
        objective_N, nll_N = torch.empty(count), torch.empty(count)
        if not count and weight_gradient is not None:
            weight_gradient.zero_()
        logits = torch.empty(min(rows, count), vocab)
        for start in range(0, count, rows):
            here = slice(start, min(start + rows, count))
            part_ND, logits_NV = hidden_ND[here], logits[: here.stop - start]
            product(part_ND, weight_VD.T, logits_NV)
            _library().dn_loss(
                len(part_ND), vocab, _at(logits_NV), _at(targets_N[here]), z_loss, 1 / divisor, 1,
                _at(objective_N[here]), _at(nll_N[here]), threads,
            )  # fmt: skip
            product(logits_NV, weight_VD, hidden_gradient[here])
            if weight_gradient is not None:
                product(logits_NV.T, part_ND, weight_gradient, add=start > 0)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight = weight_VD.data_ptr()
        nll = nll_N.sum()
        ctx.mark_non_differentiable(nll)
        return objective_N.sum() / divisor, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        if gradients[0] != 1:
            hidden_gradient = hidden_gradient * gradients[0]
            weight_gradient = None if weight_gradient is None else weight_gradient * gradients[0]
        if _gathered.of is not None and weight_gradient is not None:
            # Another tensor over the same memory: autograd sees that nobody else holds its own, and copies nothing.
            _gathered.of[ctx.weight] = weight_gradient.detach()
        return hidden_gradient, weight_gradient, None, None, None, None
