"""Shapes: what a model is before a weight exists. No torch; every answer is instant.

The catalogue and the counts are imported when something of theirs is first asked for: a program that only runs a model
needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepnarrow.shapes.shape import BASES, Shape, canonical, parse

if TYPE_CHECKING:
    from deepnarrow.shapes.catalog import Entry, entries, find, published, search, shape_of
    from deepnarrow.shapes.counts import (
        DTYPES,
        OPTIMIZERS,
        Cost,
        Parameters,
        Training,
        cost,
        cross_cache_bytes,
        cross_keys_values_flops,
        decode_step_flops,
        encode_flops,
        forward_flops,
        generate_flops,
        parameters,
        self_cache_bytes,
        tensors,
        training_bytes,
        training_step_flops,
        weight_bytes,
    )

__all__ = [
    "BASES",
    "DTYPES",
    "OPTIMIZERS",
    "Cost",
    "Entry",
    "Parameters",
    "Shape",
    "Training",
    "canonical",
    "cost",
    "cross_cache_bytes",
    "cross_keys_values_flops",
    "decode_step_flops",
    "encode_flops",
    "entries",
    "find",
    "forward_flops",
    "generate_flops",
    "parameters",
    "parse",
    "published",
    "search",
    "self_cache_bytes",
    "shape_of",
    "tensors",
    "training_bytes",
    "training_step_flops",
    "weight_bytes",
]

LATE = {
    "catalog": ("Entry", "entries", "find", "published", "search", "shape_of"),
    "counts": (
        "DTYPES",
        "OPTIMIZERS",
        "Cost",
        "Parameters",
        "Training",
        "cost",
        "cross_cache_bytes",
        "cross_keys_values_flops",
        "decode_step_flops",
        "encode_flops",
        "forward_flops",
        "generate_flops",
        "parameters",
        "self_cache_bytes",
        "tensors",
        "training_bytes",
        "training_step_flops",
        "weight_bytes",
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in LATE.items():
        if name in names:
            return getattr(import_module(f"deepnarrow.shapes.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
