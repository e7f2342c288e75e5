"""Names of people, places, organisations and other things, by rules and short word lists; nothing to download.

REALM's names came from a BERT tagger trained on CoNLL-2003 (arXiv:2002.08909, section 3.4), whose kinds are used here:
PER, LOC, ORG and MISC (nationalities, languages, works, events). Where a name starts and ends is what masking needs and
what the rules are made for; the kind is a guess from the name's first and last words, and often wrong.

How it works, sentence by sentence:

1. Runs of capitalised words, also across "of", "de", "van", "the", "and" and the like (RUN).
2. A sentence's first word is doubtful: words of grammar are cut off, and of the others those that usually stand in
   small letters (lexicon.ORDINARY), or do so near by, count only before another capital.
3. A run is broken where a connective joins two names rather than two parts of one ("Battle of Hastings", but "Rome |
   and | Paris", "the French | of | Quebec"), before and behind a nationality or an office.
4. Titles and offices ("Sir", "President") are left out; "General Electric" is no general.

Without capital letters (Arabic, Chinese, Hebrew, Japanese, ...) it finds nothing: use another tagger there.

>>> text = "In Paris, President Jules Grevy opened the University of Lyon and met the French poet Victor Hugo."
>>> [(text[start:end], kind) for start, end, kind in names(text)]  # doctest: +NORMALIZE_WHITESPACE
[('Paris', 'LOC'), ('Jules Grevy', 'PER'), ('University of Lyon', 'ORG'), ('French', 'MISC'), ('Victor Hugo', 'PER')]
"""

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise, takewhile

from deepnarrow.text.salient import lexicon
from deepnarrow.text.salient.sentences import sentences


def capitals() -> str:
    """Every upper-case or title-case letter, as the inside of a character class.

    Those beyond U+FFFF (Deseret, Osage, mathematical letters) are left out: with them `re` searches ten times slower.
    """
    points = [point for point in range(0x10000) if unicodedata.category(chr(point)) in ("Lu", "Lt")]
    starts = [point for before, point in pairwise([-2, *points]) if point != before + 1]
    ends = [point for point, after in pairwise([*points, 0x10001]) if after != point + 1]
    return "".join(f"{chr(a)}-{chr(b)}" if a < b else chr(a) for a, b in zip(starts, ends, strict=True))


