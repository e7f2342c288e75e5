"""Beam search: the best few sequences so far are extended together.

Shape key   B inputs in the batch   W width   N = B * W rows of the model   C candidates of an input   T most tokens
            V vocabulary   S likeliest ids looked at for each row

Which candidates are kept, when finished sequences replace others and when an input is done are those of `transformers`
5, so that the same weights give the same answers; a test holds it. The nearest to the original T5 (beam_search.gin) is
`Beam(4, length_penalty=0.6, normaliser="wu", early_stopping="never")`; Mesh TensorFlow's own search differs in that all
candidates may finish, not only the first W.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.cache import Cache
from deepnarrow.model.greedy import few
from deepnarrow.model.limits import Limits, Output, Tell, allow, ended
from deepnarrow.model.t5 import PAD, T5
from deepnarrow.runtime import options


class Beam(options.Beam):
    """`runtime.options.Beam` for a T5 and its cache."""

    def answers(
        self, model: T5, cache: Cache, limits: Limits, rows: Sequence[int], tell: Tell | None
    ) -> list[list[Output]]:
        """At most `num_return` answers for each input, best first. Fewer only where fewer sequences are possible."""
        if tell:
            raise UserError("beam search knows its tokens only at the end; tokens can be told one by one without it")
        device, inputs = cache.bias_HO.device, cache.rows
        cache.reorder(torch.arange(inputs, device=device).repeat_interleave(self.width))
        state = start(inputs, self.width, limits.max_tokens, device)
        outputs: dict[int, list[Output]] = {}
        for step in range(limits.max_tokens):
            logits_NV = model.decode(state.newest(step), None, None, cache)[:, -1].float()
            candidates = grow(state, logits_NV, limits, step)
            over_B = state.over_B
            state, rows_BW = self._advance(state, candidates, limits, step)
            left = len(over_B) - int(state.over_B.sum())
            if not left or step + 1 == limits.max_tokens:
                break
            if few(left, len(over_B)):
                outputs |= self._outputs(state, state.over_B, limits)
                keep_B = ~state.over_B
                state, rows_BW = state.only(keep_B), rows_BW[keep_B]
                cache.reorder(rows_BW.flatten())
            else:
                cache.reorder(rows_BW.flatten(), same_memory=True)
        outputs |= self._outputs(state, torch.ones_like(state.over_B), limits)
        return [outputs[number] for number in range(inputs)]

    def _advance(self, state: "State", candidates: "Candidates", limits: Limits, step: int) -> tuple["State", Tensor]:
        """Finished candidates to the finished, the best others to the open; and the model's row of each open one."""
        width = self.width
        ended_BC = ended(limits, candidates.ids_BCT.flatten(0, 1), step).view_as(candidates.score_BC)

        # Only the best `width` candidates may finish; the rest are there so that `width` stay open.
        rank_C = torch.arange(ended_BC.shape[1], device=ended_BC.device)
        finish_BC = ended_BC & (rank_C < width) & ~state.over_B[:, None]
        if bool(finish_BC.any()):
            new_BC = (candidates.score_BC / self.penalty(step + 1)).masked_fill(~finish_BC, -math.inf)
            best = torch.cat([state.finished_BW, new_BC], 1).topk(width)
            ids_BWT = take(torch.cat([state.finished_ids_BWT, candidates.ids_BCT], 1), best.indices)
            new_length_BC = torch.full_like(candidates.beam_BC, step + 1)
            length_BW = torch.cat([state.finished_length_BW, new_length_BC], 1).gather(1, best.indices)
            state = state._replace(finished_BW=best.values, finished_ids_BWT=ids_BWT, finished_length_BW=length_BW)

        stay = candidates.score_BC.masked_fill(ended_BC, -math.inf).topk(width)
        state = state._replace(score_BW=stay.values, ids_BWT=take(candidates.ids_BCT, stay.indices))
        state = state._replace(over_B=state.over_B | self._over(state, limits, step))
        first_row_B1 = torch.arange(0, len(state.over_B) * width, width, device=ended_BC.device)[:, None]
        return state, first_row_B1 + candidates.beam_BC.gather(1, stay.indices)

    def _over(self, state: "State", limits: Limits, step: int) -> Tensor:
        """Whether nothing that is still open can change an input's answers."""
        best_open_B, worst_B = state.score_BW[:, 0], state.finished_BW[:, -1]  # both are sorted
        full_B, dead_B = worst_B > -math.inf, best_open_B == -math.inf
        if self.early_stopping is True:
            return full_B | dead_B
        longest = self.early_stopping == "never" and self.length_penalty > 0
        hope_B = best_open_B / self.penalty(limits.max_tokens if longest else step + 1)
        return (full_B & (hope_B <= worst_B)) | dead_B

    def _outputs(self, state: "State", which_B: Tensor, limits: Limits) -> dict[int, list[Output]]:
        """The finished sequences of some inputs, by the input's number."""
        part = state.only(which_B)
        return {
            number: [
                Output(limits.without_end(ids[:length]), score)
                for ids, length, score in zip(sequences, lengths, scores, strict=True)
                if score > -math.inf
            ][: self.num_return]
            for number, sequences, lengths, scores in zip(
                part.number_B.tolist(),
                part.finished_ids_BWT.tolist(),
                part.finished_length_BW.tolist(),
                part.finished_BW.tolist(),
                strict=True,
            )
        }


