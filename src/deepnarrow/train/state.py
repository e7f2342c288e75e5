"""Where a run stands: everything that changes while it trains and is not a tensor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from deepnarrow.errors import UserError, nearest

HELD_OUT_LOSS = "held_out_loss"


@dataclass(frozen=True)
class Best:
    """The best evaluation so far. Of a loss the lowest is best, of any other metric the highest."""

    step: int
    metric: str
    value: float

    def beats(self, other: "Best | None") -> bool:
        """The first of two equals stays; a loss that is not a number never wins.

        >>> Best(2, "held_out_loss", 3.0).beats(Best(1, "held_out_loss", 3.5))
        True
        """
        if self.value != self.value:
            return False
        if other is None or other.metric != self.metric:
            return True
        return self.value < other.value if self.metric == HELD_OUT_LOSS else self.value > other.value


@dataclass
class State:
    """Saved with every checkpoint, and restored from it."""

    step: int = 0  # finished updates
    tokens: int = 0  # real tokens read, inputs and targets
    seconds: float = 0.0  # spent in updates; evaluating and saving are not counted
    evaluated: int = 0  # the last step whose evaluation is finished
    best: Best | None = None
    loss: float | None = None  # of the last log line
    held_out_loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    # since the last log line
    window_nll: float = 0.0
    window_targets: int = 0
    window_tokens: int = 0
    window_flops: int = 0
    window_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str) -> "State":
        known = [item.name for item in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"{source} has the unknown key {key!r}; {nearest(key, known)}")
        best = values.get("best")
        return cls(**{**values, "best": Best(**best) if best else None})
