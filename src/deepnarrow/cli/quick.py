"""Plain arguments of `generate` read without typer, so that an answer is not kept waiting.

Only what is beyond doubt is read here: known options in full, each with a plain value, at most two arguments. Whatever
else there is, a mistake or a wish for help, is left to typer, which knows what to say. That both read the same, and
that no option is missing here, is held by a test.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

VERB = "generate"
ARGUMENTS = ("model", "text")
WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
DECIMAL = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})(e[+-]?[0-9]{1,2})?", re.ASCII)


def whole(text: str) -> int | None:
    """
    >>> whole("12"), whole("1_2"), whole("twelve")
    (12, None, None)
    """
    return int(text) if WHOLE.fullmatch(text) else None


def decimal(text: str) -> float | None:
    """
    >>> decimal("0.8"), decimal(".5"), decimal("1e-3"), decimal("nan")
    (0.8, 0.5, 0.001, None)
    """
    return float(text) if DECIMAL.fullmatch(text) else None


def plain(text: str) -> str:
    return text


Read = Callable[[str], Any]
OPTIONS: dict[str, tuple[str, Read]] = {  # option -> parameter of generating.run, and how its value is read
    "--file": ("file", plain),
    "--beam": ("beam", whole),
    "--length-penalty": ("length_penalty", decimal),
    "--temperature": ("temperature", decimal),
    "--top-k": ("top_k", whole),
    "--top-p": ("top_p", decimal),
    "--seed": ("seed", whole),
    "--max-tokens": ("max_tokens", whole),
    "--num-return": ("num_return", whole),
    "--batch": ("batch", whole),
    "--device": ("device", plain),
    "--dtype": ("dtype", plain),
    "--runtime": ("runtime", plain),
    "--revision": ("revision", plain),
    "--choices": ("choices", plain),
    "--choices-file": ("choices_file", plain),
    "--regex": ("regex", plain),
    "--json-schema": ("json_schema", plain),
    "--draft": ("draft", plain),
}
LISTS: dict[str, str] = {"--prompt": "prompt"}  # may be given several times
FLAGS: dict[str, str] = {"--json": "as_json", "--copy": "copy"}


def generate_arguments(words: Sequence[str]) -> dict[str, Any] | None:
    """What `generating.run` is called with; None where typer should read the words.

    >>> generate_arguments(["generate", "runs/nq", "who wrote hamlet?", "--max-tokens", "9", "--json"])
    {'model': 'runs/nq', 'text': 'who wrote hamlet?', 'max_tokens': 9, 'as_json': True}
    >>> generate_arguments(["generate", "--help"]) is None, generate_arguments(["shapes", "tiny"]) is None
    (True, True)
    """
    if not words or words[0] != VERB:
        return None
    given: dict[str, Any] = {}
    placed: list[str] = []
    left = iter(words[1:])
    for word in left:
        option, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-":
            placed.append(word)
        elif word in FLAGS:
            given[FLAGS[word]] = True
        elif option in OPTIONS or option in LISTS:
            value = value if equals else next(left, "")
            name, read = OPTIONS.get(option) or (LISTS[option], plain)
            found = read(value) if value else None
            if found is None or (name in given and option not in LISTS):
                return None
            given[name] = [*given.get(name, []), found] if option in LISTS else found
        else:
            return None
    if not 1 <= len(placed) <= len(ARGUMENTS):
        return None
    return dict(zip(ARGUMENTS, placed, strict=False)) | given
