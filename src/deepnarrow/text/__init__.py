"""From documents to token ids: tokenizers, sources, corpora, objectives, batches. No torch.

Its public names are imported when they are first asked for: reading a text takes none of what making a corpus does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepnarrow.text.sources import Document, Memory, documents, rows
    from deepnarrow.text.tokenizer import Tokenizer, load, train

__all__ = ["Document", "Memory", "Tokenizer", "documents", "load", "rows", "train"]

LATE = {"sources": ("Document", "Memory", "documents", "rows"), "tokenizer": ("Tokenizer", "load", "train")}


def __getattr__(name: str) -> Any:
    for module, names in LATE.items():
        if name in names:
            return getattr(import_module(f"deepnarrow.text.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
