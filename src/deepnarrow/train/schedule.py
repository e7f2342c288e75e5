"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from deepnarrow.train.config import Config

OPEN_ENDED = ("inverse_sqrt", "constant")  # without a ramp, the rate does not depend on how many steps follow


def open_ended(config: Config) -> bool:
    """Whether more steps would leave the steps before them as they were, so that a run may be prolonged."""
    return config.schedule in OPEN_ENDED and not config.ramp_down


def rate(config: Config, step: int) -> float:
    """The learning rate of the update that follows `step` finished ones; the first update has `step` 0.

    inverse_sqrt   T5's: base / sqrt(max(step, warmup)), so it is flat during the warmup, not rising
                   (mesh-TF `truncated_rsqrt`; Raffel et al. 2020, section 3.1.2)
    constant       base; T5's fine-tuning
    cosine         half a cosine from base to `learning_rate_end` (nanoT5, arXiv:2309.02373)
    linear         a straight line from base to `learning_rate_end`

    All but the first rise linearly during the warmup, from `warmup_start * base`. Where `ramp_down` is not 0, the rate
    of each is multiplied by a straight line from 1 to 0 over that share of the steps, the last ones (mesh-TF
    `linear_decay`; its `learning_rate_schedule_noam` is inverse_sqrt with a ramp of 0.1). `steps_before` count as steps
    for inverse_sqrt, and for the length of the ramp.

    >>> t5 = Config(shape="tiny", steps=100, batch=1, input_length=8, schedule="inverse_sqrt", warmup=10_000)
    >>> rate(t5, 0), rate(t5, 9_999), rate(t5, 40_000)
    (0.01, 0.01, 0.005)
    >>> noam = t5.override({"steps": 40_000, "ramp_down": 0.1})
    >>> rate(noam, 36_000) == rate(t5, 36_000), rate(noam, 38_000) == rate(t5, 38_000) / 2, rate(noam, 40_000)
    (True, True, 0.0)
    """
    return _rate(config, step) * ramp(config, step)


def ramp(config: Config, step: int) -> float:
    """What the final ramp leaves of the rate.

    A ramp after `steps_before` is cut off at the start of this run, as mesh-TF's is when training goes on.
    """
    if not config.ramp_down:
        return 1.0
    length = config.ramp_down * (config.steps_before + config.steps)
    return min(1.0, max(0.0, (config.steps - step) / length))


def _rate(config: Config, step: int) -> float:
    base = config.learning_rate
    if config.schedule == "inverse_sqrt":
        return base / math.sqrt(max(step + config.steps_before, config.warmup, 1))
    if step < config.warmup:
        return base * (config.warmup_start + (1 - config.warmup_start) * step / config.warmup)
    if config.schedule == "constant":
        return base
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate_end + (base - config.learning_rate_end) * left
