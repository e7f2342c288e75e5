"""A page with a curly bracket is dropped: it holds code. (This is also why T5's vocabulary has no piece for one.)"""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict


def judge(line: str) -> Verdict:
    return Drop.PAGE if "{" in line else line


RULE = Rule("curly bracket", "Raffel et al. 2020, section 2.2", "line", judge)
