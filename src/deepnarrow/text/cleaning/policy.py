"""A line of boilerplate about policies and cookies is dropped."""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def judge(line: str) -> Verdict:
    lower = line.lower()
    return Drop.LINE if any(phrase in lower for phrase in PHRASES) else line


RULE = Rule("policy and cookies", "Raffel et al. 2020, section 2.2; the phrases from c4_utils", "line", judge)
