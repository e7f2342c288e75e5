"""A page of fewer than three sentences is dropped, counted after its lines are cleaned.

The paper's first version says five sentences and lines of three words; its last version and the published code say
three and five. datatrove's filter defaults to the former.
"""

from deepnarrow.text.cleaning import sentences
from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

FEWEST = 3  # sentences


def judge(text: str) -> Verdict:
    return text if sentences.count(text) >= FEWEST else Drop.PAGE


RULE = Rule("few sentences", "Raffel et al. 2020 (JMLR), section 2.2", "page", judge)
