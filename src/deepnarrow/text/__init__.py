"""From documents to token ids: tokenizers, sources, corpora, objectives, batches. No torch."""

from deepnarrow.text.sources import Document, Memory, documents, rows
from deepnarrow.text.tokenizer import Tokenizer, load, train

__all__ = ["Document", "Memory", "Tokenizer", "documents", "load", "rows", "train"]
