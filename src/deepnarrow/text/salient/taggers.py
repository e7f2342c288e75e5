"""Taggers by name: what finds the spans of a text.

    builtin                the rules of names.py and dates.py; needs nothing else
    dates                  the dates alone
    spacy:PIPELINE         a spaCy pipeline by name or folder; the entities that are names or dates, less numbers
    transformers:MODEL     a token-classification model by folder or name, with the dates of dates.py beside it, as REALM
                           had a CoNLL-2003 tagger and a regular expression for dates (arXiv:2002.08909, section 3.4)

spaCy and transformers are imported when such a tagger is loaded, not before.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError, nearest
from deepnarrow.text.salient.dates import dates
from deepnarrow.text.salient.names import names
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
        raise UserError(f"the tagger spacy:{pipeline} needs spaCy: pip install spacy, or use the tagger builtin") from None
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
            (entity.start_char, entity.end_char, entity.label_)
            for stretch, offset in stretches(text, engine.max_length)
            for entity in moved(engine(stretch).ents, offset)
            if entity.label_ not in NUMBERS
        ]
        return from_characters(text, found)

    return tag


MADE: dict[str, Callable[[str], Tagger]] = {}
PLAIN: dict[str, Tagger] = {"builtin": builtin, "dates": dates_alone}
