"""tokenizer.json through the `tokenizers` library: the reference for every id in this package.

The T5 file normalises with SentencePiece's compiled character map (NFKC and more), strips white space on the right,
folds runs of spaces, puts U+2581 before the text, and cuts it by a unigram model. Text that names a sentinel is split
there first; the piece of text right behind `<extra_id_0>` gets no U+2581 of its own (prepend_scheme "first"), so
`<extra_id_0>b` and `<extra_id_0> b` differ.

transformers 5 loads the same file in two ways: through its generic class, which follows the file to the letter as we
do, and through `T5Tokenizer`, which puts its own splitting in place of the file's and so writes U+2581 before
text right behind a sentinel. Our folders name the generic class.
"""

import base64
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from deepnarrow.errors import UserError
from deepnarrow.files import write_bytes, write_json
from deepnarrow.text.sentencepiece_format import BYTE, Model
from deepnarrow.text.vocabulary import Tokenizer, check_layout, fingerprint_of, whole
from deepnarrow.text.word_cache import WordCache, is_word_wise

SPACE = "\u2581"  # how a piece writes a space
NAMES = ("<pad>", "</s>", "<unk>")
FAR = 256  # sentinels are looked for up to here, and beyond as long as there are some


class JsonTokenizer(Tokenizer):
    """A tokenizer read from the text of a tokenizer.json."""

    kind = "json"

    def __init__(self, data: bytes, origin: str | Path = "tokenizer.json") -> None:
        self.data = data
        try:
            self.engine = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{origin} is not a tokenizer.json that the tokenizers library reads ({error})") from None
        self.engine.no_truncation()
        self.engine.no_padding()
        pad, eos, unk = (self.engine.token_to_id(name) for name in NAMES)
        check_layout(origin, pad=pad, eos=eos, unk=unk)
        self.size = self.highest() + 1
        named = self.named_sentinels()
        self.sentinels = len(named)
        self.top = named.get(0, self.size - 1)
        if named != {n: self.top - n for n in range(len(named))}:
            raise UserError(
                f"{origin} does not number its sentinels downward from <extra_id_0> ({self.top}) as T5 does; "
                "reorder its added_tokens or train a vocabulary with `deepnarrow tokenizer train`"
            )

    def highest(self) -> int:
        """The largest id. A unigram model numbers its pieces without a gap, so that only what was added is looked at:
        to bring 32,000 pieces over from the library takes as long as all else here.
        """
        if isinstance(self.engine.model, tokenizers.models.Unigram):
            pieces = self.engine.get_vocab_size(with_added_tokens=False)
            return max(pieces - 1, *self.engine.get_added_tokens_decoder(), 0)
        return max(self.engine.get_vocab(with_added_tokens=True).values())

    def named_sentinels(self) -> dict[int, int]:
        """The number of each <extra_id_n> -> its id. As a piece, mT5's have U+2581 in front."""
        named: dict[int, int] = {}
        n = 0
        while n < max([FAR, *named]) + 2:
            for front in (SPACE, ""):
                if (index := self.engine.token_to_id(f"{front}<extra_id_{n}>")) is not None:
                    named[n] = index
            n += 1
        return named

    @cached_property
    def layout(self) -> dict[str, Any]:
        """The content of the file."""
        return json.loads(self.data)

    @cached_property
    def words(self) -> WordCache | None:
        normaliser = self.engine.normalizer
        word_wise = normaliser is not None and is_word_wise(self.layout, normaliser.normalize_str)
        return WordCache(self.encode_whole) if word_wise else None

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return fingerprint_of_json(self.layout)

    def sentinel(self, n: int) -> int:
        return super().sentinel(n) - (self.size - 1 - self.top)  # tokens may have been added above the sentinels

    def encode(self, text: str) -> list[int]:
        try:
            return self.engine.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            return self.engine.encode(whole(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) == 1:  # what is learned about words pays with many
            return [self.encode(texts[0])]
        if self.words is None:
            return self.encode_whole(list(texts))
        found = self.words.ids(list(texts))
        rest = self.encode_whole([text for text, ids in zip(texts, found, strict=True) if ids is None])
        later = iter(rest)
        return [next(later) if ids is None else ids for ids in found]

    def encode_whole(self, texts: list[str]) -> list[list[int]]:
        """Texts as they stand, in the library's own threads."""
        try:
            found = self.engine.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            found = self.engine.encode_batch_fast([whole(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self.engine.decode(self.known(ids), skip_special_tokens=False)

    def piece(self, index: int) -> str:
        text = self.engine.id_to_token(index)
        if text is None:
            raise ValueError(f"id {index} does not exist: this tokenizer has {self.size}")
        return text

    def save(self, folder: Path) -> None:
        write_bytes(folder / "tokenizer.json", self.data)
        write_json(folder / "tokenizer_config.json", settings(self.sentinels))

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return JsonTokenizer, (self.data,)


def settings(sentinels: int) -> dict[str, Any]:
    """tokenizer_config.json: the generic class, so that transformers follows tokenizer.json to the letter."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": NAMES[0],
        "eos_token": NAMES[1],
        "unk_token": NAMES[2],
        "extra_ids": sentinels,
        "additional_special_tokens": [f"<extra_id_{n}>" for n in range(sentinels)],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def from_sentencepiece(model: Model, appended: int) -> dict[str, Any]:
    """A SentencePiece unigram model with `appended` sentinels on top, as the content of a tokenizer.json."""
    bytes_exist = any(piece.type == BYTE for piece in model.pieces)
    names = [piece.text for piece in model.pieces[:3]]
    top = [f"<extra_id_{n}>" for n in reversed(range(appended))]
    first = len(model.pieces)
    steps: list[dict[str, Any]] = []
    if model.character_map:
        character_map = base64.b64encode(model.character_map).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": character_map})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": False, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE})
    scheme = "first" if model.add_dummy_prefix else "never"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": True}
    decoder: dict[str, Any] = {**metaspace, "prepend_scheme": "always" if model.add_dummy_prefix else "never"}
    if bytes_exist:
        decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, decoder]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(i, n) for i, n in [*enumerate(names), *enumerate(top, start=first)]],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": {**metaspace, "prepend_scheme": scheme},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": names[1], "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": names[1], "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": names[1], "type_id": 0}},
            ],
            "special_tokens": {names[1]: {"id": names[1], "ids": [1], "tokens": [names[1]]}},
        },
        "decoder": decoder,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[piece.text, piece.score] for piece in model.pieces] + [[name, 0.0] for name in top],
            "byte_fallback": bytes_exist,
        },
    }


def added(index: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": name, **flags}


def fingerprint_of_json(layout: dict[str, Any]) -> str:
    """What decides ids: the model, the normaliser, the splitting and the added tokens.

    Left out is what does not: how ids are decoded, where EOS is put, truncation and padding, and two ways in which
    versions of the tokenizers library write the same setting.
    """
    splitting = dict(layout.get("pre_tokenizer") or {})
    if splitting.get("type") == "Metaspace":
        prepends = splitting.pop("add_prefix_space", True)  # written before tokenizers 0.15
        splitting = {"split": True, "prepend_scheme": "always" if prepends else "never", **splitting}
    model = {"byte_fallback": False, **layout.get("model", {})}
    return fingerprint_of(
        kind="json",
        model=model,
        normalizer=layout.get("normalizer"),
        pre_tokenizer=splitting,
        added_tokens=sorted(layout.get("added_tokens") or [], key=lambda token: token["id"]),
    )
