"""Heads on a T5's encoder: a label for a text, a tag for each word, a vector for a text. The decoder is left out.

    classify   mean of the encoder's output over the real tokens -> dropout -> linear -> a logit for each label
    tag        dropout -> linear at every token; a word's tag is that of its first piece
    embed      mean of the encoder's output over the real tokens, of length 1 if so asked

The mean, not the first token: a T5 has no token that was trained to stand for the whole text, as BERT's [CLS] was, and
of the encoder alone the mean made the better sentence vectors (Ni et al. 2021, "Sentence-T5", arXiv:2108.08877, section
4). The end mark counts as a token, as it does for the `sentence-transformers` library.

A head's folder is a Hugging Face folder of the encoder (T5EncoderModel) with two more files: head.json says which head,
head.safetensors holds `linear.weight` [C, D] and `linear.bias` [C]; an embedding head has no weights of its own.

Shape key   B batch   L length   D d_model   C labels
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from deepnarrow.errors import UserError
from deepnarrow.files import whole_folder, write_json
from deepnarrow.model.folder import Opened, check_replaceable, find, read_model, read_tokenizer, save_model
from deepnarrow.model.head_file import FILE, FORMAT, KINDS, Head, head_in, is_head
from deepnarrow.model.init import stream
from deepnarrow.model.layers import dropped
from deepnarrow.model.lora import adapted
from deepnarrow.model.t5 import PAD, T5
from deepnarrow.model.tensors import read_file
from deepnarrow.shapes import Shape
from deepnarrow.text.tokenizer import Tokenizer

__all__ = [
    "FILE", "KINDS", "WEIGHTS", "Head", "Headed", "OpenedHead", "as_vectors", "encoder_shape", "encoder_state",
    "is_head", "mean_of", "open_head", "plain", "read_head", "save_head", "with_head",
]  # fmt: skip

WEIGHTS = "head.safetensors"


class Headed(nn.Module):
    """An encoder of any T5 shape under a head, in float32, its weights not yet set.

    Called on token ids [B, L], 0 where padded, it gives logits [B, C], logits of each token [B, L, C], or vectors
    [B, D].
    """

    def __init__(
        self, shape: Shape, head: Head, *, dropout: float = 0.0, dropout_shared: bool = True, recompute: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.head, self.dropout, self.dropout_shared = encoder_shape(shape), head, dropout, dropout_shared
        self.body = T5(self.shape, dropout=dropout, dropout_shared=dropout_shared, recompute=recompute)
        self.linear = nn.Linear(shape.d_model, len(head.labels)) if head.labels else None

    def forward(self, inputs_BL: Tensor) -> Tensor:
        hidden_BLD = self.body.encode(inputs_BL)
        if self.head.kind == "tag":
            return self.logits(hidden_BLD)
        mean_BD = mean_of(hidden_BLD, inputs_BL != PAD)
        if self.head.kind == "classify":
            return self.logits(mean_BD[:, None])[:, 0]
        return F.normalize(mean_BD, dim=-1) if self.head.normalise else mean_BD

    def logits(self, x_BLD: Tensor) -> Tensor:
        assert self.linear is not None
        x_BLD = dropped(x_BLD, self.dropout, training=self.training, shared=self.dropout_shared)
        return self.linear(x_BLD.to(self.linear.weight.dtype))


def mean_of(hidden_BLD: Tensor, real_BL: Tensor) -> Tensor:
    """The mean over real tokens, in float32: [B, D]. A row without one gives zeros.

    >>> mean_of(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[2.0, 3.0]]
    """
    weight_BL1 = real_BL[:, :, None].float()
    return (hidden_BLD.float() * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1.0)


def encoder_shape(shape: Shape) -> Shape:
    """The shape without its decoder.

    >>> from deepnarrow.shapes import parse
    >>> str(encoder_shape(parse("small-el16-dl2"))), str(encoder_shape(parse("tiny-sh")))
    ('small-el16-dl0', 'tiny-dl0')
    """
    return replace(shape, decoder_layers=0, share_encoder_decoder=False)


def encoder_state(model: T5) -> dict[str, Tensor]:
    """The encoder's weights of any T5, by their names in a `T5(encoder_shape(model.shape))`. They are not copies."""
    state = model.state_dict()
    if model.shape.share_encoder_decoder:  # its only stack is named for the decoder
        state = {
            name.replace("decoder.", "encoder.", 1): weight for name, weight in state.items() if ".cross_" not in name
        }
    return {name: weight for name, weight in state.items() if name.startswith(("embedding.", "encoder."))}


