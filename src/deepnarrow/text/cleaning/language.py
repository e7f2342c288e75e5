"""Only pages that langdetect takes for one language with a probability of at least 0.99 are kept."""

from functools import partial

from deepnarrow.errors import UserError
from deepnarrow.text.cleaning.rule import Drop, Rule, Verdict

LEAST = 0.99  # probability


def rule(language: str) -> Rule:
    """The rule for one of langdetect's languages, such as `en`, `de` or `zh-cn`. UserError for another name."""
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY
    except ImportError:
        raise UserError("telling languages apart needs langdetect: pip install 'deepnarrow[data]'") from None
    from pathlib import Path

    known = sorted(path.name for path in Path(PROFILES_DIRECTORY).iterdir() if "." not in path.name)
    if language not in known:
        raise UserError(f"langdetect knows no language {language!r}; it knows {', '.join(known)}")
    return Rule(f"language is not {language}", "Raffel et al. 2020, section 2.2", "page", partial(judge, language))


def judge(language: str, text: str) -> Verdict:
    from langdetect import DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0  # it draws at random; with a seed a page always gets the same answer
    try:
        best = detect_langs(text)[0]
    except (LangDetectException, IndexError):  # nothing but digits and signs
        return Drop.PAGE
    return text if best.lang == language and best.prob >= LEAST else Drop.PAGE
