"""What embeds texts: the native runtime where it is there and the model runs on a CPU, else PyTorch.

As in answering.py, nothing here imports torch before it is clear that it is needed. Of a model with a head the encoder
below it is what embeds.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from deepnarrow.cli.answering import goes_native, must_be_native, open_native, refuse_int8
from deepnarrow.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from deepnarrow.cli.answering import Native
    from deepnarrow.model.head_file import Head

DOING = "embedding"


class Embedding(NamedTuple):
    """A model that is ready to embed."""

    origin: str
    vectors: "Callable[..., np.ndarray]"  # (texts, *, normalise, input_tokens, progress): float32 [texts, width]


def ready(model: str, *, runtime: str, device: str, dtype: str | None) -> Embedding:
    """Open a model for `embed`. `dtype` None: float32, or what a converted folder has."""
    if goes_native(model, runtime, device, dtype, DOING):
        must = must_be_native(runtime, dtype)
        opened = open_native(model, dtype, must=must, doing=DOING, encoder=True)
        if opened is not None:
            return natively(opened, head_of(model))
    return by_torch(model, device, dtype)


def head_of(model: str) -> "Head | None":
    from deepnarrow.model.head_file import head_in, is_head
    from deepnarrow.model.places import find

    folder = find(model).folder
    return head_in(folder) if is_head(folder) else None


def natively(opened: "Native", head: "Head | None") -> Embedding:
    from deepnarrow.runtime.vectors import PLAIN_TOKENS, embed

    if opened.own is not None:
        raise UserError(
            f"{opened.origin} has an adapter; only LoRA merged into its model can be used as an encoder alone"
        )
    tokenizer = opened.tokenizer

    def vectors(
        texts: Sequence[str], *, normalise: bool | None = None, input_tokens: int | None = None, progress: bool = False
    ) -> "np.ndarray":
        unit = (head.normalise if head else False) if normalise is None else normalise
        most = input_tokens or (head.input_tokens if head else PLAIN_TOKENS)
        rows = [[*ids[: most - 1], tokenizer.eos] for ids in tokenizer.encode_batch(texts)]
        return embed(opened.engine, rows, normalise=unit, progress=progress)

    return Embedding(opened.origin, vectors)


def by_torch(model: str, device: str, dtype: str | None) -> Embedding:
    from deepnarrow.model.encoding import embed
    from deepnarrow.model.folder import find, open_model, resolve_device, resolve_dtype
    from deepnarrow.model.heads import is_head, open_head

    refuse_int8(dtype)
    where, kind = resolve_device(device), resolve_dtype(dtype or "float32")
    opened = (open_head if is_head(find(model).folder) else open_model)(model, device=where, dtype=kind)

    def vectors(
        texts: Sequence[str], *, normalise: bool | None = None, input_tokens: int | None = None, progress: bool = False
    ) -> "np.ndarray":
        return embed(opened, texts, normalise=normalise, input_tokens=input_tokens, progress=progress)

    return Embedding(opened.origin, vectors)
