"""A page with "lorem ipsum", the filler of printers, is dropped."""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict


def judge(line: str) -> Verdict:
    return Drop.PAGE if "lorem ipsum" in line.lower() else line


RULE = Rule("lorem ipsum", "Raffel et al. 2020, section 2.2", "line", judge)