class State(NamedTuple):
    """Open and finished sequences of each input still in the batch, each kind sorted, best first."""

    number_B: Tensor
    over_B: Tensor  # done, though still in the batch
    score_BW: Tensor  # summed log-probability; -inf where there is no open sequence
    ids_BWT: Tensor
    finished_BW: Tensor  # log-probability / penalty; -inf where none is finished
    finished_ids_BWT: Tensor
    finished_length_BW: Tensor

    def newest(self, step: int) -> Tensor:
        """What the decoder reads at `step`, [N, 1]: a 0 first, then each open sequence's newest token."""
        return self.ids_BWT[:, :, max(step - 1, 0)].reshape(-1, 1)

    def only(self, which_B: Tensor) -> "State":
        return State(*(x[which_B] for x in self))


def start(inputs: int, width: int, tokens: int, device: torch.device) -> State:
    """One open sequence for each input, the empty one."""
    nothing_BW = torch.full((inputs, width), -math.inf, device=device)
    score_BW = nothing_BW.clone()
    score_BW[:, 0] = 0.0
    ids_BWT = torch.full((inputs, width, tokens), PAD, device=device)
    return State(
        number_B=torch.arange(inputs, device=device),
        over_B=torch.zeros(inputs, dtype=torch.bool, device=device),
        score_BW=score_BW,
        ids_BWT=ids_BWT,
        finished_BW=nothing_BW,
        finished_ids_BWT=ids_BWT.clone(),
        finished_length_BW=torch.zeros_like(ids_BWT[:, :, 0]),
    )


class Candidates(NamedTuple):
    """Sequences one token longer, best first."""

    score_BC: Tensor
    beam_BC: Tensor  # which of the input's open sequences each continues
    ids_BCT: Tensor


def grow(state: State, logits_NV: Tensor, limits: Limits, step: int) -> Candidates:
    """The best continuations of each input's open sequences: so many that, whatever ends, `width` can stay open."""
    inputs, width = state.score_BW.shape
    total_N1 = logits_NV.logsumexp(-1, keepdim=True)
    logits_NV = allow(limits, logits_NV, step)
    wanted = (1 + limits.ways_to_end) * width
    top = logits_NV.topk(min(wanted, logits_NV.shape[-1]))  # no row can give more than all that is wanted
    seen = top.values.shape[-1]
    score_BWS = (top.values - total_N1).view(inputs, width, seen) + state.score_BW[:, :, None]
    best = score_BWS.flatten(1).topk(min(wanted, width * seen))
    beam_BC = best.indices // seen
    ids_BCT = take(state.ids_BWT, beam_BC)
    ids_BCT[:, :, step] = top.indices.view(inputs, -1).gather(1, best.indices)
    return Candidates(best.values, beam_BC, ids_BCT)


def take(ids_BXT: Tensor, which_BY: Tensor) -> Tensor:
    """Sequences by their place among an input's: [B, X, T] -> [B, Y, T]."""
    return ids_BXT.gather(1, which_BY[:, :, None].expand(-1, -1, ids_BXT.shape[-1]))
