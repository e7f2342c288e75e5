"""Web archives, written here with warcio."""

import warnings
from io import BytesIO
from pathlib import Path

import pytest

from deepnarrow.errors import UserError
from deepnarrow.text.sources import documents

pytest.importorskip("trafilatura", reason="trafilatura is in the extra `data`")
warcwriter = pytest.importorskip("warcio.warcwriter", reason="warcio is in the extra `data`")

PARAGRAPH = "The river has run past the old mill for ages, and nobody in the village can say why it does so."
PAGE = f"""<html><head><meta charset="iso-8859-1"><title>River</title></head><body>
<nav><a href="/">Home</a> <a href="/news">News</a></nav>
<article><h1>The river</h1><p>{PARAGRAPH}</p><p>{PARAGRAPH} Caf\u00e9s line it.</p></article>
<footer>All rights reserved</footer></body></html>"""


def archive(path: Path) -> Path:
    from warcio.statusandheaders import StatusAndHeaders

    with path.open("wb") as file:
        writer = warcwriter.WARCWriter(file, gzip=path.suffix == ".gz")

        def add(kind: str, body: bytes, media: str) -> None:
            http = None
            if kind == "response":
                http = StatusAndHeaders("200 OK", [("Content-Type", media)], protocol="HTTP/1.0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # the writer leaves a temporary file to the collector
                writer.write_record(
                    writer.create_warc_record(
                        "http://example.com/", kind, payload=BytesIO(body), http_headers=http, warc_content_type=media
                    )
                )

        add("response", PAGE.encode("iso-8859-1"), "Text/HTML; charset=iso-8859-1")
        add("response", b"\x89PNG", "image/png")
        add("response", b"<html></html>", "text/html")
        add("conversion", b"Plain text of a page.\nSecond line.", "text/plain")
    return path


@pytest.mark.parametrize("name", ["crawl.warc.gz", "crawl.warc", "crawl.warc.wet.gz"])
def test_pages(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / name)
    page, plain = documents(path)
    assert (page.source, plain.source) == (f"{path}:1", f"{path}:4")
    assert page.text.count(PARAGRAPH) == 2
    assert "Caf\u00e9s line it." in page.text
    assert "rights reserved" not in page.text
    assert plain.text == "Plain text of a page.\nSecond line."
    assert [found.source for found in documents(tmp_path)] == [page.source, plain.source]  # in a folder too


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "bad.warc").write_text("this is no archive\n" * 5)
    with pytest.raises(UserError, match=r"bad\.warc is not a whole web archive"):
        list(documents(tmp_path / "bad.warc"))
    whole = archive(tmp_path / "whole.warc.gz").read_bytes()
    (tmp_path / "cut.warc.gz").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match=r"cut\.warc\.gz"):
        list(documents(tmp_path / "cut.warc.gz"))
