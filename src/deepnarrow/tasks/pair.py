"""The one noun between a task and a model: a text to read, and the texts that would be right to write."""

from typing import NamedTuple


class Pair(NamedTuple):
    """One example as text. `accepted` lists every right answer; training uses the first, or each (`Task.every_answer`).

    group    items of one group are judged together by metrics that ask for it, as MultiRC's answers to one question
    negated  the accepted answers are the wrong ones: any other is right. Nothing is learned from such a pair (WSC)

    >>> Pair("copy: a b", ["a b"])
    Pair(inputs='copy: a b', accepted=['a b'])
    """

    inputs: str
    accepted: list[str]
    group: str | None = None
    negated: bool = False

    def __repr__(self) -> str:
        more = "".join(
            f", {name}={value!r}" for name, value in (("group", self.group), ("negated", self.negated)) if value
        )
        return f"Pair(inputs={self.inputs!r}, accepted={self.accepted!r}{more})"