# The letters of the Latin, Greek, Cyrillic, Armenian and Georgian alphabets, and the capitals among them
CAPITAL = capitals()
MARK = "\u0300-\u036f"  # accents written as characters of their own
# Behind a capital: letters, also across hyphens ("Aix-en-Provence") and apostrophes ("O'Brien"), and the full stop of
# an initial ("J.", "U.S.") or of a short form, recognised only once it is reached: most words have none.
REST = (
    rf"[\w{MARK}]*(?:(?:['\u2019](?![sS]\b)|[-\u2010\u2011])\w[\w{MARK}]*)*"
    rf"(?:\.(?:(?<=\b[{CAPITAL}]\.)(?:-?[{CAPITAL}](?:\.|(?!\w)))*"
    r"|(?<=\b(?:St|Mt|Ft|Dr|Mr|Ms|Jr|Sr|Lt|Co|No)\.)|(?<=\b(?:Ste|Mrs|Gen|Col|Rev|Gov|Sen|Rep|Adm|Sgt|Inc|Ltd)\.)"
    r"|(?<=\b(?:Prof|Capt|Cmdr|Corp|Bros)\.)|(?<=\bMessrs\.)))?"
)
LINK = (
    r"(?:o(?:f|n)(?: the)?|the|a(?:nd(?: the)?|t|f|v)|in(?: the)?|for(?: the)?|upon"
    r"|d(?:e(?: (?:las?|los)|l|lla|r|n)?|i|a|os?|as|u|es)"
    r"|l(?:as?|es?|os)|el?|van(?: (?:de[rn]?))?|von(?: de[rm])?|zur?|bi?n|ibn|ben|y|t(?:er?|en|o the)|und|et|&)"
)
PREFIXES = "(?:a[lsdnrtz]|ash|el|[dl])[-'\u2019]"  # al-Khwarizmi, d'Orsay
GAP = "[ \u00a0]"
# It starts with a set of characters, so that the engine skips small letters quickly.
RUN = re.compile(
    rf"[{CAPITAL}](?<![\w@#/].){REST}(?:(?:['\u2019]s?)?{GAP}(?:[{CAPITAL}]|{LINK}{GAP}(?:{PREFIXES})?[{CAPITAL}]|{PREFIXES}[{CAPITAL}]){REST})*"
)
PREFIX = re.compile(rf"\b{PREFIXES}$")
TOKEN = re.compile(r"[^ \u00a0]+")
QUOTED = re.compile('["\u201c]([^"\u201c\u201d\\n]{2,80})["\u201d]')
NUMBER = re.compile(r"[ \u00a0]\d{1,3}(?![\w,]|\.\d)")
LINKS = lexicon.words("of the and in on for at upon & to") | lexicon.PARTICLES
NEAR = 20_000  # characters; further away a search costs more than it tells
COMPOUNDING = lexicon.words(
    "anti non pre post self co re multi semi well long short high low mid pro inter intra sub ex so"
)
ROMAN = re.compile(r"(?=[IVX])(?:X{0,3})(?:IX|IV|V?I{0,3})")
SMALL = LINKS | lexicon.words("a an by from with as or nor but vs is") | {"into", "over"}
SHARED = lexicon.words(
    "Commission Administration Agency Department Authority Service Board Bureau Committee Office Act"
)
APOSTROPHES = ("-", "'", "\u2019")
OPENS_INSIDE = '"\u201c('
OPENS = "\"'\u201c\u2018\u00ab([\u00bf\u00a1*- "
INNER_TAILS = lexicon.PLACE_TAILS | lexicon.BODY_TAILS | lexicon.WORK_TAILS
OF_OFFICE = lexicon.words(
    "State Defense Defence Staff Finance Health War Foreign Education Justice Interior Agriculture"
)
ORDINAL = re.compile(r"(?<![\w.])\d{1,3}(?:st|nd|rd|th)[ \u00a0]$")
WEEKDAYS = lexicon.words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
DROPPED = lexicon.NEVER | lexicon.TITLES

Found = tuple[int, int, str]  # first character, character behind the last, kind
Token = tuple[int, int, str]  # first character, character behind the last, the word


def names(text: str) -> list[Found]:
    """Names in order and apart, as (first character, character behind the last, kind)."""
    found: list[Found] = []
    for begin, end in sentences(text):
        first = begin
        while first < end and text[first] in OPENS:
            first += 1
        if text[begin:end].isupper():  # a heading in capitals says nothing about names
            continue
        titles = quoted_titles(text, begin, end)
        found += titles
        for match in RUN.finditer(text, begin, end):
            start = match.start()
            if start == first and match.end() == end:  # "History": a heading or an item of a list, no sentence
                continue
            if titles and any(left < match.end() and start < right for left, right, _ in titles):
                continue
            opening = start == first or text[start - 1] in OPENS_INSIDE or text[start - 2 : start] == ": "
            if text[start - 1 : start] in APOSTROPHES and (prefix := PREFIX.search(text, max(start - 4, begin), start)):
                start = prefix.start()
            found += in_run(text, start, match.end(), opening=opening)
    return sorted(found) if found else found


