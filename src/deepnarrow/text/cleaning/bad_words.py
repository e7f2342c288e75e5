"""A page that contains a word of a given list is dropped.

C4 took the "List of Dirty, Naughty, Obscene or Otherwise Bad Words" (github.com/LDNOOBW). It is not shipped here: name
a file with one word or phrase a line.
"""

import re
from functools import partial
from pathlib import Path

from deepnarrow.errors import UserError
from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

SOURCE = "Raffel et al. 2020, section 2.2; flanked by non-letters as in c4_utils"
WITHOUT_SPACES = ("ja", "th", "zh")  # a word of these may stand anywhere


def rule(words: tuple[str, ...], language: str = "en") -> Rule:
    choices = "|".join(map(re.escape, sorted({word.lower() for word in words}, key=lambda word: (-len(word), word))))
    apart = language.split("-")[0] not in WITHOUT_SPACES
    pattern = re.compile(rf"(?:\W|^)(?:{choices})(?:\W|$)" if apart else choices)
    return Rule("bad words", SOURCE, "page", partial(judge, pattern))


def judge(pattern: re.Pattern[str], text: str) -> Verdict:
    return Drop.PAGE if pattern.search(text.lower()) else text


def read(path: Path) -> tuple[str, ...]:
    """The words of a list, one a line; UserError where there are none."""
    try:
        words = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except FileNotFoundError:
        raise UserError(f"no such file: {path} (--bad-words takes a list, one word a line)") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise UserError(f"{path} is no list of words in UTF-8, one a line") from None
    if not words:
        raise UserError(f"{path} holds no words; leave --bad-words out to keep every page")
    return words
