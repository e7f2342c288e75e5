"""Ids chosen from logits as an engine's step wants them (runtime/engine.py): masked, drawn, the likeliest in order.

Shape key   N positions   V vocabulary   T most ids asked for   n some of the positions
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepnarrow.model.sample import COLDEST, draw, shares
from deepnarrow.runtime.engine import Chosen, Draw


def choose(
    logits_NV: Tensor,
    vocab_limit: int,
    top: int,
    masks: Sequence[np.ndarray | None] | None,
    draws: Sequence[Draw | None] | None,
) -> Chosen:
    """The contract's choice of ids from logits.

    >>> found = choose(torch.tensor([[0.0, 3.0, 1.0, 3.0]]), 4, 3, None, None)
    >>> found.ids.tolist(), [round(log, 3) for log in found.logs[0].tolist()]
    ([[1, 3, 2]], [-0.782, -0.782, -2.782])
    """
    total_N1 = logits_NV.logsumexp(-1, keepdim=True)
    allowed_NV = allow(logits_NV[:, :vocab_limit], masks)
    ids_NT, value_NT = likeliest(allowed_NV, top)
    drawn = [(number, asked) for number, asked in enumerate(draws or ()) if asked is not None]
    if drawn:
        places, found = drawn_ids(allowed_NV, drawn)
        own_nT, own_value_nT = ids_NT[places], value_NT[places]
        # the drawn id in front, the others behind it in their order: of the drawn one itself the key is the least
        order_nT = torch.arange(1, top + 1, device=own_nT.device).masked_fill(own_nT == found[:, None], 0)
        missing_n = (order_nT != 0).all(-1)  # not among the likeliest: the last of these makes room
        order_nT[missing_n, -1] = 0
        own_nT[missing_n, -1] = found[missing_n]
        own_value_nT[missing_n, -1] = allowed_NV[places, found][missing_n]
        by_key_nT = order_nT.argsort(-1)
        ids_NT[places], value_NT[places] = own_nT.gather(1, by_key_nT), own_value_nT.gather(1, by_key_nT)
    log_NT = value_NT - total_N1
    ids_NT = ids_NT.masked_fill(value_NT == -torch.inf, -1)
    return Chosen(ids_NT.to(torch.int32).cpu().numpy(), log_NT.cpu().numpy())


def allow(logits_NV: Tensor, masks: Sequence[np.ndarray | None] | None) -> Tensor:
    """-inf where a mask forbids an id."""
    masked = [number for number, mask in enumerate(masks or ()) if mask is not None]
    if not masked:
        return logits_NV
    assert masks is not None
    words = np.stack([np.ascontiguousarray(masks[number], dtype="<u4") for number in masked])
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[:, : logits_NV.shape[1]]
    if bits.shape[1] < logits_NV.shape[1]:
        raise ValueError(f"a mask has {bits.shape[1]} bits, but there are {logits_NV.shape[1]} ids to choose from")
    forbidden_nV = torch.from_numpy(bits == 0).to(logits_NV.device)
    if len(masked) == len(logits_NV):
        return logits_NV.masked_fill(forbidden_nV, -torch.inf)
    logits_NV = logits_NV.clone()
    logits_NV[masked] = logits_NV[masked].masked_fill(forbidden_nV, -torch.inf)
    return logits_NV


def likeliest(logits_NV: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest logits' ids and values, of equal ones the smaller id first; -inf where there are fewer."""
    if top == 1:
        ids_N1 = logits_NV.argmax(-1, keepdim=True)
        return ids_N1, logits_NV.gather(1, ids_N1)
    count = min(top, logits_NV.shape[1])
    value_NT, ids_NT = logits_NV.topk(count)
    # topk leaves open which of several equal logits it returns, and in which order
    split_N = (logits_NV >= value_NT[:, -1:]).sum(-1) > count
    if bool(split_N.any()):
        exact = logits_NV[split_N].sort(dim=-1, descending=True, stable=True)
        ids_NT[split_N], value_NT[split_N] = exact.indices[:, :count], exact.values[:, :count]
    by_id = ids_NT.argsort(-1)
    ids_NT, value_NT = ids_NT.gather(1, by_id), value_NT.gather(1, by_id)
    by_value = value_NT.argsort(dim=-1, descending=True, stable=True)
    ids_NT, value_NT = ids_NT.gather(1, by_value), value_NT.gather(1, by_value)
    if count < top:
        ids_NT = F.pad(ids_NT, (0, top - count), value=-1)
        value_NT = F.pad(value_NT, (0, top - count), value=-torch.inf)
    return ids_NT, value_NT


def drawn_ids(logits_NV: Tensor, drawn: Sequence[tuple[int, Draw]]) -> tuple[list[int], Tensor]:
    """The positions that draw, and their ids; those that ask for the same cut are drawn together."""
    kinds: dict[tuple[float, int, float], list[tuple[int, Draw]]] = {}
    for number, asked in drawn:
        kinds.setdefault((asked.temperature, asked.top_k, asked.top_p), []).append((number, asked))
    places: list[int] = []
    found = []
    for (temperature, top_k, top_p), members in kinds.items():
        numbers = [number for number, _ in members]
        part_nV = logits_NV[numbers]
        if temperature < COLDEST:
            ids_n = part_nV.argmax(-1)
        else:
            share_nV = shares(part_nV, temperature, top_k or None, top_p if top_p < 1 else None)
            uniform_n = torch.tensor([asked.uniform for _, asked in members], dtype=torch.float64)
            ids_n = draw(share_nV, uniform_n.to(share_nV.device))
            some_n = part_nV.amax(-1) > -torch.inf  # where nothing is allowed nothing is drawn
            ids_n = ids_n.where(some_n, 0)
        places += numbers
        found.append(ids_n)
    return places, torch.cat(found)
