"""Web archives: pages of HTML as text (WARC), or the text that Common Crawl drew from them (WET, which C4 began with).

HTML becomes text by trafilatura, which keeps the article and leaves menus and footers out.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError

HTML = ("text/html", "application/xhtml+xml")


def pages(path: Path) -> Iterator[tuple[int, str]]:
    """The number of each record that holds a page, from 1, and its text. Pages without any are passed over."""
    try:
        from trafilatura import extract
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise UserError(f"reading {path} needs warcio and trafilatura: pip install 'deepnarrow[data]'") from None
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # a page without text is no news
    try:
        with path.open("rb") as file:
            for number, record in enumerate(ArchiveIterator(file), start=1):
                text: str | None = None
                if record.rec_type == "conversion":
                    text = record.content_stream().read().decode("utf-8", "replace")
                elif record.rec_type == "response" and media_type(record).startswith(HTML):
                    # Bytes, since a page may name its encoding only inside itself.
                    text = extract(record.content_stream().read(), include_comments=False, include_tables=False)
                while record.raw_stream.read(2**16):
                    pass
                if getattr(record.raw_stream, "limit", 0) > 0:  # the library takes a file cut short for a whole one
                    raise EOFError(f"record {number} is cut short")
                if text and text.strip():
                    yield number, text
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (ArchiveLoadFailed, EOFError, OSError) as error:
        raise UserError(f"{path} is not a whole web archive ({' '.join(str(error).split())})") from None


def media_type(record: Any) -> str:
    """What the server said the page is, in small letters."""
    return (record.http_headers.get_header("Content-Type", "") if record.http_headers else "").strip().lower()
