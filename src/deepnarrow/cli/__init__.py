"""The command line: thin verbs. Each verb's module is imported only when that verb is called."""

from deepnarrow.cli.start import main

__all__ = ["main"]
