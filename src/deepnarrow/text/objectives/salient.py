"""Salient span masking: hide one name or date of a sentence (REALM, Guu et al. 2020, arXiv:2002.08909, section 3.4;
for T5, Roberts et al. 2020, arXiv:2002.08910, section 2).

    text      Marie Curie moved to Paris in 1891.
    inputs    nem: Marie Curie moved to _X_ in 1891.
    targets   Paris

One example for each span, as T5's code has it (`t5_cbqa/preprocessors.py`, mask_salient_spans); REALM drew one span of
a sentence. `_X_` is plain text and no sentinel. The form "sentinel" hides the span as span corruption does, for a model
that never saw "nem:"; it is ours.

>>> from deepnarrow.text.salient.spans import Span
>>> spans = [Span(0, 11, "PER"), Span(21, 26, "LOC"), Span(30, 34, "DATE")]
>>> for inputs, target in pairs("Marie Curie moved to Paris in 1891.", spans, form="nem"):
...     print(inputs, "->", target)
nem: _X_ moved to Paris in 1891. -> Marie Curie
nem: Marie Curie moved to _X_ in 1891. -> Paris
nem: Marie Curie moved to Paris in _X_. -> 1891
>>> pairs("Marie Curie moved to Paris in 1891.", spans[1:2], form="sentinel")
[('Marie Curie moved to <extra_id_0> in 1891.', '<extra_id_0> Paris')]

What is hidden depends on words, not on tokens, so it is settled when the corpus is built: each document of a salient
corpus is one example, stored as the ids of its inputs, EOS, and the ids of its target. Training only parts them.

>>> example(np.array([7, 8, 9, 1, 5]), None, Sentinels(first=99, count=10, eos=1))
(array([7, 8, 9, 1], dtype=int32), array([5, 1], dtype=int32))
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.errors import UserError, nearest
from deepnarrow.text.objectives import Sentinels
from deepnarrow.text.salient import taggers
from deepnarrow.text.salient.sentences import by_sentence, is_prose
from deepnarrow.text.salient.spans import Span, Tagger, annotate, cut_bytes

if TYPE_CHECKING:
    from deepnarrow.text.tokenizer import Tokenizer

FORMS = {  # form: prefix of the inputs, what stands for the span, prefix of the target
    "nem": ("nem: ", "_X_", ""),
    "sentinel": ("", "<extra_id_0>", "<extra_id_0> "),
}


def pairs(text: str, spans: Iterable[Span], *, form: str) -> list[tuple[str, str]]:
    """(inputs, target) of each span of a text, in the order of the text, sentence by sentence.

    A sentence without spans gives nothing; nor does a span that reaches over a sentence's end. Offsets are bytes.

    >>> pairs("Bj\\u00f6rk sang. It rained.", [Span(0, 6, "PER")], form="nem") == [("nem: _X_ sang.", "Bj\\u00f6rk")]
    True
    """
    check_form(form)
    return [pair for sentence, inside in by_sentence(text, spans) for pair in in_sentence(sentence, inside, form)]


def in_sentence(sentence: str, spans: Iterable[Span], form: str) -> list[tuple[str, str]]:
    before, mask, before_target = FORMS[form]
    data = sentence.encode("utf-8")
    return [
        (
            before + data[: span.start].decode("utf-8") + mask + data[span.end :].decode("utf-8"),
            before_target + cut_bytes(data, span),
        )
        for span in spans
    ]


def documents(text: str, tokenizer: "Tokenizer", tagger: Tagger | str, form: str) -> list[list[int]]:
    """The examples of one text as they are stored: ids of the inputs, EOS, ids of the target.

    `tagger` is a function or the name of one (`salient.taggers.load`). Headings and other lines that do not end as
    sentences do are passed over, and so are sentences that write out the name of a special token, such as `</s>`.

    >>> from deepnarrow.text.tokenizer import load
    >>> tokenizer = load("bytes")
    >>> [ids] = documents("It was painted in 1891.", tokenizer, "builtin", "sentinel")
    >>> tokenizer.decode(ids[: ids.index(1)]), tokenizer.decode(ids[ids.index(1) + 1 :])
    ('It was painted in <extra_id_0>.', '<extra_id_0> 1891')
    """
    check_form(form)
    if form == "sentinel" and not tokenizer.sentinels:
        raise UserError("the form sentinel needs a tokenizer with sentinels; use the form nem, or another tokenizer")
    tag = taggers.load(tagger) if isinstance(tagger, str) else tagger
    found = [
        pair
        for sentence, inside in by_sentence(text, annotate(text, [tag]))
        if inside and is_prose(sentence)
        for pair in in_sentence(sentence, inside, form)
    ]
    if not found:
        return []
    sides = tokenizer.encode_batch([side for pair in found for side in pair])
    special = {tokenizer.pad, tokenizer.eos, *map(tokenizer.sentinel, range(tokenizer.sentinels))}
    expected = [tokenizer.sentinel(0)] if form == "sentinel" else []

    def is_whole(ids: list[int]) -> bool:
        return len(ids) > len(expected) and [index for index in ids if index in special] == expected

    return [
        [*inputs, tokenizer.eos, *target]
        for inputs, target in zip(sides[::2], sides[1::2], strict=True)
        if is_whole(inputs) and is_whole(target)
    ]


def check_form(form: str) -> None:
    if form not in FORMS:
        raise UserError(f"no such form of salient examples: {form!r}; {nearest(form, FORMS)}")


def piece_length(inputs_length: int) -> int | None:
    """Documents are kept whole: each is one example."""
    return None


def example(
    ids: np.ndarray, generator: np.random.Generator | None, sentinels: Sentinels
) -> tuple[np.ndarray, np.ndarray]:
    """One stored document [n] parted at its EOS; both sides end with EOS. Nothing is drawn.

    Raises UserError for a document without EOS, which no salient corpus holds.
    """
    places = np.flatnonzero(ids == sentinels.eos)
    if len(places) == 0:
        raise UserError(
            "a document of this corpus holds no example of salient span masking; "
            "build one with `deepnarrow corpus build --salient nem`"
        )
    border = int(places[0]) + 1
    end = len(ids) - 1 if len(places) > 1 and places[-1] == len(ids) - 1 else len(ids)  # a corpus may end documents too
    target = np.append(ids[border:end], sentinels.eos)
    return ids[:border].astype(np.int32), target.astype(np.int32)


def restore(inputs: np.ndarray, targets: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    """Both sides behind each other, without EOS: all that was stored of the example."""
    return np.concatenate([inputs[:-1], targets[:-1]])


def stored(text: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    """A document as a salient corpus holds it, made of any ids [n], n >= 2; the second half is the target."""
    return np.insert(text, len(text) // 2, sentinels.eos)
