"""Adapters on disk, in PEFT's format: what was learned over a frozen model, without the model.

FOLDER/adapter_config.json         kind, settings, and the base model by path or hub name (`base_model_name_or_path`)
FOLDER/adapter_model.safetensors   LoRA: two matrices under the published name of each adapted one; a soft prompt: one
FOLDER/base.json                   ours, PEFT does not read it: the base's origin and a fingerprint of its weights

A folder PEFT wrote has no base.json; then only sizes are checked. What PEFT knows and we do not (other methods, ranks
that differ, biases, copies of whole layers) is refused in one line. A model with fewer key/value heads, tied keys and
values or shared stacks is published with these written out (weights.py), and so are its adapters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.model.lora import TARGETS, Lora, adapted, put_beside
from deepnarrow.model.t5 import T5
from deepnarrow.model.tensors import read_file
from deepnarrow.model.weights import fingerprint, listed, plain, published_name, same, sizes, written_out
from deepnarrow.shapes import Shape

CONFIG, WEIGHTS, OLD_WEIGHTS, BASE = (
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "base.json",
)  # fmt: skip
FILES = (CONFIG, WEIGHTS, BASE)
FORMAT = 1
LORA, PROMPT = "LORA", "PROMPT_TUNING"  # PEFT's names
PREFIX, DOWN, UP, VECTORS = "base_model.model.", ".lora_A.weight", ".lora_B.weight", "prompt_embeddings"
# Keys of PEFT's configs that are read here or change nothing once trained; any other must be empty.
KNOWN = {
    LORA: {
        "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "init_lora_weights", "exclude_modules",
        "layers_to_transform", "layers_pattern", "megatron_core", "megatron_config", "qalora_group_size",
        "runtime_config", "ensure_weight_tying",
    },
    PROMPT: {
        "num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_attention_heads", "num_layers",
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    },
}  # fmt: skip
ALWAYS_KNOWN = {
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # others changed the base's weights as well


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model an adapter belongs to."""

    origin: str  # as `Opened.origin`: a folder, or "owner/name@commit"
    fingerprint: str | None  # of its weights; None where nobody wrote it down

    @classmethod
    def of(cls, model: T5, origin: str) -> "Base":
        """Of a model without adapters. A folder is named in full, so that it is found from anywhere."""
        here = Path(origin)
        return cls(origin=str(here.resolve()) if here.is_dir() else origin, fingerprint=fingerprint(model.state_dict()))


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter folder as it was read; `lora` is None for a soft prompt."""

    folder: Path
    base: Base | None
    lora: Lora | None
    tensors: Mapping[str, Tensor]  # by the file's names, float32


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def save_lora(model: T5, lora: Lora, base: Base, folder: Path) -> None:
    """Write the adapters of a model that has them."""
    found = adapted(model)
    down = written_out({f"{name}.weight": one.down.weight for name, one in found.items()}, model.shape, heads=False)
    up = written_out({f"{name}.weight": one.up.weight for name, one in found.items()}, model.shape)
    tensors: dict[str, Tensor] = {}
    for name in down:
        theirs = PREFIX + published_name(name).removesuffix(".weight")
        tensors |= {theirs + DOWN: down[name], theirs + UP: up[name]}
    settings = {
        "peft_type": LORA,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({published_name(name).split(".")[-2] for name in down}),
        "bias": "none",
    }
    _write(folder, settings, tensors, model.shape, base)


def save_prompt(model: T5, base: Base, folder: Path) -> None:
    """Write a model's soft prompt."""
    assert model.prompt is not None
    settings = {
        "peft_type": PROMPT,
        "num_virtual_tokens": len(model.prompt),
        "num_transformer_submodules": 1,  # the encoder alone
        "token_dim": model.shape.d_model,
        "num_attention_heads": model.shape.num_heads,
        "num_layers": model.shape.encoder_layers,
    }
    _write(folder, settings, {VECTORS: model.prompt}, model.shape, base)


