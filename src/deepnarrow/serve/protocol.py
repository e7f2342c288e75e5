"""uvicorn's HTTP protocol with patience that ends: for headers that do not come, for answers that are not read."""

import asyncio
import socket
from typing import Any

from deepnarrow.serve.allowed import Allowed

UNREAD = 1 << 17  # bytes that the system keeps of what a client has not read yet; the kernel may double it


def patient(allowed: Allowed) -> type[asyncio.Protocol]:
    """A protocol class with these limits; in C where `httptools` is there."""
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        base = HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        base = H11Protocol

    class Patient(base):
        _header: asyncio.TimerHandle | None = None
        _reader: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            connection = transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
            self._wait_for_header()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._between():
                self._wait_for_header()
            elif self._header is not None:
                self._header.cancel()
                self._header = None

        def connection_lost(self, error: Exception | None) -> None:
            for timer in (self._header, self._reader):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(error)

        def pause_writing(self) -> None:
            """More lies here unread than is kept for a client: it has some time to read."""
            super().pause_writing()
            if self._reader is None:
                self._reader = self.loop.call_later(allowed.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

        def _between(self) -> bool:
            """Whether no request has come whole with its headers that is not answered yet."""
            return self.cycle is None or self.cycle.response_complete

        def _wait_for_header(self) -> None:
            if self._header is None:
                self._header = self.loop.call_later(allowed.header_seconds, self._give_up)

        def _give_up(self) -> None:
            self._header = None
            if self._between() and not self.transport.is_closing():
                self.transport.close()

    return Patient
