"""What a soft prompt starts from (Lester et al. 2021, arXiv:2104.08691, section 3.2).

Shape key   V vocabulary   P vectors of the prompt   D d_model
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepnarrow.errors import UserError, nearest
from deepnarrow.model.init import stream
from deepnarrow.text.tokenizer import Tokenizer

COMMONEST = 5000  # ids to sample from: pieces are ordered by frequency
KINDS = ("vocabulary", "labels", "random")
TEXT = "text="
LONGEST = 2**15


def check_kind(kind: str) -> None:
    """Refuse what `first_vectors` does not know."""
    if kind not in KINDS and not kind.startswith(TEXT):
        raise UserError(f"unknown prompt init {kind!r}; {nearest(kind, [*KINDS, TEXT + 'WORDS'])}")
    if kind.startswith(TEXT) and not kind.removeprefix(TEXT).strip():
        raise UserError(f'prompt init {TEXT!r} needs words, such as "{TEXT}is the review positive or negative"')


@torch.no_grad()
def first_vectors(
    embedding_VD: Tensor,
    length: int,
    kind: str = "vocabulary",
    *,
    seed: int,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] = (),
) -> Tensor:
    """A prompt [P, D] to start from (section 3.2), float32.

    vocabulary   embeddings of pieces sampled from the 5,000 commonest, none twice where there are enough
    labels       a vector for each class label, the mean of its pieces' embeddings, then as "vocabulary"
    random       uniform from -0.5 to 0.5
    text=WORDS   the embeddings of the words' pieces, then as "vocabulary"
    """
    check_kind(kind)
    if not 1 <= length <= LONGEST:
        raise UserError(f"a prompt has from 1 to {LONGEST:,} vectors, not {length:,}")
    rows, width = embedding_VD.shape
    random = stream(seed, "prompt")
    if kind == "random":
        return torch.empty(length, width).uniform_(-0.5, 0.5, generator=random)
    most = min(COMMONEST, rows)
    ids_P = torch.randperm(most, generator=random)[:length]
    if length > most:
        ids_P = torch.randint(most, (length,), generator=random)
    embedding_VD = embedding_VD.detach().float().cpu()
    vectors_PD = embedding_VD[ids_P]
    if kind == "vocabulary":
        return vectors_PD
    if tokenizer is None:
        raise UserError(f"prompt init {kind!r} turns words into ids, for which the model needs its tokenizer")
    if kind == "labels":
        if not labels:
            raise UserError("this task has no class labels to start a prompt from; use prompt init vocabulary")
        given = [embedding_VD[tokenizer.encode(label)].mean(0) for label in labels]
    else:
        given = list(embedding_VD[tokenizer.encode(kind.removeprefix(TEXT))])
    for place, vector in enumerate(given[:length]):
        vectors_PD[place] = vector
    return vectors_PD
