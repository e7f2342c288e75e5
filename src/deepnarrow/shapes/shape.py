"""Shapes: a model's dimensions, written as one string.

`small-el16-dl2` is T5 Small with 16 encoder and 2 decoder layers: a base, then `-<key><number>` edits, in the naming of
Tay et al. 2022 (arXiv:2109.10686). The string is the key in files, logs, cards and tables.
"""

import re
from dataclasses import dataclass, replace

from deepnarrow.errors import UserError, nearest

FEED_FORWARDS = ("relu", "gelu", "silu", "gated-relu", "gated-gelu", "gated-silu")
LARGEST = 2**31 - 1  # no dimension can be larger: tensors are indexed by 64 bits, matrices have two sides


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Everything that fixes a T5's tensors. `str(shape)` is its canonical name; `parse` reads it back."""

    d_model: int
    d_ff: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    d_kv: int = 64  # published cards print 32 below Base; only 64 gives their totals (tests/shapes/test_counts.py)
    kv_heads: int | None = None  # heads of keys and values; None = num_heads, 1 = multi-query, between = grouped
    tie_kv: bool = False  # one projection serves as keys and as values (mesh-TF `shared_kv`)
    share_encoder_decoder: bool = False  # the encoder's weights are the decoder's, all but cross-attention
    feed_forward: str = "relu"  # T5 1.1 has "gated-gelu"; GELU inside a gate is the tanh form, `gelu_new`
    tied: bool = True  # the output matrix is the embedding, and the decoder's output is scaled by d_model**-0.5
    vocab: int = 32128  # 32,000 pieces + 100 sentinels, rounded up to a multiple of 128
    relative_buckets: int = 32
    relative_distance: int = 128

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            least = 0 if name == "decoder_layers" else 1  # no decoder layers: an encoder alone
            if not _is_whole(value, least):
                raise UserError(f"{name} must be a whole number from {least} to {LARGEST}, not {value!r}")
        if self.kv_heads is not None:
            if not _is_whole(self.kv_heads, 1):
                raise UserError(f"kv_heads must be a whole number from 1 to num_heads, not {self.kv_heads!r}")
            if self.num_heads % self.kv_heads:
                raise UserError(
                    f"kv_heads must divide num_heads: {self.kv_heads} key/value heads "
                    f"cannot serve {self.num_heads} heads"
                )
        if self.kv_heads == self.num_heads:
            object.__setattr__(self, "kv_heads", None)  # one spelling for one thing
        if self.feed_forward not in FEED_FORWARDS:
            raise UserError(f"unknown feed_forward {self.feed_forward!r}; {nearest(self.feed_forward, FEED_FORWARDS)}")
        if self.share_encoder_decoder and self.encoder_layers != self.decoder_layers:
            raise UserError(
                f"sharing encoder and decoder needs equal depths, not {self.encoder_layers} and {self.decoder_layers}"
            )
        # Half of the encoder's buckets look back, half of those count exactly, and the rest are logarithmic from there
        # to `relative_distance` (Raffel et al. 2020, section 2.1): fewer buckets or a nearer end leave no room.
        if self.relative_buckets < 4:
            raise UserError(f"relative_buckets must be at least 4, not {self.relative_buckets}")
        if self.relative_distance <= self.relative_buckets // 2:
            raise UserError(
                f"relative_distance must exceed half of relative_buckets: "
                f"{self.relative_distance} is not above {self.relative_buckets // 2}"
            )

    @property
    def inner(self) -> int:
        """Width of all query heads together. Free of d_model, so `small-kv128` is a legal shape."""
        return self.num_heads * self.d_kv

    @property
    def kv_inner(self) -> int:
        """Width of all key (or value) heads together."""
        return (self.kv_heads or self.num_heads) * self.d_kv

    @property
    def gated(self) -> bool:
        return self.feed_forward.startswith("gated-")

    def __str__(self) -> str:
        return canonical(self)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST


SIZES = (
    "d_model", "d_ff", "num_heads", "encoder_layers", "decoder_layers", "d_kv",
    "vocab", "relative_buckets", "relative_distance",
)  # fmt: skip


def _t5(d_model: int, d_ff: int, num_heads: int, layers: int, d_kv: int = 64) -> Shape:
    return Shape(
        d_model=d_model, d_ff=d_ff, num_heads=num_heads, d_kv=d_kv, encoder_layers=layers, decoder_layers=layers
    )


def _t5_1_1(d_model: int, d_ff: int, num_heads: int, layers: int) -> Shape:
    return replace(_t5(d_model, d_ff, num_heads, layers), feed_forward="gated-gelu", tied=False)


BASES = {
    # T5-Efficient: Tay et al. 2022, table 2, with the released d_kv. `large`, `xl`, `xxl` are T5's Large, 3B, 11B.
    "tiny": _t5(256, 1024, 4, 4),
    "mini": _t5(384, 1536, 8, 4),
    "small": _t5(512, 2048, 8, 6),
    "base": _t5(768, 3072, 12, 12),
    "large": _t5(1024, 4096, 16, 24),
    "xl": _t5(1024, 16384, 32, 24, d_kv=128),
    "xxl": _t5(1024, 65536, 128, 24, d_kv=128),
    # T5 1.1: GEGLU, untied. Dimensions from the gin files of the T5 repository (t5/models/gin/models/t5.1.1.*.gin).
    "v1_1-small": _t5_1_1(512, 1024, 6, 8),
    "v1_1-base": _t5_1_1(768, 2048, 12, 12),
    "v1_1-large": _t5_1_1(1024, 2816, 16, 24),
    "v1_1-xl": _t5_1_1(2048, 5120, 32, 24),
    "v1_1-xxl": _t5_1_1(4096, 10240, 64, 24),
}