def quoted_titles(text: str, begin: int, end: int) -> list[Found]:
    """Titles in quotation marks: every word of four letters or more has a capital, and the first has one.

    >>> text = 'He sang "The Man I Love" and said "This is Love indeed".'
    >>> [text[start:end] for start, end, _ in quoted_titles(text, 0, len(text))]
    ['The Man I Love']
    """
    found = []
    for match in QUOTED.finditer(text, begin, end):
        start = match.end(1) - len(match[1].lstrip())
        title = match[1].strip().rstrip(",.;:!?").rstrip()
        words = title.split()
        if len(words) > 1 and all(
            word[0].isupper() or (n and len(word) < 5 and word in SMALL) for n, word in enumerate(words)
        ):
            found.append((start, start + len(title), "MISC"))
    return found


def in_run(text: str, start: int, end: int, *, opening: bool) -> Iterable[Found]:
    """The names in one run of capitalised words; `opening` says that a sentence starts with it."""
    run = text[start:end]
    if " " not in run and "\u00a0" not in run:  # two runs of three are a single word: the quick way
        return single(text, start, end, run, opening=opening)
    tokens = [(start + match.start(), start + match.end(), match[0]) for match in TOKEN.finditer(run)]
    return [name for piece in pieces(text, tokens, opening=opening) for name in finished(text, piece)]


def single(text: str, start: int, end: int, word: str, *, opening: bool) -> list[Found]:
    lower = word.lower()
    if len(word) == 1 or word in DROPPED or lower in lexicon.GRAMMAR:
        return []
    if opening and word not in lexicon.PLACES and word not in lexicon.GIVEN and is_ordinary(text, start, lower):
        return []
    if word in lexicon.NUMBERED and (number := NUMBER.match(text, end)):
        return [(start, number.end(), "MISC")]
    if is_numeral(word) or (len(word) == 2 and word[1] == "."):
        return []
    if word in INNER_TAILS and (number := ORDINAL.search(text, max(start - 6, 0), start)):
        return [(number.start(), end, kind_of(text, start, ["32nd", word]))]
    return [(start, end, kind_of(text, start, [word]))]


def is_ordinary(text: str, start: int, lower: str) -> bool:
    """Whether a sentence's first word has its capital for that alone: it is known, or stands near in small letters."""
    if lower in lexicon.ORDINARY or (lower[-1] == "s" and lower[:-1] in lexicon.ORDINARY):
        return True
    before, hyphen, _ = lower.partition("-")
    if hyphen and text[start + len(before) + 1].islower():  # "Anti-smoking", "Slow-moving"
        return before in COMPOUNDING or before in lexicon.ORDINARY
    begin, end = max(0, start - NEAR), start + NEAR
    return text.find(f" {lower} ", begin, end) >= 0 or text.find(f" {lower},", begin, end) >= 0


def pieces(text: str, tokens: list[Token], *, opening: bool) -> list[list[Token]]:
    """A run cut into names. Titles, offices and words that only open the sentence are gone."""
    # Inside a sentence only a title gives a word of grammar its capital: "The Starry Night", "One Hundred Years ...".
    title_case = not opening and tokens[0][2].lower() in lexicon.GRAMMAR and tokens[0][2] != "I"
    tokens = without_opening(tokens) if opening or tokens[0][2] == "I" else tokens
    done: list[list[Token]] = []
    piece: list[Token] = []
    for index, token in enumerate(tokens):
        word = token[2]
        if word in LINKS:
            if piece:
                piece.append(token)
            continue
        linked: list[Token] = []
        while piece and piece[-1][2] in LINKS:
            linked.insert(0, piece.pop())
        if linked:
            one_name = title_case or joins(piece, linked[0][2], word) or is_shared(piece, linked[0][2], tokens, index)
        else:
            one_name = not piece or not breaks(piece, word, tokens, index)
        if one_name:
            piece += [*linked, token]
        else:
            done.append(piece)
            piece = [token]
    while piece and piece[-1][2] in LINKS:
        piece.pop()
    return [*done, piece] if piece else done


