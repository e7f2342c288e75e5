"""What an answer must be, from a request's words to the runtime's constraints."""

from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec

from deepnarrow.runtime import constrain
from deepnarrow.runtime.masks import Constraint
from deepnarrow.serve.jobs import Rule
from deepnarrow.text.vocabulary import Tokenizer

KEPT = 64  # rules that are kept as they were made; a state of one is never changed, so many answers may begin there


def rule_maker(tokenizer: Tokenizer | None, vocab: int) -> tuple[Callable[[Rule], Constraint] | None, tuple[str, ...]]:
    """What makes constraints of rules for a model of `vocab` ids, and the kinds it knows; none without a tokenizer."""
    if tokenizer is None:
        return None, ()
    kept: OrderedDict[Rule, Constraint] = OrderedDict()

    def made(rule: Rule) -> Constraint:
        if rule in kept:
            kept.move_to_end(rule)
            return kept[rule]
        found: Constraint
        if isinstance(rule.value, tuple):
            found = constrain.choices(tokenizer, rule.value, vocab)
        elif rule.kind == "regex":
            found = constrain.regex(tokenizer, rule.value, vocab)
        else:
            found = constrain.json_schema(tokenizer, rule.value, vocab)
        kept[rule] = found
        if len(kept) > KEPT:
            kept.popitem(last=False)
        return found

    if find_spec("llguidance") is None:
        return made, ("choices",)
    return made, ("choices", "regex", "json")
