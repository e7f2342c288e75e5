"""Lines with a word above 1,000 characters are dropped: encoded data, not prose."""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

LONGEST = 1000  # characters


def judge(line: str) -> Verdict:
    """A short line is not even split.

    >>> judge("a word"), judge("a " + "w" * 1001)
    ('a word', <Drop.LINE: 'lines'>)
    """
    if len(line) <= LONGEST or all(len(word) <= LONGEST for word in line.split()):
        return line
    return Drop.LINE


RULE = Rule("long words", "tensorflow_datasets c4_utils.clean_page", "line", judge)
