"""Messages between a server and its workers: pickles with their length in front, over a pair of connected sockets.

Nobody else holds an end of such a pair, so nothing is ever unpickled that did not come from our own process.
"""

import pickle
import select
import socket
import struct
from typing import Any

LENGTH = struct.Struct("<Q")
CHUNK = 1 << 18


def packed(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data


class Channel:
    """The worker's end: blocking, without threads."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self._held = bytearray()

    def send(self, message: object) -> None:
        self.socket.sendall(packed(message))

    def receive(self, *, wait: float | None = 0.0) -> list[Any]:
        """What has come, waiting up to `wait` seconds for the first message, None: without end.

        Raises `EOFError` once the other end is closed.
        """
        found = self._complete()
        while not found and select.select([self.socket], [], [], wait)[0]:
            data = self.socket.recv(CHUNK)
            if not data:
                raise EOFError
            self._held += data
            found = self._complete()
        return found

    def _complete(self) -> list[Any]:
        found = []
        while len(self._held) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._held)[0]
            if len(self._held) < end:
                break
            found.append(pickle.loads(bytes(self._held[LENGTH.size : end])))
            del self._held[:end]
        return found
