"""A line that mentions JavaScript is dropped: it mostly says that it should be enabled."""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict


def judge(line: str) -> Verdict:
    return Drop.LINE if "javascript" in line.lower() else line


RULE = Rule("javascript", "Raffel et al. 2020, section 2.2", "line", judge)
