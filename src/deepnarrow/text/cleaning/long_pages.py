"""Pages above 190,000 characters are dropped before anything else: they are dumps, not pages."""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

LONGEST = 190_000  # characters


def judge(text: str) -> Verdict:
    return Drop.PAGE if len(text) > LONGEST else text


RULE = Rule("long pages", "tensorflow_datasets c4_utils.is_valid_length", "page", judge)
