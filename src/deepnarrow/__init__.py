"""DeepNarrow: find, train, measure and serve the T5 that fits your budget."""

__version__ = "0.1.0"