def _write(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: Shape, base: Base) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.detach().float().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    name, at, revision = (base.origin, "", "") if Path(base.origin).is_dir() else base.origin.partition("@")
    shared = {
        "task_type": "SEQ_2_SEQ_LM" if shape.decoder_layers else "FEATURE_EXTRACTION",
        "base_model_name_or_path": name,
        "revision": revision if at else None,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, {**settings, **shared})
    write_json(folder / BASE, {"format": FORMAT, "origin": base.origin, "fingerprint": base.fingerprint})


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder, of ours or of PEFT's; what cannot be done with it is a `UserError`."""
    if not is_adapter(folder):
        raise UserError(f"{folder} is not an adapter: it has no {CONFIG}, or a whole model beside it")
    settings, where = read_json(folder / CONFIG), folder / CONFIG
    if not isinstance(settings, dict):
        raise UserError(f"{where} is not a JSON object")
    kind = settings.get("peft_type")
    if kind not in (LORA, PROMPT):
        raise UserError(f"{where} is a {kind} adapter; {LORA} and {PROMPT} can be read")
    check_settings(settings, kind, where)
    file = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / OLD_WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} has no weights: expected {WEIGHTS}")
    tensors = {name: tensor.float() for name, tensor in read_file(file)}
    return Adapter(
        folder=folder, base=read_base(folder, settings), lora=read_lora(settings) if kind == LORA else None,
        tensors=tensors,
    )  # fmt: skip


