"""Tagging: one tag for each word, as text on both sides, so that a head and a model that writes are scored alike.

    inputs    the words, one space between each two
    accepted  the tags, one space between each two, as many as words

Rows hold `tokens` and `tags`, lists or texts with spaces; tags are BIO or any other words. `tagging` reads your own:

    deepnarrow finetune MODEL --task tagging --data FOLDER --head tag --out RUN
"""

from collections.abc import Iterator
from functools import cache

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Row, Source, Task, add, column
from deepnarrow.tasks.baselines import Baseline
from deepnarrow.tasks.chunks import OUTSIDE, entity_f1, entity_precision, entity_recall, token_accuracy
from deepnarrow.tasks.stdlib import splits
from deepnarrow.text import builtin
from deepnarrow.text.salient import taggers
from deepnarrow.text.salient.sentences import sentences
from deepnarrow.text.salient.spans import to_characters

METRICS = (entity_f1, entity_precision, entity_recall, token_accuracy)
LEAST_WORDS, MOST_WORDS = 4, 40  # of a sentence of `stdlib_names`
APART = "\"'()[]{},.;:!?"  # signs that are words of their own at the ends of a word, as in CoNLL's data


def outside(inputs: list[str], accepted: object) -> list[str]:
    """No word is tagged.

    >>> outside(["Ada wrote it ."], [])
    ['O O O O']
    """
    return [" ".join(OUTSIDE for _ in text.split(" ")) for text in inputs]


NOTHING_TAGGED = Baseline("no tags", lambda inputs, accepted: outside(list(inputs), accepted))


def tagging_pair(row: Row) -> Pair:
    """
    >>> tagging_pair({"tokens": ["Ada", "wrote", "."], "tags": ["B-PER", "O", "O"]})
    Pair(inputs='Ada wrote .', accepted=['B-PER O O'])
    >>> tagging_pair({"words": "Ada wrote .", "ner_tags": "B-PER O O"})
    Pair(inputs='Ada wrote .', accepted=['B-PER O O'])
    """
    words, tags = (listed(row, *names) for names in (("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")))
    if len(words) != len(tags):
        raise UserError(f"{len(words)} words have {len(tags)} tags; there must be one for each")
    return Pair(" ".join(words), [" ".join(tags)])


def listed(row: Row, *names: str) -> list[str]:
    """A list of words out of a column that holds a list, or a text with spaces."""
    value = column(row, *names)
    found = value.split(" ") if isinstance(value, str) else list(value)
    for place, one in enumerate(found):
        if not isinstance(one, str):
            raise UserError(
                f"column {' or '.join(names)} holds {one!r} in place {place}, not a word; write tags by their names"
            )
        if not one or " " in one:
            raise UserError(f"column {' or '.join(names)} holds {one!r} in place {place}; a word has no space in it")
    if not found:
        raise UserError(f"column {' or '.join(names)} is empty")
    return found


@cache
def names_and_dates() -> tuple[tuple[str, Row], ...]:
    """Qualified name and row of each sentence of Python's library that has a name or a date, as rules find them.

    Sentences of nothing but small words are left out: they would be nine tenths, and score themselves.
    """
    found: list[tuple[str, Row]] = []
    seen: set[str] = set()
    for prose, name in builtin.documents():
        for begin, end in sentences(prose):
            sentence = " ".join(prose[begin:end].split())
            row = tagged(sentence)
            if LEAST_WORDS <= len(row["tokens"]) <= MOST_WORDS and set(row["tags"]) != {OUTSIDE}:
                key = sentence.lower()
                if key not in seen:
                    seen.add(key)
                    found.append((name, row))
    return tuple(found)


def tagged(sentence: str) -> Row:
    """A sentence's words, and the BIO tags of what the built-in salient tagger finds in it: NAME or DATE.

    Its kinds of names are guesses, so they are not asked for.

    >>> tagged("Zola (1840) died in Paris.")
    {'tokens': ['Zola', '(', '1840', ')', 'died', 'in', 'Paris', '.'], 'tags': ['B-NAME', 'O', 'B-DATE', 'O', 'O', \
'O', 'B-NAME', 'O']}
    """
    spans = sorted(to_characters(sentence, taggers.builtin(sentence)))
    words, tags = [], []
    before = None
    for start, end in words_in(sentence):
        inside = next((span for span in spans if span[0] < end and start < span[1]), None)
        kind = "" if inside is None else "DATE" if inside[2] == "DATE" else "NAME"
        words.append(sentence[start:end])
        tags.append(f"{'I' if inside == before else 'B'}-{kind}" if inside else OUTSIDE)
        before = inside
    return {"tokens": words, "tags": tags}


def words_in(sentence: str) -> list[tuple[int, int]]:
    """First and last place of each word, signs at its ends apart; a full stop stays in "e.g." but ends a sentence.

    >>> text = 'He said: "no" (e.g. twice).'
    >>> [text[start:end] for start, end in words_in(text)]
    ['He', 'said', ':', '"', 'no', '"', '(', 'e.g.', 'twice', ')', '.']
    """
    found: list[tuple[int, int]] = []
    place = 0
    for word in sentence.split(" "):
        start, end = place, place + len(word)
        place = end + 1
        before, behind = [], []
        while start < end and sentence[start] in APART:
            before.append((start, start + 1))
            start += 1
        while end > start and sentence[end - 1] in APART and not short_form(sentence[start:end], end == len(sentence)):
            behind.append((end - 1, end))
            end -= 1
        found += [*before, *([(start, end)] if start < end else []), *reversed(behind)]
    return found


def short_form(word: str, last: bool) -> bool:
    """Whether the full stop belongs to the word: "e.g.", "U.S.", but nothing at a sentence's end."""
    return word.endswith(".") and "." in word[:-1] and word[-2].isalpha() and not last


def own(split: str) -> Source:
    def rows() -> Iterator[Row]:
        raise UserError("the task tagging has no data of its own; give it rows of tokens and tags with --data")

    return Source("your own file", rows, lambda: "your own file")


add(
    Task(
        name="tagging",
        version=1,
        about="A tag for each word, from your own rows of tokens and tags (--data)",
        sources={split: own(split) for split in ("train", "validation", "test")},
        to_pair=tagging_pair,
        metrics=METRICS,
        baseline=NOTHING_TAGGED,
        input_tokens=256,
        target_tokens=256,
    )
)

add(
    Task(
        name="stdlib_names",
        version=1,
        about="Names and dates in sentences of Python's library, as the built-in salient tagger marks them",
        sources=splits(lambda: iter(names_and_dates())),
        to_pair=tagging_pair,
        metrics=METRICS,
        baseline=NOTHING_TAGGED,
        input_tokens=128,
        target_tokens=128,
    )
)
