"""Citation markers of Wikipedia's pages are cut out of a line: `[1]`, `[]`, `[edit]`, `[citation needed]`."""

import re

from deepnarrow.text.cleaning.rule import Rule, Verdict

MARKER = re.compile(r"\[(?:\d*|edit|citation needed)\]")


def judge(line: str) -> Verdict:
    """
    >>> judge("Rome was founded[12] on hills.[citation needed]")
    'Rome was founded on hills.'
    """
    return MARKER.sub("", line) if "[" in line else line


RULE = Rule("citation markers", "Raffel et al. 2020, section 2.2; c4_utils.clean_page", "line", judge)