NUMBERS = {  # key in the string -> the fields it sets, in the order of printing
    "dm": ("d_model",),
    "ff": ("d_ff",),
    "kv": ("d_kv",),
    "nh": ("num_heads",),
    "kh": ("kv_heads",),
    "nl": ("encoder_layers", "decoder_layers"),
    "el": ("encoder_layers",),
    "dl": ("decoder_layers",),
    "v": ("vocab",),
    "rb": ("relative_buckets",),
    "rd": ("relative_distance",),
}
WORDS: dict[str, dict[str, object]] = {  # word in the string -> the fields it sets
    "relu": {"feed_forward": "relu"},
    "gelu": {"feed_forward": "gelu"},
    "silu": {"feed_forward": "silu"},
    "reglu": {"feed_forward": "gated-relu"},
    "geglu": {"feed_forward": "gated-gelu"},
    "swiglu": {"feed_forward": "gated-silu"},
    "tied": {"tied": True},
    "untied": {"tied": False},
    # What the released `sh` checkpoints are is not settled. The card says attention heads are shared, which would be
    # `kh1`; the behaviour of the released weights in the converter says that encoder and decoder share their weights.
    # We read `sh` as the second and keep the first reachable as `kh1` (docs/shapes.md tells the evidence).
    "sh": {"share_encoder_decoder": True},
    "skv": {"tie_kv": True},
    "shkv": {"share_encoder_decoder": True, "tie_kv": True},
}
BINARY = ("dm", "ff")  # here `1000` in a published name means 1024, `12000` means 12288


def parse(text: str) -> Shape:
    """Read a shape string; edits may stand in any order, and the last of two that set the same field wins.

    >>> parse("small-el16-dl2").encoder_layers
    16
    >>> parse("tiny-ff1000").d_ff, parse("tiny-ff=1000").d_ff
    (1024, 1000)
    >>> str(parse("small-dl2-el16"))
    'small-el16-dl2'
    >>> parse("smal-el16")
    Traceback (most recent call last):
    deepnarrow.errors.UserError: unknown base 'smal' in shape 'smal-el16'; did you mean small or v1_1-small?
    """
    base, edits = _split(text)
    fields: dict[str, object] = {}
    for edit in edits:
        fields |= _read_edit(edit, text)
    try:
        return replace(BASES[base], **fields)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"shape {text!r} cannot be built: {error}") from None


def _split(text: str) -> tuple[str, list[str]]:
    head, *edits = text.strip().lower().split("-")
    if head == "v1_1" and edits:
        head, edits = f"{head}-{edits[0]}", edits[1:]
    if head not in BASES:
        raise UserError(f"unknown base {head!r} in shape {text!r}; {nearest(head, BASES)}")
    return head, edits


def _read_edit(edit: str, text: str) -> dict[str, object]:
    if edit in WORDS:
        return WORDS[edit]
    match = re.fullmatch(r"([a-z]+)(=?)([1-9][0-9]{0,9}|0)", edit)  # ten digits reach beyond `LARGEST`
    if not match or match[1] not in NUMBERS:
        raise UserError(f"cannot read {edit!r} in shape {text!r}; {_mend(edit)}")
    key, literal, number = match[1], match[2], int(match[3])
    if key in BINARY and not literal and number and number % 1000 == 0:
        number = number // 1000 * 1024
    return dict.fromkeys(NUMBERS[key], number)


def _mend(edit: str) -> str:
    """What to write instead of an edit that cannot be read."""
    letters = re.search(r"[a-z]+", edit)
    key = letters[0] if letters else ""
    if key in NUMBERS:
        return f"{key} takes one whole number of at most ten digits, as in {key}2"
    rule = f"write one of {', '.join(NUMBERS)} and then a number, or one of {', '.join(WORDS)}"
    near = nearest(key, [*NUMBERS, *WORDS])
    return f"{near} ({rule})" if near.startswith("did you mean") else rule


def canonical(shape: Shape) -> str:
    """The shortest name of a shape: the base that needs the fewest edits, then the edits in a fixed order.

    >>> canonical(Shape(d_model=512, d_ff=2048, num_heads=8, encoder_layers=16, decoder_layers=2))
    'small-el16-dl2'
    """
    names = ["-".join([base, *_edits(BASES[base], shape)]) for base in BASES]
    return min(names, key=lambda name: (name.count("-") - name.startswith("v1_1-"), names.index(name)))


def _edits(base: Shape, shape: Shape) -> list[str]:
    """What must be written after `base` to make it `shape`."""
    differs = {name for fields in NUMBERS.values() for name in fields if getattr(base, name) != getattr(shape, name)}
    edits = []
    for key, fields in NUMBERS.items():
        if key == "nl":
            wanted = set(fields) <= differs and shape.encoder_layers == shape.decoder_layers
            differs -= set(fields) if wanted else set()
        else:
            wanted = fields[0] in differs
        if wanted:
            edits.append(_number(key, getattr(shape, fields[0])))
    if shape.feed_forward != base.feed_forward:
        edits.append(next(word for word, sets in WORDS.items() if sets == {"feed_forward": shape.feed_forward}))
    if shape.tied != base.tied:
        edits.append("tied" if shape.tied else "untied")
    if shape.share_encoder_decoder or shape.tie_kv:  # no base has either
        edits.append("shkv" if shape.share_encoder_decoder and shape.tie_kv else "skv" if shape.tie_kv else "sh")
    return edits


def _number(key: str, value: int) -> str:
    if key in BINARY and value % 1024 == 0:
        return f"{key}{value // 1024 * 1000}"
    return f"{key}{'=' if key in BINARY and value % 1000 == 0 else ''}{value}"