def without_opening(tokens: list[Token]) -> list[Token]:
    """A run without the first words that have a capital only because a sentence or a quotation starts there."""
    index = 0
    while index < len(tokens):
        word = tokens[index][2]
        lower = word.lower()
        following = tokens[index + 1][2] if index + 1 < len(tokens) else ""
        if index and following and word not in LINKS:  # "In The Hague", "The Three Musketeers"
            break
        grammar = lower in lexicon.GRAMMAR and not (word.isupper() and len(word) > 2)
        if word in LINKS or (grammar and not numeral_name(word, following)):
            index += 1
        elif following in LINKS and lower in lexicon.ORDINARY and not owned(tokens[index:]):
            index += 1  # "Members of Congress", "Painters and Rome"
        else:
            break
    return tokens[index:]


def is_numeral(word: str) -> bool:
    """
    >>> [word for word in ("VIII", "IX", "XXIII", "IL", "Iv") if is_numeral(word)]
    ['VIII', 'IX', 'XXIII']
    """
    return word[0] in "IVX" and ROMAN.fullmatch(word) is not None


def numeral_name(word: str, following: str) -> bool:
    """First World War, Second Punic War: an ordinal that belongs to the name behind it."""
    return word in ("First", "Second", "Third") and following not in ("", "The") and following not in LINKS


def owned(tokens: list[Token]) -> bool:
    """Whether a first word owns what "of" brings: "Battle of", against "Members of"."""
    word = tokens[0][2]
    return word in lexicon.OF_HEADS and word not in lexicon.OFFICES and tokens[1][2] in ("of", "&")


def joins(piece: list[Token], link: str, word: str) -> bool:
    """Whether a connective joins the piece before them and the word behind them into one name."""
    first, last = piece[0][2], piece[-1][2]
    if len(piece) > 1 and (first in lexicon.TITLES or is_numeral(last)):
        if is_numeral(last):  # "Henry VIII of England", a person and a place
            return False
        first = piece[1][2]
    if link == "&" or (link in lexicon.PARTICLES and link not in ("e", "y", "et", "und")):
        return last not in lexicon.NATIONS and word not in lexicon.NATIONS
    inside = {token[2] for token in piece}
    if link == "of" and "the" in inside and last in lexicon.EPITHETS:  # "Catherine the Great of Russia"
        return False
    if link == "of":
        return (
            last in lexicon.OF_HEADS or first in lexicon.OF_HEADS or last in INNER_TAILS
        ) and last not in lexicon.NATIONS
    if link == "the":
        known = word in lexicon.NATIONS or word in lexicon.PLACES or word in DROPPED or word in INNER_TAILS
        return word in lexicon.EPITHETS or (len(piece) == 1 and last not in lexicon.PLACES and not known)
    if link == "and":
        of_body = ("of" in inside or "for" in inside) and bool(inside & lexicon.PURPOSE_HEADS)
        return f"{last} and {word}" in lexicon.PAIRS or of_body
    if link == "for" or link == "on" or link == "in":
        return last in lexicon.PURPOSE_HEADS
    if link == "at":
        return "of" in inside and "University" in inside
    if link == "upon":
        return True
    return link in ("y", "e", "et", "und") and last not in lexicon.PLACES and "-" not in last


def is_shared(piece: list[Token], link: str, tokens: list[Token], index: int) -> bool:
    """Whether two common words joined by "and" share the body behind them: "Food and Drug Administration"."""
    if link != "and" or len(piece) != 1 or index + 1 == len(tokens) or tokens[index + 1][2] not in SHARED:
        return False
    return {piece[0][2], tokens[index][2]}.isdisjoint(lexicon.PLACES | lexicon.NATIONS)


