"""What an answer must be, from a request's words to the runtime's constraints."""

from collections.abc import Callable

from deepnarrow.runtime.engine import Engine
from deepnarrow.runtime.masks import Constraint
from deepnarrow.serve.jobs import Rule
from deepnarrow.text.vocabulary import Tokenizer

KEPT = 64  # compiled rules


def rule_maker(
    tokenizer: Tokenizer | None, engine: Engine
) -> tuple[Callable[[Rule], Constraint] | None, tuple[str, ...]]:
    """What makes constraints of rules, and the kinds it knows; none without a tokenizer."""
    return None, ()
