"""Only lines of at least five words are kept."""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

FEWEST = 5  # words


def judge(line: str) -> Verdict:
    """
    >>> judge("It rained all day long."), judge("It rained all day.")
    ('It rained all day long.', <Drop.LINE: 'lines'>)
    """
    return line if len(line.split(None, FEWEST - 1)) == FEWEST else Drop.LINE


RULE = Rule("short lines", "Raffel et al. 2020, section 2.2", "line", judge)
