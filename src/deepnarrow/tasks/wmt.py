"""Translation out of English, as T5 was trained and judged on it: WMT 2014, 2015 and 2016 (arXiv:1910.10683).

The sets are the hub's, which are the official ones; T5 read the same years from TensorFlow Datasets, and for German a
cleaned copy of the same text. Scores are sacrebleu's over the references as they are.
"""

from collections.abc import Callable, Mapping

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Row, Task, add, hub, text
from deepnarrow.tasks.baselines import SAME_TEXT
from deepnarrow.tasks.metrics import bleu, chrf


def german_pair(row: Row) -> Pair | None:
    """
    >>> german_pair({"translation": {"en": "That is good.", "de": "Das ist gut."}})
    Pair(inputs='translate English to German: That is good.', accepted=['Das ist gut.'])
    """
    return translated(row, "German", "de")


def french_pair(row: Row) -> Pair | None:
    """
    >>> french_pair({"en": "Thank you.", "fr": "Merci."})
    Pair(inputs='translate English to French: Thank you.', accepted=['Merci.'])
    """
    return translated(row, "French", "fr")


def romanian_pair(row: Row) -> Pair | None:
    """
    >>> romanian_pair({"en": "Thank you.", "ro": "Multumesc."})
    Pair(inputs='translate English to Romanian: Thank you.', accepted=['Multumesc.'])
    """
    return translated(row, "Romanian", "ro")


def translated(row: Row, language: str, code: str) -> Pair | None:
    """The two texts stand in columns named by their languages' codes, or in a record of these."""
    texts = row.get("translation", row)
    if not isinstance(texts, Mapping):
        raise UserError(f"column translation must hold the texts under en and {code}, not {str(texts)[:60]!r}")
    english, other = (text(dict(texts), name).strip() for name in ("en", code))
    return Pair(f"translate English to {language}: {english}", [other]) if english and other else None


SETS: tuple[tuple[str, str, str, str, Callable[[Row], Pair | None]], ...] = (
    ("wmt14_ende", "wmt/wmt14", "de-en", "German", german_pair),
    ("wmt15_enfr", "wmt/wmt15", "fr-en", "French", french_pair),
    ("wmt16_enro", "wmt/wmt16", "ro-en", "Romanian", romanian_pair),
)

for name, dataset, config, language, pair in SETS:
    add(
        Task(
            name=name,
            version=1,
            about=f"WMT 20{name[3:5]}: English to {language}",
            paper={"14": "ACL:W14-3302", "15": "ACL:W15-3001", "16": "ACL:W16-2301"}[name[3:5]],
            sources={split: hub(dataset, split, config=config) for split in ("train", "validation", "test")},
            to_pair=pair,
            metrics=(bleu, chrf),
            baseline=SAME_TEXT,
            input_tokens=512,
            target_tokens=256,
            beam=4,
        )
    )
