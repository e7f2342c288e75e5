"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from deepnarrow.train.config import Config

OPEN_ENDED = ("inverse_sqrt", "constant")  # the rate at a step does not depend on how many steps follow


def rate(config: Config, step: int) -> float:
    """The learning rate of the update that follows `step` finished ones; the first update has `step` 0.

    inverse_sqrt   T5's: base / sqrt(max(step, warmup)), so it is flat during the warmup, not rising
                   (mesh-TF `learning_rate_schedule_rsqrt`; Raffel et al. 2020, section 3.1.2)
    constant       base; T5's fine-tuning
    cosine         half a cosine from base to `learning_rate_end` (nanoT5, arXiv:2309.02373)
    linear         a straight line from base to `learning_rate_end`

    All but the first rise linearly during the warmup, from `warmup_start * base`.

    >>> t5 = Config(shape="tiny", steps=100, batch=1, input_length=8, schedule="inverse_sqrt", warmup=10_000)
    >>> rate(t5, 0), rate(t5, 9_999), rate(t5, 40_000)
    (0.01, 0.01, 0.005)
    """
    base = config.learning_rate
    if config.schedule == "inverse_sqrt":
        return base / math.sqrt(max(step, config.warmup, 1))
    if step < config.warmup:
        return base * (config.warmup_start + (1 - config.warmup_start) * step / config.warmup)
    if config.schedule == "constant":
        return base
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate_end + (base - config.learning_rate_end) * left
