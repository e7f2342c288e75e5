"""The head of a model card: YAML between two lines of dashes, as the Hugging Face hub reads it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def front_matter(values: Mapping[str, Any]) -> str:
    """The block with its dashes. Strings are quoted as JSON, which YAML contains; what is None or empty is left out.

    >>> print(front_matter({"tags": ["t5"], "license": None, "model-index": [{"name": "a", "results": []}]}))
    ---
    tags:
    - "t5"
    model-index:
    - name: "a"
    ---
    """
    return "\n".join(["---", *_mapping(values, 0), "---"])


def _mapping(values: Mapping[str, Any], indent: int) -> list[str]:
    lines = []
    for key, value in values.items():
        if value is None or value == [] or value == {}:
            continue
        lines += _entry(f"{' ' * indent}{key}:", value, indent)
    return lines


def _entry(head: str, value: Any, indent: int) -> list[str]:
    if isinstance(value, Mapping):
        return [head, *_mapping(value, indent + 2)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [head, *(line for item in value for line in _item(item, indent))]
    return [f"{head} {json.dumps(value, ensure_ascii=False)}"]


def _item(value: Any, indent: int) -> list[str]:
    """One entry of a list: a dash, and the first line of a mapping beside it."""
    if not isinstance(value, Mapping):
        return [f"{' ' * indent}- {json.dumps(value, ensure_ascii=False)}"]
    first, *rest = _mapping(value, indent + 2)
    return [f"{' ' * indent}- {first.lstrip()}", *rest]
