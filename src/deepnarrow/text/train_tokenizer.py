"""Train a vocabulary: a SentencePiece unigram model (Kudo 2018, arXiv:1804.10959) in T5's layout."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from deepnarrow.errors import UserError
from deepnarrow.files import whole_folder
from deepnarrow.text.sentencepiece_tokenizer import SentencePieceTokenizer
from deepnarrow.text.vocabulary import whole

LINE_BYTES = 4000  # the trainer passes over lines longer than 4192 bytes, so longer ones are cut here
THREADS = 8  # fixed: the sums of the EM steps are added up per thread, so another number gives other last digits
TEXT_BYTES = 300 * 2**20  # read at most: the trainer holds the text and a suffix array of it, several GiB at this size
FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json")


def train(
    texts: Iterable[str],
    *,
    vocab: int,
    sentinels: int = 100,
    out: Path | None = None,
    byte_fallback: bool = False,
    character_coverage: float = 0.9995,
    max_bytes: int = TEXT_BYTES,
) -> SentencePieceTokenizer:
    """Train on `texts` and, where `out` is given, save the result there (spiece.model, tokenizer.json).

    `vocab` counts everything: 4096 with 100 sentinels is 3,996 pieces, of which padding, EOS and unknown are three.
    The result depends on the texts, their order and the options alone, not on the machine. Reading stops after
    `max_bytes` of text, since the trainer holds all of it in memory. `byte_fallback` spends 256 pieces on bytes, so
    that no character is lost; T5's own vocabulary does without. `character_coverage` is the share of the text's
    characters that must have a piece.

    Raises UserError where the corpus is empty, or too small or too varied for the vocabulary.
    """
    if out is not None:
        check_free(out)
    pieces = vocab - sentinels
    fixed = 3 + (256 if byte_fallback else 0)
    if sentinels < 0 or pieces <= fixed:
        raise UserError(
            f"a vocabulary of {vocab} with {sentinels} sentinels leaves {pieces} pieces, and {fixed} are fixed ones; "
            f"ask for more than {sentinels + fixed}"
        )
    lines = Lines(texts, max_bytes)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            character_coverage=character_coverage,
            byte_fallback=byte_fallback,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            eos_piece="</s>",
            unk_piece="<unk>",
            num_threads=THREADS,
            minloglevel=3,  # the trainer prints a page of progress otherwise
        )
    except Exception as error:
        if lines.error:
            raise lines.error from None
        raise UserError(explained(str(error), vocab, sentinels, lines)) from None
    if lines.error:
        raise lines.error
    tokenizer = SentencePieceTokenizer(model.getvalue(), sentinels=sentinels)
    if out is not None:
        with whole_folder(out) as folder:
            tokenizer.save(folder)
    return tokenizer


def check_free(out: Path) -> None:
    """The folder is written whole, in place of an older tokenizer; anything else in it must not be lost."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder to write the tokenizer to")
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in FILES) if out.exists() else []
    if others:
        raise UserError(f"{out} holds other files ({', '.join(others[:4])}); name a new folder for the tokenizer")


class Lines:
    """Lines short enough for the trainer. Keeps the error of a broken source, which the library would garble."""

    def __init__(self, texts: Iterable[str], max_bytes: int) -> None:
        self.texts, self.left, self.count = texts, max_bytes, 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self.texts:
                for line in lines_of(text):
                    self.count += 1
                    self.left -= len(line)
                    yield line
                if self.left <= 0:
                    return
        except Exception as error:  # raised again by train()
            self.error = error


def lines_of(text: str) -> Iterator[str]:
    """A text's lines, without blank ones, the long ones cut at white space where there is any.

    >>> list(lines_of("one\\n\\n two"))
    ['one', 'two']
    """
    for line in whole(text).splitlines():
        rest = line.strip()
        while len(rest.encode("utf-8")) > LINE_BYTES:
            head = rest.encode("utf-8")[:LINE_BYTES].decode("utf-8", "ignore")
            cut = head.rfind(" ") if " " in head else len(head)
            yield rest[:cut]
            rest = rest[cut:].lstrip()
        if rest:
            yield rest


def explained(message: str, vocab: int, sentinels: int, lines: Lines) -> str:
    """SentencePiece's complaint in one sentence that says which vocabulary would do."""
    if not lines.count:
        return "there is no text to train a vocabulary on: every document was empty"
    if found := re.search(r"Vocabulary size too high .*?<=\s*(\d+)", message, re.S):
        largest = int(found[1]) + sentinels
        return (
            f"the corpus is too small for a vocabulary of {vocab}: the largest it can fill is {largest} "
            f"({found[1]} pieces and {sentinels} sentinels); ask for that or give more text"
        )
    if found := re.search(r"smaller than required_chars\D*(\d+) vs (\d+)", message):
        return (
            f"the corpus has too many different characters for a vocabulary of {vocab}: it needs at least "
            f"{int(found[2]) + sentinels}; ask for that or lower the character coverage"
        )
    return f"SentencePiece could not train a vocabulary of {vocab} ids: {' '.join(message.split())}"