def breaks(piece: list[Token], word: str, tokens: list[Token], index: int) -> bool:
    """Whether a new name starts at a word that follows without a connective."""
    last = piece[-1][2]
    if last.endswith(("'s", "\u2019s", "'", "\u2019")):  # "Turing's Enigma" is two names, "Hudson's Bay Company" one
        whole = takewhile(lambda token: token[2] not in LINKS, tokens[index:])
        return not any(token[2] in INNER_TAILS for token in whole)
    following = tokens[index + 1][2] if index + 1 < len(tokens) else ""
    if word in lexicon.TITLES:
        return bool(following) and following not in LINKS and word not in ("General", "Don", "Crown", "Grand", "Chief")
    if last in lexicon.NATIONS and len(piece) == 1:
        # "French Revolution" is one name, "French Victor Hugo" two.
        return word in lexicon.GIVEN or word in lexicon.TITLES
    return False


def finished(text: str, piece: list[Token]) -> list[Found]:
    """A name without title or possessive, with its number, or nothing."""
    whole = piece
    while piece and is_title(piece):
        piece = piece[1:]
    while piece and piece[0][2] in LINKS:
        piece = piece[1:]
    if not piece or (piece is not whole and piece[0][2] in OF_OFFICE):
        return []
    start, end, last = piece[0][0], piece[-1][1], piece[-1][2]
    if last.endswith(("'s", "\u2019s")):
        end -= 2
    elif len(last) == 2 and last[1] == "." and len(piece) > 1:  # names do not end with an initial, sentences do
        end -= 1
    if len(piece) == 1:
        return single(text, start, end, text[start:end], opening=False)
    if last in lexicon.NUMBERED and (number := NUMBER.match(text, end)):
        end = number.end()
    if last in INNER_TAILS and (number := ORDINAL.search(text, max(start - 6, 0), start)):
        start = number.start()
    return [(start, end, kind_of(text, start, [token[2] for token in piece]))]


def is_title(piece: list[Token]) -> bool:
    """Whether the first word is an office or a weekday, and not part of the name: "Queen Anne", but "Queen Street"."""
    first = piece[0][2]
    following = piece[1][2] if len(piece) > 1 else ""
    if first in WEEKDAYS:
        return following != "Night" and following not in INNER_TAILS
    if first not in lexicon.TITLES:
        return False
    if following == "of":
        return True
    return not following or not ({token[2] for token in piece[1:]} & lexicon.AFTER_TITLE)


def kind_of(text: str, start: int, words: list[str]) -> str:
    """A guess from the name's words, and the word before it where they say nothing."""
    words = [word.removesuffix("'s").removesuffix("\u2019s") for word in words]
    first, last = words[0], words[-1]
    if len(words) == 1:
        if first in lexicon.NATIONS:
            return "MISC"
        if first in lexicon.PLACES:
            return "LOC"
        if first in lexicon.GIVEN:
            return "PER"
        if first.isupper() and 2 <= len(first) <= 6:
            return "ORG"
        before = text[max(0, start - 12) : start].split()
        if before and before[-1] in ("in", "near", "from", "at", "to", "In", "Near", "From", "through", "of", "into"):
            return "LOC"
        if before and before[-1] in ("the", "The"):
            return "MISC"
        return "MISC" if first.lower() in lexicon.ORDINARY else "PER"
    if first in lexicon.GIVEN and last not in INNER_TAILS:
        return "PER"
    if first in lexicon.WORK_HEADS and first not in lexicon.BODY_HEADS and first not in ("Council", "Congress"):
        return "MISC"
    if last in lexicon.WORK_TAILS or "Prize" in words or "Award" in words:
        return "MISC"
    if last in lexicon.BODY_TAILS or first in lexicon.BODY_HEADS:
        return "ORG"
    if last in lexicon.PLACE_TAILS or first in lexicon.PLACE_HEADS or (last in lexicon.PLACES and len(words) == 2):
        return "LOC"
    if first in lexicon.GIVEN or "." in first:
        return "PER"
    for tails, kind in ((lexicon.BODY_TAILS, "ORG"), (lexicon.PLACE_TAILS, "LOC")):
        if not tails.isdisjoint(words):
            return kind
    if first == "The" or "of" in words or last.lower() in lexicon.ORDINARY:
        return "MISC"
    return "PER"
