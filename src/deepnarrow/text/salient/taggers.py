"""Taggers by name: what finds the spans of a text.

    builtin                the rules of names.py and dates.py; needs nothing else
    dates                  the dates alone
    spacy:PIPELINE         a spaCy pipeline by name or folder; the entities that are names or dates, less numbers
    transformers:MODEL     a token-classification model by folder or name, with the dates of dates.py beside it: REALM
                           had a CoNLL-2003 tagger and a regular expression for dates (arXiv:2002.08909, section 3.4)

spaCy and transformers are imported when such a tagger is loaded, not before.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

from deepnarrow.errors import UserError, nearest
from deepnarrow.text.salient.dates import dates
from deepnarrow.text.salient.names import names
from deepnarrow.text.salient.sentences import sentences
from deepnarrow.text.salient.spans import Span, Tagger, annotate, from_characters

# spaCy's English pipelines also mark these (OntoNotes), which are neither names nor dates.
NUMBERS = frozenset({"CARDINAL", "ORDINAL", "PERCENT", "QUANTITY", "MONEY", "TIME"})


def load(name: str) -> Tagger:
    """The tagger of a name.

    >>> load("builtin")("Zola died in Paris on 29 September 1902.")
    [Span(start=0, end=4, kind='PER'), Span(start=13, end=18, kind='LOC'), Span(start=22, end=39, kind='DATE')]
    """
    kind, _, what = name.partition(":")
    if kind in PLAIN and not what:
        return PLAIN[kind]
    if kind in MADE and what:
        return MADE[kind](what)
    raise UserError(f"no such tagger: {name!r}; {nearest(name, [*PLAIN, 'spacy:PIPELINE', 'transformers:MODEL'])}")


def builtin(text: str) -> list[Span]:
    """Dates by grammar and names by rules, dates first where they overlap."""
    days = dates(text)
    found = [(start, end, "DATE") for start, end in days]
    if not days:
        return from_characters(text, names(text))
    # With its dates struck out a text has no "March" or "AD" to take for a name; the length stays.
    parts, place = [], 0
    for start, end in days:
        parts += [text[place:start], "0" * (end - start)]
        place = end
    found += names("".join([*parts, text[place:]]))
    return from_characters(text, sorted(found))


def dates_alone(text: str) -> list[Span]:
    return from_characters(text, [(start, end, "DATE") for start, end in dates(text)])


@cache
def spacy_tagger(pipeline: str) -> Tagger:
    try:
        import spacy
    except ImportError:
        raise UserError(
            f"the tagger spacy:{pipeline} needs spaCy: pip install spacy, or use the tagger builtin"
        ) from None
    try:
        engine = spacy.load(pipeline)
    except OSError:
        raise UserError(
            f"spaCy has no pipeline {pipeline!r}: python -m spacy download {pipeline}, or give a pipeline's folder"
        ) from None
    except ValueError as error:  # a folder written by another version, or for parts that are not installed
        raise UserError(f"spaCy cannot open the pipeline {pipeline!r}: {str(error).splitlines()[0]}") from None
    if not {"ner", "entity_ruler", "beam_ner", "span_ruler"} & set(engine.pipe_names):
        raise UserError(
            f"the spaCy pipeline {pipeline!r} marks no entities (it has {', '.join(engine.pipe_names) or 'no parts'}); "
            "use one with the part ner or entity_ruler"
        )

    def tag(text: str) -> list[Span]:
        found = [
            (begin + entity.start_char, begin + entity.end_char, entity.label_)
            for begin, end in stretches(text, engine.max_length)
            for entity in engine(text[begin:end]).ents
            if entity.label_ not in NUMBERS
        ]
        return from_characters(text, found)

    return tag


@cache
def transformers_tagger(model: str) -> Tagger:
    try:
        from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, pipeline
    except ImportError:
        raise UserError(
            f"the tagger transformers:{model} needs transformers: pip install transformers, or use the tagger builtin"
        ) from None
    try:
        config = AutoConfig.from_pretrained(model)
        network = AutoModelForTokenClassification.from_pretrained(model)
        reader = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"transformers cannot open a token-classification model at {model!r} ({str(error).splitlines()[0]}); "
            "give its folder, or the name of one on the hub"
        ) from None
    if not any("TokenClassification" in name for name in config.architectures or []):
        raise UserError(
            f"{model!r} is no token-classification model (it holds {', '.join(config.architectures or ['nothing'])}), "
            "so its tags would be random; give one that was trained to tag names, such as on CoNLL-2003"
        )
    if not reader.is_fast:
        raise UserError(
            f"the tokenizer of {model!r} does not say where its pieces stand; give a model with a tokenizer.json"
        )
    engine: Any = pipeline("token-classification", model=network, tokenizer=reader, aggregation_strategy="simple")
    room = (
        min(reader.model_max_length, getattr(config, "max_position_embeddings", 512))
        - reader.num_special_tokens_to_add()
    )

    def tag(text: str) -> list[Span]:
        places = [piece for place in sentences(text) for piece in pieces_of(text, place, reader, room)]
        found: list[tuple[int, int, str]] = [
            (begin + entity["start"], begin + entity["end"], entity["entity_group"])
            for (begin, _), entities in zip(places, engine([text[begin:end] for begin, end in places]), strict=True)
            for entity in entities
        ]
        names_found = from_characters(text, [trimmed(text, start, end, kind) for start, end, kind in found])
        return annotate(text, [dates_alone, lambda _: names_found])

    return tag


def stretches(text: str, longest: int) -> list[tuple[int, int]]:
    """A text's sentences gathered into stretches of at most `longest` characters, so that a pipeline takes them.

    A sentence that is longer itself is cut.

    >>> stretches("One. Two. Three.", 10)
    [(0, 9), (10, 16)]
    """
    if len(text) <= longest:
        return [(0, len(text))]
    gathered: list[tuple[int, int]] = []
    for start, end in sentences(text):
        if gathered and end - gathered[-1][0] <= longest:
            gathered[-1] = (gathered[-1][0], end)
        else:
            gathered += [(place, min(place + longest, end)) for place in range(start, end, longest)]
    return gathered


def pieces_of(text: str, place: tuple[int, int], reader: Any, room: int) -> list[tuple[int, int]]:
    """A sentence whole, or cut so that no piece has more than `room` tokens: the network knows no further place."""
    start, end = place
    offsets = reader(text[start:end], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= room:
        return [place]
    borders = [start, *(start + offsets[index][0] for index in range(room, len(offsets), room)), end]
    return [(left, right) for left, right in pairwise(borders) if left < right]


def trimmed(text: str, start: int, end: int, kind: str) -> tuple[int, int, str]:
    """A span without the white space that some tokenizers count to the word behind it.

    >>> trimmed("in Rome ", 2, 8, "LOC")
    (3, 7, 'LOC')
    """
    words = text[start:end]
    start += len(words) - len(words.lstrip())
    return start, start + len(words.strip()), kind


PLAIN: dict[str, Tagger] = {"builtin": builtin, "dates": dates_alone}
MADE: dict[str, Callable[[str], Tagger]] = {"spacy": spacy_tagger, "transformers": transformers_tagger}