def with_head(
    model: T5, head: Head, *, seed: int = 0, dropout: float = 0.0, dropout_shared: bool = True, recompute: bool = False
) -> Headed:
    """A copy of `model`'s encoder under a new head, whose weights are drawn for `seed`.

    Weights of deviation d_model**-0.5, as T5 draws its output matrix, and biases of 0. They are not 0, since Adafactor
    moves a parameter in proportion to its own size.
    """
    plain(model, "the model")
    made = Headed(model.shape, head, dropout=dropout, dropout_shared=dropout_shared, recompute=recompute)
    made.body.load_state_dict(encoder_state(model))
    if made.linear is not None:
        with torch.no_grad():
            width = model.shape.d_model
            made.linear.weight.normal_(0, width**-0.5, generator=stream(seed, "linear.weight"))
            made.linear.bias.zero_()
    return made


def plain(model: T5, origin: str) -> None:
    """Refuse what is more than an encoder and a decoder."""
    if model.prompt is not None or adapted(model):
        raise UserError(f"{origin} has an adapter; only LoRA merged into its model can be used as an encoder alone")


class OpenedHead(NamedTuple):
    """An encoder with its head, in evaluation mode, and what it reads text with."""

    model: Headed
    tokenizer: Tokenizer
    head: Head
    shape: Shape  # of the encoder alone
    origin: str


def as_vectors(opened: Opened) -> OpenedHead:
    """A plain model's encoder as one that embeds, with nothing learned for it."""
    if opened.tokenizer is None:
        raise UserError(f"{opened.origin} has no tokenizer, so text cannot be turned into ids; add its tokenizer.json")
    model = with_head(opened.model, Head(kind="embed")).to(opened.model.embedding.weight).eval()
    return OpenedHead(model, opened.tokenizer, model.head, model.shape, opened.origin)


def open_head(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> OpenedHead:
    """Open a run that was trained with a head, one of its checkpoints, or a folder written by `save_head`."""
    found = find(name, revision)
    if not is_head(found.folder):
        raise UserError(
            f"{found.origin} has no head (no {FILE}); give it one with `deepnarrow finetune {name} --task T "
            "--head classify` (or tag, or embed)"
        )
    model = read_head(found.folder, dtype=dtype)
    tokenizer = read_tokenizer(found.folder)
    if tokenizer is None:
        raise UserError(f"{found.origin} has no tokenizer, so text cannot be turned into ids; add its tokenizer.json")
    return OpenedHead(model.to(device).eval(), tokenizer, model.head, model.shape, found.origin)


def read_head(folder: Path, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> Headed:
    """The encoder and head in a folder, on the CPU."""
    head = head_in(folder)
    body = read_model(folder, dtype=dtype, dropout=dropout)
    if body.shape.decoder_layers:
        raise UserError(f"{folder} holds a {body.shape}, but {FILE} belongs to an encoder alone; was it put there?")
    with torch.device("meta"):
        model = Headed(body.shape, head, dropout=dropout)
    model.body = body
    if model.linear is not None:
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{folder} lacks {WEIGHTS}, the weights of its head; copy the folder again")
        tensors = {name: tensor.to(dtype, copy=True) for name, tensor in read_file(folder / WEIGHTS)}
        wanted = {name: tuple(weight.shape) for name, weight in model.linear.state_dict(prefix="linear.").items()}
        held = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if held != wanted:
            raise UserError(f"{folder / WEIGHTS} holds {held}, but {FILE} and config.json ask for {wanted}")
        model.linear.load_state_dict(
            {name.removeprefix("linear."): tensor for name, tensor in tensors.items()}, assign=True
        )
    return model


def save_head(model: Headed, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write a folder that `open_head` reads to the bit and whose encoder T5EncoderModel loads, whole or not at all."""
    check_replaceable(folder, also=(FILE, WEIGHTS))
    with whole_folder(folder) as temporary:
        save_model(model.body, tokenizer, temporary)
        if model.linear is not None:
            own = {
                name: weight.cpu().contiguous() for name, weight in model.linear.state_dict(prefix="linear.").items()
            }
            save_file(own, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / FILE, {"format": FORMAT, **asdict(model.head)})
