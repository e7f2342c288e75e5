"""Soft prompts: learned vectors in front of the encoder's input embeddings, the model itself frozen.

Lester et al. 2021 (arXiv:2104.08691), section 2: the prompt takes the first P positions of the encoder's sequence, the
decoder attends to it as to any input, and has none of its own. Dropout and relative positions treat it as tokens.

Shape key   B rows   P longest prompt   D d_model   L input length   S most examples of a row   N = L + S P
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Prompts(NamedTuple):
    """What stands in front of each row of a batch. Shorter prompts have nothing in front of them, where `mask` is
    False, so that every prompt touches its input and nothing depends on the other rows.

    vectors_BPD   or [1, P, D], one for all rows
    mask_BP       None: all of it is prompt
    """

    vectors_BPD: Tensor
    mask_BP: Tensor | None = None

    def of(self, rows: slice) -> "Prompts":
        """Those of some rows."""
        vectors_BPD = self.vectors_BPD if len(self.vectors_BPD) == 1 else self.vectors_BPD[rows]
        return Prompts(vectors_BPD, None if self.mask_BP is None else self.mask_BP[rows])

    def before(self, x_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt and input in one sequence, and its mask."""
        rows = len(mask_BL)
        vectors_BPD = self.vectors_BPD.to(x_BLD.dtype).expand(rows, -1, -1)
        return torch.cat([vectors_BPD, x_BLD], dim=1), self.seen(mask_BL)

    def seen(self, mask_BL: Tensor) -> Tensor:
        """The mask [B, P + L] of prompt and input."""
        rows, longest = len(mask_BL), self.vectors_BPD.shape[1]
        mask_BP = mask_BL.new_ones(rows, longest) if self.mask_BP is None else self.mask_BP.to(mask_BL.dtype)
        return torch.cat([mask_BP.expand(rows, -1), mask_BL], dim=1)

    def before_each(self, x_BLD: Tensor, segments_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Packed rows: the prompt, which is one for all, in front of every example of a row."""
        if self.mask_BP is not None or len(self.vectors_BPD) != 1:
            raise ValueError("packed rows take one prompt for all examples")
        length = self.vectors_BPD.shape[1]
        from_BN, segments_BN = interleaved(segments_BL, length)
        both_BMD = torch.cat([self.vectors_BPD.to(x_BLD.dtype).expand(len(x_BLD), -1, -1), x_BLD], dim=1)
        return both_BMD.gather(1, from_BN[:, :, None].expand(-1, -1, x_BLD.shape[-1])), segments_BN


def interleaved(segments_BL: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where each place of the longer rows comes from, counted over prompt and row, and the example it belongs to.

    >>> from_BN, segments_BN = interleaved(torch.tensor([[1, 1, 2, 0]]), 2)
    >>> from_BN.tolist(), segments_BN.tolist()
    ([[0, 1, 2, 3, 0, 1, 4, 5]], [[1, 1, 1, 1, 2, 2, 2, 0]])
    """
    rows, width = segments_BL.shape
    before_BL = F.pad(segments_BL[:, :-1], (1, 0))
    first_BL = (segments_BL != before_BL) & (segments_BL != 0)
    place_BL = torch.arange(width, device=segments_BL.device) + length * first_BL.cumsum(-1)
    longer = width + length * int(first_BL.sum(-1).max())
    segments_BN = segments_BL.new_zeros(rows, longer).scatter(1, place_BL, segments_BL)
    from_BN = torch.full((rows, longer), length + width - 1, device=segments_BL.device)  # a row's end is no example's
    from_BN.scatter_(1, place_BL, torch.arange(width, device=segments_BL.device).expand(rows, -1) + length)
    row_n1, column_n1 = (x[:, None] for x in first_BL.nonzero(as_tuple=True))
    prompt_P = torch.arange(length, device=segments_BL.device)
    at_nP = place_BL[row_n1, column_n1] - length + prompt_P
    from_BN[row_n1, at_nP] = prompt_P
    segments_BN[row_n1, at_nP] = segments_BL[row_n1, column_n1]
    return from_BN, segments_BN


def side_by_side(prompts: Sequence[Tensor | None], width: int, device: torch.device) -> Prompts:
    """One prompt [P, D] for each row of a batch; None is a row without one.

    >>> found = side_by_side([torch.ones(1, 4), torch.ones(2, 4)], 4, torch.device("cpu"))
    >>> found.vectors_BPD.shape, None if found.mask_BP is None else found.mask_BP.tolist()
    (torch.Size([2, 2, 4]), [[False, True], [True, True]])
    """
    lengths = [0 if prompt is None else len(prompt) for prompt in prompts]
    longest = max(lengths)
    dtype = next((prompt.dtype for prompt in prompts if prompt is not None), torch.float32)
    vectors_BPD = torch.zeros(len(prompts), longest, width, device=device, dtype=dtype)
    for row, prompt in zip(vectors_BPD, prompts, strict=True):
        if prompt is not None:
            row[longest - len(prompt) :] = prompt.to(device)
    if min(lengths) == longest:
        return Prompts(vectors_BPD)
    missing_B1 = longest - torch.tensor(lengths, device=device)[:, None]
    return Prompts(vectors_BPD, torch.arange(longest, device=device) >= missing_B1)
