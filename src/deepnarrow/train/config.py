"""Everything that decides a run's weights, in one frozen value: same config, same data, same weights to the bit."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

from deepnarrow.errors import UserError, nearest
from deepnarrow.shapes.shape import parse
from deepnarrow.text import objectives

OPTIMIZERS = ("adafactor", "adamw", "adamw_scale", "muon")
SCHEDULES = ("inverse_sqrt", "constant", "cosine", "linear")
NORMALISERS = ("tokens", "positions")
DTYPES = ("float32", "bfloat16")
BATCHINGS = ("padded", "bucketed", "packed")
ADAPTS = ("full", "lora", "prompt")
PAIRS = "pairs"  # the objective of fine-tuning: the targets are given, nothing is corrupted


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train and how. `to_json` and `from_json` round-trip; an unknown key is refused.

    >>> config = Config(shape="tiny-dl2", steps=100, batch=8, input_length=128)
    >>> Config.from_json(config.to_json()) == config
    True
    >>> Config.from_json(config.to_json() | {"warm_up": 1.0})
    Traceback (most recent call last):
    deepnarrow.errors.UserError: unknown key 'warm_up' in a training config; did you mean warmup or warmup_start?
    """

    # the work
    shape: str
    steps: int  # updates of the weights
    batch: int  # examples in one update, all of its accumulated parts together
    input_length: int  # tokens of one example's input, EOS included
    target_length: int | None = None  # longest target, EOS included; None: as long as the objective makes it
    accumulate: int = 1  # parts a batch is split into: same update, less memory
    seed: int = 0
    # the objective
    objective: str = "span"  # a file of text/objectives, or "pairs"
    density: float | None = None  # share of tokens that are corrupted; None: the objective's own
    mean_span: float | None = None  # tokens; None: the objective's own
    objective_options: str = "{}"  # any other of the objective's options, as JSON: {"style": "drop"}
    mixture: str = "size"  # how often each of several corpora: by "size", "equal", "temperature=2", or rates "0.7,0.3"
    batching: str = "padded"  # examples of unequal length: "padded", "bucketed" by length, or "packed" several to a row
    # what of a model is fine-tuned: all of it, or something small over a frozen one (adapt.py)
    adapt: str = "full"  # "full", "lora" or "prompt"
    lora_rank: int = 8
    lora_alpha: float = 8.0  # what is learned counts alpha / rank times
    lora_dropout: float = 0.0  # of what LoRA reads
    lora_targets: str = "q,v"  # matrices by PEFT's names, or "all"
    prompt_length: int = 100  # vectors
    prompt_init: str = "vocabulary"  # what a prompt starts from: "vocabulary", "labels", "random", "text=WORDS"
    # the loss
    dropout: float = 0.0
    dropout_shared: bool = True  # one draw along the length, as T5 was trained; False: one for each element
    z_loss: float = 1e-4  # weight of (log Z)^2, T5's default (mesh-TF `z_loss`)
    normaliser: str = "tokens"  # divide by real target tokens, or as T5 did by all target "positions"
    # the step
    optimizer: str = "adafactor"
    learning_rate: float = 1.0  # what the schedule multiplies
    schedule: str = "inverse_sqrt"
    warmup: int = 10_000  # steps
    steps_before: int = 0  # done by the checkpoint that is gone on from; `inverse_sqrt` and its ramp count them too
    warmup_start: float = 0.0  # share of the learning rate at step 0; `inverse_sqrt` is flat there and ignores it
    learning_rate_end: float = 0.0  # where `cosine` and `linear` arrive
    ramp_down: float = 0.0  # share of the steps, at the end, over which any schedule falls to 0 (mesh-TF: 0.1)
    weight_decay: float = 0.0  # of matrices only
    clip: float | None = None  # largest norm of the whole gradient
    beta1: float = 0.9  # of the AdamW kinds; Adafactor has T5's constants
    beta2: float = 0.999
    epsilon: float = 1e-6
    momentum: float = 0.95  # of Muon's matrices
    parameter_scale: bool = True  # Adafactor's steps are as large as the parameter; False: as the learning rate alone
    factored_from: int = 128  # Adafactor factors the second moment of matrices at least this long on both sides
    dtype: str = "float32"  # "bfloat16" computes under autocast; weights and optimizer stay float32
    # the book-keeping: none of these changes a weight
    recompute: bool = False  # blocks are computed again in the backward pass: less memory, a third more time
    save_every: int = 1000
    keep: int = 2  # last checkpoints kept, besides the best one
    eval_every: int | None = None  # None: at the end only
    eval_examples: int = 128  # held-out examples behind a held-out loss
    patience: int | None = None  # evaluations without a better one after which the run ends; None: never
    log_every: int = 10

    def __post_init__(self) -> None:
        _check_types(self)
        object.__setattr__(self, "shape", str(parse(self.shape)))
        for name, least, most in LIMITS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name} must be from {least:,} to {most:,}, not {value:,}")
        for name, options in CHOICES.items():
            if getattr(self, name) not in options:
                raise UserError(f"unknown {name} {getattr(self, name)!r}; {nearest(getattr(self, name), options)}")
        known = [PAIRS, *objectives.names()]
        if self.objective not in known:
            raise UserError(f"unknown objective {self.objective!r}; {nearest(self.objective, known)}")
        if self.objective != PAIRS:
            _check_options(self.objective, self.options())
        _check_adapt(self)
        for name in ("density", "mean_span", "learning_rate", "epsilon"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"{name} must be greater than 0, not {getattr(self, name)}")
        for name in ("dropout", "density", "beta1", "beta2", "momentum"):
            if getattr(self, name) == 1:
                raise UserError(f"{name} must be less than 1")
        if self.schedule != "inverse_sqrt" and self.learning_rate > 1:
            raise UserError(
                f"learning_rate {self.learning_rate:g} with schedule {self.schedule!r} would destroy the weights; only "
                "inverse_sqrt divides it by a root of the step, the others take it as it is: try 0.01 or less"
            )
        if self.schedule in ("cosine", "linear") and self.warmup >= self.steps:
            raise UserError(
                f"a warmup of {self.warmup:,} steps leaves nothing of {self.steps:,} steps for the {self.schedule} "
                "schedule; shorten the warmup or train longer"
            )
        if self.patience is not None and self.eval_every is None:
            raise UserError("patience counts evaluations; say how often there is one with eval_every")
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"clip must be greater than 0, or None for no clipping, not {self.clip}")
        if self.batch % self.accumulate:
            raise UserError(
                f"accumulate must divide the batch: {self.batch} examples cannot be split into {self.accumulate} "
                "equal parts"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def options(self) -> dict[str, Any]:
        """The objective's keyword arguments.

        >>> Config(shape="tiny", steps=1, batch=1, input_length=8, density=0.3).options()
        {'density': 0.3}
        """
        chosen = {"density": self.density, "mean_span": self.mean_span}
        return {name: value for name, value in chosen.items() if value is not None} | _read(self.objective_options)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Config":
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise UserError(f"unknown key {key!r} in a training config; {nearest(key, known)}")
        missing = [name for name in ("shape", "steps", "batch", "input_length") if name not in values]
        if missing:
            raise UserError(f"a training config needs {', '.join(missing)}")
        return cls(**values)

    def override(self, values: Mapping[str, Any]) -> "Config":
        """The same config with some values changed; an unknown name is refused as in `from_json`."""
        return Config.from_json(self.to_json() | dict(values))


LIMITS: tuple[tuple[str, float, float], ...] = (  # beyond these a number is a slip of the finger
    ("steps", 1, 10**9),
    ("batch", 1, 2**20),
    ("input_length", 2, 2**17),
    ("target_length", 2, 2**17),
    ("accumulate", 1, 2**20),
    ("seed", 0, 2**63 - 1),
    ("lora_rank", 1, 2**15),
    ("lora_alpha", 0, 10**6),
    ("lora_dropout", 0, 1),
    ("prompt_length", 1, 2**15),
    ("density", 0, 1),
    ("mean_span", 1, 10**4),
    ("dropout", 0, 1),
    ("z_loss", 0, 1),
    ("learning_rate", 0, 10**3),
    ("warmup", 0, 10**9),
    ("steps_before", 0, 10**9),
    ("warmup_start", 0, 1),
    ("learning_rate_end", 0, 10**3),
    ("ramp_down", 0, 1),
    ("weight_decay", 0, 10),
    ("beta1", 0, 1),
    ("beta2", 0, 1),
    ("epsilon", 0, 1),
    ("momentum", 0, 1),
    ("factored_from", 1, 2**31),
    ("save_every", 1, 10**9),
    ("keep", 1, 10**6),
    ("eval_every", 1, 10**9),
    ("eval_examples", 1, 10**9),
    ("patience", 1, 10**9),
    ("log_every", 1, 10**9),
)
CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "normaliser": NORMALISERS,
    "dtype": DTYPES,
    "batching": BATCHINGS,
    "adapt": ADAPTS,
}
BOOK_KEEPING = ("recompute", "save_every", "keep", "eval_every", "eval_examples", "patience", "log_every")


