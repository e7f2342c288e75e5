"""Only lines that end as a sentence does are kept: menus, headings and lists of links do not."""

from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

ENDS = (".", "!", "?", '"')
CUT_SHORT = "..."  # a teaser, "read more ..."


def judge(line: str) -> Verdict:
    """
    >>> judge("It rained."), judge("Home | About"), judge("It rained and then...")
    ('It rained.', <Drop.LINE: 'lines'>, <Drop.LINE: 'lines'>)
    """
    return line if line.endswith(ENDS) and not line.endswith(CUT_SHORT) else Drop.LINE


RULE = Rule("no end mark", "Raffel et al. 2020, section 2.2; the ellipsis from c4_utils.clean_page", "line", judge)