def check_settings(settings: Mapping[str, Any], kind: str, where: Path) -> None:
    """Refuse what would have to be computed in a way that we do not know."""
    for key, value in settings.items():
        if value and key not in ALWAYS_KNOWN | KNOWN[kind]:
            raise UserError(
                f"{where} uses {key} ({value!r}), which is not supported; merge the adapter with PEFT first"
            )
    if settings.get("bias", "none") != "none":
        raise UserError(f"{where} has biases ({settings['bias']!r}), but no matrix of a T5 has one")
    if settings.get("init_lora_weights", True) not in PLAIN_STARTS:
        raise UserError(
            f"{where} began with init_lora_weights {settings['init_lora_weights']!r}, which changes the base model as "
            "well; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    if kind == PROMPT and settings.get("num_transformer_submodules") != 1:
        raise UserError(
            f"{where} also has a prompt for the decoder, which is not supported; train it with "
            "num_transformer_submodules=1, as Lester et al. did"
        )


def read_lora(settings: Mapping[str, Any]) -> Lora:
    """Targets are those of the file's tensors, see `apply`; PEFT may have named them by a pattern."""
    return Lora(
        rank=int(settings.get("r", 8)),
        alpha=float(settings.get("lora_alpha", 8)),
        dropout=float(settings.get("lora_dropout", 0.0)),
        targets=tuple(TARGETS),
    )


def read_base(folder: Path, settings: Mapping[str, Any]) -> Base | None:
    """What the folder says of its base. adapter_config.json may be edited, when a base has moved, so it counts."""
    ours = read_json(folder / BASE) if (folder / BASE).is_file() else {}
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not name:
        return None
    return Base(origin=f"{name}@{revision}" if revision else name, fingerprint=ours.get("fingerprint"))


def check_base(adapter: Adapter, model: T5, origin: str) -> None:
    """The adapter must have been trained over these weights, where that is known."""
    check_fingerprint(
        adapter, fingerprint(model.state_dict()) if adapter.base and adapter.base.fingerprint else "", origin
    )


def check_fingerprint(adapter: Adapter, found: str, origin: str) -> None:
    wanted = adapter.base.fingerprint if adapter.base else None
    if wanted is not None and found != wanted:
        raise UserError(
            f"{adapter.folder} was trained over other weights than those of {origin} (fingerprints {wanted[:12]} and "
            f"{found[:12]}); give the base it was trained over"
        )


def apply(adapter: Adapter, model: T5) -> T5:
    """Put an adapter on its model, in place and not yet merged; the model is frozen, what was learned is not."""
    if adapter.lora is None:
        model.requires_grad_(False)
        model.prompt = nn.Parameter(prompt_vectors(adapter, model.shape).to(model.embedding.weight.device))
        return model
    return put_beside(model, adapter.lora, matrices(adapter, model.shape))


def prompt_vectors(adapter: Adapter, shape: Shape) -> Tensor:
    """[P, D]"""
    vectors = adapter.tensors.get(VECTORS)
    if vectors is None or len(adapter.tensors) > 1 or vectors.ndim != 2 or vectors.shape[1] != shape.d_model:
        found = {name: list(tensor.shape) for name, tensor in adapter.tensors.items()}
        raise UserError(f"{adapter.folder} should hold {VECTORS} [length, {shape.d_model}], but holds {found}")
    return vectors


def matrices(adapter: Adapter, shape: Shape) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) by our names of the matrices they stand beside."""
    lora, where = adapter.lora, adapter.folder
    assert lora is not None
    wide = sizes(plain(shape))
    ours = {published_name(name): (name, size) for name, size in wide.items() if ".blocks." in name}
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for theirs, tensor in adapter.tensors.items():
        side = next((ending for ending in (DOWN, UP) if theirs.endswith(ending)), None)
        name = theirs.removeprefix(PREFIX).removesuffix(side or "") + ".weight"
        if side is None or name not in ours or len(ours[name][1]) != 2:  # a norm's weight is a vector
            unknown.append(theirs)
            continue
        found.setdefault(ours[name][0], {})[side] = tensor
    if unknown:
        raise UserError(f"{where} adapts what a {shape} does not have or cannot adapt: {listed(sorted(unknown))}")
    for name, pair in found.items():
        outputs, inputs = wide[name]
        wanted = {DOWN: (lora.rank, inputs), UP: (outputs, lora.rank)}
        if {side: tuple(tensor.shape) for side, tensor in pair.items()} != wanted:
            there = {side.split(".")[1]: list(tensor.shape) for side, tensor in pair.items()}
            raise UserError(
                f"{where}: {published_name(name)} needs lora_A {list(wanted[DOWN])} and lora_B {list(wanted[UP])}, but "
                f"there are {there}"
            )
    if not found:
        raise UserError(f"{where} holds no adapters")
    down, up = ({name: pair[side] for name, pair in found.items()} for side in (DOWN, UP))
    down, up = collapsed(down, shape, where, heads=False), collapsed(up, shape, where)
    return {name.removesuffix(".weight"): (down[name], up[name]) for name in down}


def collapsed(whole: Mapping[str, Tensor], shape: Shape, where: Path, *, heads: bool = True) -> dict[str, Tensor]:
    """Undo `written_out`: adapters that differ where the shape has one matrix are a `UserError`."""
    if shape == plain(shape):
        return dict(whole)
    own = sizes(shape)
    state = {name: tensor for name, tensor in whole.items() if name in own}
    if shape.kv_heads is not None and heads:
        for name, tensor in state.items():
            if name.endswith(("_attention.key.weight", "_attention.value.weight")):
                each = tensor.unflatten(0, (shape.num_heads, shape.d_kv))
                state[name] = each[:: shape.num_heads // shape.kv_heads].flatten(0, 1)
    again = written_out(state, shape, heads=heads)
    odd = sorted(name for name in whole.keys() | again.keys() if name not in whole or name not in again)
    odd += [name for name in again if name in whole and not same(again[name], whole[name])]
    if odd:
        raise UserError(
            f"{where} adapts {published_name(odd[0])} apart from what a {shape} shares it with; adapt both alike, or "
            f"open its base as a {plain(shape)}"
        )
    return state


def read_trained(folder: Path, shape: Shape) -> dict[str, Tensor]:
    """What an adapter folder holds, by the names of the parameters in a model with adapters."""
    adapter = read_adapter(folder)
    if adapter.lora is None:
        return {"prompt": prompt_vectors(adapter, shape)}
    pairs = matrices(adapter, shape)
    sides = {f"{name}.down.weight": pair[0] for name, pair in pairs.items()}
    return sides | {f"{name}.up.weight": pair[1] for name, pair in pairs.items()}