def differences(old: Config, new: Config) -> list[str]:
    """The names of what differs and would change the weights, in the order of definition."""
    names = [field.name for field in fields(Config) if field.name not in BOOK_KEEPING]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def _check_adapt(config: Config) -> None:
    """What belongs to a kind of adapting is not set where another is asked for."""
    if config.adapt != "full" and config.objective != PAIRS:
        raise UserError(f"{config.adapt} adapts a model that is there; pretraining trains all of it")
    for field in fields(Config):
        kind = field.name.partition("_")[0]
        if kind in ("lora", "prompt") and kind != config.adapt and getattr(config, field.name) != field.default:
            raise UserError(
                f"{field.name} means something with adapt {kind!r} only, and here adapt is {config.adapt!r}"
            )


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f'objective_options must be a JSON object such as {{"style": "drop"}}, not {text!r}')
    return found


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """The objective must have the options, and each value must be of its default's kind."""
    objective = objectives.get(name)
    objectives.check_options(objective, options)
    defaults = objectives.options_of(objective)
    for option, value in options.items():
        kinds, wanted = _kind(defaults[option])
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"the option {option!r} of objective {name!r} must be {wanted}, not {value!r}")


def _kind(default: Any) -> tuple[tuple[type, ...], str]:
    if isinstance(default, str):
        return (str,), "a text"
    return ((int, float), "a number") if isinstance(default, int | float) else ((list, tuple), "a list")


def _check_types(config: Config) -> None:
    """Whole numbers stay whole, a JSON `3` is a fine float, and nothing is infinite."""
    for name, hint in get_type_hints(Config).items():
        value = getattr(config, name)
        kinds = get_args(hint) or (hint,)
        if value is None and type(None) in kinds:
            continue
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
            object.__setattr__(config, name, value)
        kind = next(kind for kind in kinds if kind is not type(None))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]
            raise UserError(f"{name} must be {wanted}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be a finite number, not {value}")
