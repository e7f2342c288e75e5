"""A published `config.json` and a Shape: what each key means, in every style the family was published in.

Styles met: T5 of 2020 (no feed_forward_proj, num_decoder_layers or relative_attention_max_distance), T5 1.1 / Flan /
mT5 / ByT5 (tie_word_embeddings false), encoders alone (architectures [...EncoderModel]), and what transformers 5 writes
(tie_word_embeddings always true; scale_decoder_outputs says what it used to say).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from deepnarrow.errors import UserError, nearest
from deepnarrow.model.layers import EPSILON
from deepnarrow.model.weights import plain
from deepnarrow.shapes import Shape, parse

FORMAT = 1
FAMILY = ("t5", "mt5")
SIZES = {  # published key -> ours
    "d_model": "d_model",
    "d_kv": "d_kv",
    "d_ff": "d_ff",
    "num_heads": "num_heads",
    "num_layers": "encoder_layers",
}
FEED_FORWARDS = {  # published word -> ours; gated "gelu" has always meant the tanh form
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "gated-relu": "gated-relu",
    "gated-gelu": "gated-gelu",
    "gated-gelu_new": "gated-gelu",
    "gated-silu": "gated-silu",
    "gated-swish": "gated-silu",
}


class Published(NamedTuple):
    """What a config.json says."""

    shape: Shape
    scaled: bool  # the decoder's output is multiplied by d_model**-0.5
    may_lack_output: bool  # transformers 5 wrote it, which leaves out an untied output matrix equal to the embedding


def read_config(config: Mapping[str, Any], *, where: str) -> Published:
    """Read a published configuration; what a T5 cannot be is a `UserError`."""
    if not isinstance(config, Mapping):
        raise UserError(f"{where} holds a {type(config).__name__}, not the settings of a model")
    kind = config.get("model_type", "t5")
    if kind not in FAMILY:
        raise UserError(f"{where} describes a model of type {kind!r}; this program reads T5: {', '.join(FAMILY)}")
    missing = [key for key in SIZES if key not in config]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; a T5 cannot be built without")
    require(config, where, "layer_norm_epsilon", EPSILON)
    require(config, where, "pad_token_id", 0)
    require(config, where, "decoder_start_token_id", 0)
    encoder_alone = any(str(name).endswith("EncoderModel") for name in config.get("architectures") or ())
    untied = config.get("tie_word_embeddings") is False
    # transformers 5: T5 scales unless either key says not; mT5 never does, and its published files are untied
    scaled = kind != "mt5" and bool(config.get("scale_decoder_outputs", not untied))
    word = str(config.get("feed_forward_proj") or "relu")
    if word not in FEED_FORWARDS:
        raise UserError(f"{where}: unknown feed_forward_proj {word!r}; {nearest(word, FEED_FORWARDS)}")
    decoder_layers = config.get("num_decoder_layers")
    try:
        shape = Shape(
            **{ours: config[key] for key, ours in SIZES.items()},
            decoder_layers=0 if encoder_alone else config["num_layers"] if decoder_layers is None else decoder_layers,
            feed_forward=FEED_FORWARDS[word],
            tied=scaled,
            vocab=config.get("vocab_size", 32128),
            relative_buckets=config.get("relative_attention_num_buckets", 32),
            relative_distance=config.get("relative_attention_max_distance", 128),
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    by_version_5 = "scale_decoder_outputs" in config or (kind == "mt5" and not untied)
    return Published(compact(shape, config.get("deepnarrow"), where), scaled, by_version_5)


def require(config: Mapping[str, Any], where: str, key: str, value: object) -> None:
    if config.get(key) not in (value, None):
        raise UserError(f"{where}: {key} is {config[key]!r}; every T5 this program can compute has {value!r}")


def compact(shape: Shape, ours: Any, where: str) -> Shape:
    """The shape with our own knobs, if `write_config` noted some; `shape` is what the other keys say."""
    if ours is None:
        return shape
    if not isinstance(ours, Mapping) or not isinstance(ours.get("shape"), str) or ours.get("format") != FORMAT:
        raise UserError(
            f'{where}: cannot read its entry "deepnarrow" ({ours!r}), perhaps of a newer version; delete that entry to '
            "read the model as a plain T5"
        )
    noted = parse(ours["shape"])
    if noted == plain(noted):  # nothing to restore: the other keys say it all, also where they were changed since
        return shape
    if plain(noted) != shape:
        raise UserError(
            f'{where} says {noted} in its entry "deepnarrow" but {shape} in the others; delete that entry if the '
            "others are right"
        )
    return noted


def write_config(shape: Shape, *, dtype: str, dropout: float, eos: int = 1) -> dict[str, Any]:
    """The config.json of a model, read alike by transformers 4 and 5; what only we know is under "deepnarrow"."""
    alone = shape.decoder_layers == 0
    config = {
        "architectures": ["T5EncoderModel" if alone else "T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": shape.d_model,
        "d_kv": shape.d_kv,
        "d_ff": shape.d_ff,
        "num_heads": shape.num_heads,
        "num_layers": shape.encoder_layers,
        "num_decoder_layers": shape.decoder_layers,
        "feed_forward_proj": shape.feed_forward,
        "vocab_size": shape.vocab,
        "relative_attention_num_buckets": shape.relative_buckets,
        "relative_attention_max_distance": shape.relative_distance,
        "tie_word_embeddings": shape.tied,
        "scale_decoder_outputs": shape.tied,
        "layer_norm_epsilon": EPSILON,
        "dropout_rate": dropout,
        "initializer_factor": 1.0,
        "is_encoder_decoder": not alone,
        "use_cache": not alone,
        "pad_token_id": 0,
        "eos_token_id": eos,
        "decoder_start_token_id": 0,
        "torch_dtype": dtype,
    }
    return config | {"deepnarrow": {"shape": str(shape), "format": FORMAT}}
