"""Our tensors and the published ones: the same numbers under two sets of names.

A published T5 has plain projections only. Our three knobs beyond it, `tie_kv`, `kv_heads` and `share_encoder_decoder`,
each stand for some equal parts of a plain T5, so such a model is published by writing those parts out (`expand`) and
read back by checking that they are still equal (`collapse`). The expanded model computes the same function.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import Shape
from deepnarrow.shapes.counts import parameters

ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}

# In files of 2020, a table in the decoder's first cross-attention, which has no position bias: nothing reads it.
STRAY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# The embedding under other names. Where it differs from `shared.weight` the file is not a T5's.
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def plain(shape: Shape) -> Shape:
    """The shape without the knobs a published T5 does not have.

    >>> from deepnarrow.shapes import parse
    >>> str(plain(parse("tiny-kh2-shkv")))
    'tiny'
    """
    return replace(shape, kv_heads=None, tie_kv=False, share_encoder_decoder=False)


def sizes(shape: Shape) -> dict[str, torch.Size]:
    """Our name of each tensor of a shape -> its size. Takes no memory."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in T5(shape).state_dict().items()}


def published_name(name: str) -> str:
    """Our name of a plain T5's tensor -> the published one.

    >>> published_name("decoder.blocks.3.cross_attention.key.weight")
    'decoder.block.3.layer.1.EncDecAttention.k.weight'
    >>> published_name("encoder.blocks.0.feed_forward.wi_0.weight")
    'encoder.block.0.layer.1.DenseReluDense.wi_0.weight'
    """
    match name.split("."):
        case ["embedding", "weight"]:
            return "shared.weight"
        case ["output", "weight"]:
            return "lm_head.weight"
        case [stack, "position", "table"]:
            return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        case [stack, "norm", "weight"]:
            return f"{stack}.final_layer_norm.weight"
        case [stack, "blocks", number, part, *rest]:
            kind, _, what = part.partition("_")
            layer = {"self": 0, "cross": 1, "feed": 2 if stack == "decoder" else 1}[kind]
            home = f"{stack}.block.{number}.layer.{layer}"
            if what == "norm":
                return f"{home}.layer_norm.weight"
            if what == "forward":
                return f"{home}.DenseReluDense.{rest[0]}.weight"
            return f"{home}.{'SelfAttention' if kind == 'self' else 'EncDecAttention'}.{ATTENTION[rest[0]]}.weight"
    raise ValueError(f"no such tensor in a T5: {name}")


