"""Between callers and a model in use: rows of token ids in, padded batches out, no gradient, no dropout.

Shape key   B rows of a batch   L input length   D d_model

A batch has a budget of tokens, so that short inputs go many at a time and long ones few. What is best was measured with
t5-efficient-tiny on two cores: an encoder is quickest where a batch's activations stay in the processor's cache, 2,048
tokens (16,384 took half as long again), a decoder where many rows share each pass over the output matrix. So on a CPU
the encoder takes a batch in pieces, the decoder takes it whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepnarrow.model import native
from deepnarrow.model.prompt import Prompts
from deepnarrow.model.t5 import PAD, T5
from deepnarrow.runtime.rows import LEAST, WINDOW, batches_by_length, check_batch, check_rows, distinct

__all__ = [
    "BUDGET", "LEAST", "PIECE", "WINDOW", "batches_by_length", "budget", "check_batch", "check_rows", "distinct",
    "encode_rows", "inference", "pad",
]  # fmt: skip

BUDGET = {"cpu": 8192, "cuda": 16384}  # input tokens of one batch
PIECE = 2048  # tokens that the encoder takes at once on a CPU


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Run the block without gradient and dropout, then leave the model as it was. Yields the model's device."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def budget(device: torch.device, width: int = 1) -> int:
    """Input tokens of one batch where each input has `width` rows of the model."""
    return max(LEAST, BUDGET.get(device.type, BUDGET["cpu"]) // width)


def encode_rows(model: T5, input_BL: Tensor, prompts: Prompts | None = None) -> tuple[Tensor, Tensor]:
    """The encoder's output [B, L, D] and its mask, for rows sorted by length, the longest first.

    On a CPU in pieces of `PIECE` tokens, each only as wide as its own rows, and by the kernels of training. With a
    learned prompt, the model's or the rows' own `prompts`, L is longer by it.
    """
    mask_BL = input_BL != PAD
    whole_BL = model.memory_mask(mask_BL, prompts)
    rows, length = input_BL.shape
    if input_BL.device.type != "cpu" or rows * length <= PIECE:
        return model.encode(input_BL, mask_BL, prompts=prompts), whole_BL
    at_L = torch.arange(1, length + 1)
    used_B = (mask_BL * at_L).amax(-1).tolist()  # up to each row's last token
    wide_weights = model.embedding.weight.dtype is torch.float32  # in bfloat16 the kernels round otherwise than torch
    parts = []
    at = 0
    while at < rows:
        size = max(1, PIECE // max(1, used_B[at]))
        wide = max(used_B[at : at + size])
        here = slice(at, at + size)
        part = None if prompts is None else prompts.of(here)
        with native.without_gradient() if wide_weights else nullcontext():
            part_BLD = model.encode(input_BL[here, :wide], mask_BL[here, :wide], prompts=part)
        parts.append(F.pad(part_BLD, (0, 0, 0, whole_BL.shape[1] - part_BLD.shape[1])))
        at += size
    return torch.cat(parts), whole_BL


def pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> Tensor:
    """Rows of unequal lengths as one tensor [B, longest] of int64, filled up with 0.

    >>> pad([[5, 6, 1], [7, 1]]).tolist()
    [[5, 6, 1], [7, 1, 0]]
    """
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)
