"""What crosses between the process that talks to clients and the one that runs a model.

A `Job` goes in, events come back: `Begun`, `Tokens` at every step, and at last `Ended` or `Failed`. Times of deadlines
are those of `time.monotonic`, which all processes of a machine share.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from deepnarrow.runtime.options import AnySearch, Greedy
from deepnarrow.runtime.search import width_of
from deepnarrow.shapes.shape import Shape
from deepnarrow.text.vocabulary import Tokenizer

Why = Literal["deadline", "invalid", "failed"]
Reason = Literal["eos_token", "length", "stop_sequence"]
Ids = tuple[int, ...]


class Rule(NamedTuple):
    """What an answer must be: one of `value` ("choices"), a match of it ("regex"), JSON of its schema ("json")."""

    kind: Literal["choices", "regex", "json"]
    value: str | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One input to be answered, or embedded.

    number   its name; never used twice
    ids      token ids as the encoder reads them, EOS included
    index    the input's place in its request, which seeds its samples
    prompt   the name of a soft prompt
    top      how many of the likeliest tokens are told with each
    tell     whether tokens are told as they come; without, the end alone is
    """

    number: int
    ids: Ids
    index: int = 0
    prompt: str | None = None
    search: AnySearch = field(default_factory=Greedy)
    max_tokens: int = 64
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    rule: Rule | None = None
    top: int = 0
    deadline: float | None = None
    embed: bool = False
    tell: bool = True

    @property
    def scored(self) -> bool:
        """Whether anybody looks at log-probabilities: who is told tokens, and who ranks several answers."""
        return self.tell or not isinstance(self.search, Greedy)

    @property
    def rows(self) -> int:
        """Sequences it grows at once."""
        return 0 if self.embed else width_of(self.search)

    def tokens(self, prompt: int) -> int:
        """Tokens it may come to hold, behind a soft prompt of so many."""
        return prompt + len(self.ids) + self.rows * self.max_tokens


class Token(NamedTuple):
    answer: int  # which of the job's answers
    id: int
    log: float | None  # natural log-probability; None where a search does not know it
    top: tuple[tuple[int, float], ...] = ()  # the likeliest, best first
    reason: Reason | None = None  # why its answer ends with it


class Answer(NamedTuple):
    ids: list[int]  # without what ended it
    score: float  # NaN where nobody was to look at it
    reason: Reason
    tokens: int  # generated, the end included


class Begun(NamedTuple):
    """A job has left the queue."""

    number: int
    at: float
    cached: bool  # its encoded input was still there


class Tokens(NamedTuple):
    """One step's tokens; `last`: the job's end comes right behind."""

    number: int
    tokens: tuple[Token, ...]
    last: bool = False


class Ended(NamedTuple):
    """All answers, best first; or the vector of an input to be embedded.

    `encoded` and `first` are when the encoder and the first token were done.
    """

    number: int
    answers: tuple[Answer, ...]
    encoded: float
    first: float
    at: float
    vector: np.ndarray | None = None


class Failed(NamedTuple):
    number: int
    why: Why
    message: str


Event = Begun | Tokens | Ended | Failed


class Cancel(NamedTuple):
    number: int


class Load(NamedTuple):
    """What a worker holds just now, and what it has done since it began."""

    waiting: int = 0
    rows: int = 0
    tokens: int = 0
    encoded: int = 0  # tokens of inputs
    steps: int = 0
    stepped: float = 0.0  # seconds of all steps
    cache_bytes: int = 0
    cache_hits: int = 0
    cache_misses: int = 0


class News(NamedTuple):
    events: list[Event]
    load: Load


class Broken(NamedTuple):
    """The engine failed, and with it what it held."""

    held: list[int]
    error: str  # its kind


class Ready(NamedTuple):
    """A worker's first word: what it runs."""

    engine: str
    shape: Shape
    tokenizer: Tokenizer | None
    prompts: dict[str, int]  # soft prompts and their lengths
    rules: tuple[str, ...]  # the kinds of rules that work here


class NotReady(NamedTuple):
    """A worker's first and last word: the user's mistake."""

    message: str
