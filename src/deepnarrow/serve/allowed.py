"""What one server allows, all of it bounded from the start."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """
    body            bytes of a request
    input_tokens    of one input, EOS included
    new_tokens      of one answer
    inputs          in one request
    answers         to one input: n, best_of
    beams           width of a beam
    top             likeliest tokens told at each place
    stops           stop texts of one request, each of `stop_length` characters at most
    waiting         jobs that wait for one model before more are refused
    seconds         until a request's deadline; a client may ask for less
    connections     open at once
    header_seconds  for a request's headers to arrive; `body_seconds` for its body
    write_seconds   that a client may leave what was sent to it unread
    drain_seconds   for what is running to end, once the server is told to stop
    """

    body: int = 2**20
    input_tokens: int = 2048
    new_tokens: int = 512
    inputs: int = 64
    answers: int = 8
    beams: int = 8
    top: int = 5
    stops: int = 4
    stop_length: int = 256
    waiting: int = 256
    seconds: float = 60.0
    connections: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    drain_seconds: float = 30.0