def to_published(state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """A model's tensors under published names, knobs written out."""
    return {published_name(name): tensor for name, tensor in expand(state, shape).items()}


def as_tied(shape: Shape, tensors: Mapping[str, Tensor]) -> Shape:
    """The shape, untied if its config.json ties but the file holds an output matrix that is not the embedding.

    transformers 5 believes such a file, earlier versions believed the config; we go with the file.
    """
    matrix = tensors.get("lm_head.weight")
    embedding = next((tensors[name] for name in ("shared.weight", *COPIES) if name in tensors), matrix)
    if not shape.tied or not shape.decoder_layers or matrix is None or embedding is None or same(matrix, embedding):
        return shape
    return replace(shape, tied=False)


def from_published(
    tensors: Mapping[str, Tensor], shape: Shape, *, scaled: bool, may_lack_output: bool, where: str
) -> dict[str, Tensor]:
    """Published tensors as the state of a `T5(shape)`; too many, too few or wrongly sized ones are a `UserError`.

    `scaled` says whether the published model multiplies the decoder's output by d_model**-0.5. With a matrix of its
    own behind that factor, the factor is put into the matrix: we scale before the embedding only. `may_lack_output`
    allows an untied matrix to be absent where it equals the embedding.
    """
    stated, held = parameters(plain(shape)).total, sum(tensor.numel() for tensor in tensors.values())
    if stated > 100 * held:  # before a nonsense shape is laid out, if only without memory
        raise UserError(f"{where} holds {held:,} numbers, but config.json ({shape}) asks for {stated:,}")
    found = settle(tensors, shape, scaled=scaled, where=where)
    if may_lack_output and not shape.tied and shape.decoder_layers and "shared.weight" in found:
        found.setdefault("lm_head.weight", found["shared.weight"].clone())
    wanted = {published_name(name): (name, size) for name, size in sizes(plain(shape)).items()}
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        said = [f"{word} {listed(names)}" for word, names in (("lacks", missing), ("also has", unknown)) if names]
        raise UserError(f"{where} does not hold the {shape} that its config.json states: it {', '.join(said)}")
    for theirs, (_, size) in wanted.items():
        if found[theirs].shape != size:
            raise UserError(
                f"{where}: {theirs} is {tuple(found[theirs].shape)}, but config.json ({shape}) makes it {tuple(size)}"
            )
    return collapse({ours: found[theirs] for theirs, (ours, _) in wanted.items()}, shape, where=where)


def settle(tensors: Mapping[str, Tensor], shape: Shape, *, scaled: bool, where: str) -> dict[str, Tensor]:
    """Leave out what published files repeat, so that each wanted tensor is there once."""
    found = {name: tensor for name, tensor in tensors.items() if name != STRAY}
    if not shape.decoder_layers:  # an encoder published together with a decoder nobody asked for
        found = {name: tensor for name, tensor in found.items() if not name.startswith(("decoder.", "lm_head."))}
    for copy in COPIES:
        repeated = found.pop(copy, None)
        if repeated is None:
            continue
        if not same(found.setdefault("shared.weight", repeated), repeated):
            raise UserError(f"{where}: {copy} differs from shared.weight, but a T5 has one embedding for both stacks")
    if shape.tied and shape.decoder_layers and "lm_head.weight" in found:
        matrix = found.pop("lm_head.weight")
        found.setdefault("shared.weight", matrix)
    elif scaled and "lm_head.weight" in found:
        found["lm_head.weight"] = found["lm_head.weight"] * shape.d_model**-0.5
    return found


def expand(state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """The state of a `T5(plain(shape))` that computes what this state of a `T5(shape)` does."""
    whole = written_out(state, shape)
    return {name: whole[name] for name in sizes(plain(shape))}


def written_out(state: Mapping[str, Tensor], shape: Shape, *, heads: bool = True) -> dict[str, Tensor]:
    """What of a plain T5 these tensors of a `T5(shape)` stand for; there may be tensors for some matrices only.

    `heads` says whether rows of keys and values are those of heads, which grouped queries share: not so of what such a
    matrix reads (adapters.py).
    """
    whole = dict(state)
    if shape.share_encoder_decoder:
        own = {name: tensor for name, tensor in state.items() if name.startswith("decoder.") and ".cross_" not in name}
        whole |= {"encoder" + name.removeprefix("decoder"): tensor for name, tensor in own.items()}
    for name, tensor in list(whole.items()):
        if name.endswith("_attention.key.weight") and shape.tie_kv:
            whole[name.replace(".key.", ".value.")] = tensor
    if shape.kv_heads is not None and heads:
        each = shape.num_heads // shape.kv_heads
        for name, tensor in whole.items():
            if name.endswith(("_attention.key.weight", "_attention.value.weight")):
                whole[name] = tensor.unflatten(0, (shape.kv_heads, -1)).repeat_interleave(each, dim=0).flatten(0, 1)
    return whole


def collapse(whole: Mapping[str, Tensor], shape: Shape, *, where: str) -> dict[str, Tensor]:
    """Undo `expand`. Parts that are no longer equal, as after training elsewhere, are a `UserError`."""
    if shape == plain(shape):
        return dict(whole)
    state = {}
    for name in sizes(shape):
        tensor = whole[name]
        if shape.kv_heads is not None and name.endswith(("_attention.key.weight", "_attention.value.weight")):
            heads = tensor.unflatten(0, (shape.num_heads, shape.d_kv))
            tensor = heads[:: shape.num_heads // shape.kv_heads].flatten(0, 1)
        state[name] = tensor
    for name, tensor in expand(state, shape).items():
        if not same(tensor, whole[name]):
            raise UserError(
                f"{where}: {published_name(name)} is not what the shape {shape} implies, so it was changed outside of "
                f'that shape; delete the entry "deepnarrow" from config.json to read it as a {plain(shape)}'
            )
    return state


def same(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.shape == second.shape and torch.equal(first, second))


def listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of all weights in float32, with their names."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
