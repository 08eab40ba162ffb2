"""What can be wrong with a TCP line, and what went through it."""

from dataclasses import dataclass

AT_CONNECT = 0
"""`reset_after`: before a byte was seen."""
IN_HANDSHAKE = 1
"""`reset_after`: on the client's first bytes, which in TLS are its ClientHello."""


@dataclass(frozen=True)
class Faults:
    """What is wrong with the line; by default nothing."""

    delay_up_s: float = 0.0
    """How much later every byte arrives."""
    delay_down_s: float = 0.0
    """The same towards the client."""
    rate_up: float | None = None
    """Bytes a second, all connections together."""
    rate_down: float | None = None
    """The same towards the client."""
    cut_up_after: int | None = None
    """The connection ends when so many bytes went up."""
    cut_down_after: int | None = None
    """The same towards the client."""
    drop_up: bool = False
    """One-way partition: bytes are taken and vanish. A connection that lost bytes stays
    silent, as a stream with a hole does not exist; new ones are whole."""
    drop_down: bool = False
    """The same towards the client."""
    frozen: bool = False
    """Full partition: new connections are refused, the others stand still."""
    toggle_hz: float | None = None
    """The line freezes and thaws so many times a second."""
    reset_after: int | None = None
    """The connection is reset (RST, both ends) on the client's byte of this number,
    which does not arrive; see `AT_CONNECT` and `IN_HANDSHAKE`."""
    replay: bool = False
    """When a connection is over, all that the client said in it is said once more."""
    flip_up_at: int | None = None
    """All bits of the byte at this offset are turned."""
    flip_down_at: int | None = None
    """The same towards the client."""


@dataclass
class Counters:
    """What went through so far."""

    connections: int = 0
    """Connections that clients made."""
    up: int = 0
    """Bytes passed to the server, replays left out."""
    down: int = 0
    """Bytes passed to the client."""
    dropped_up: int = 0
    """Bytes that vanished on the way to the server."""
    dropped_down: int = 0
    """Bytes that vanished on the way to the client."""
    flipped: int = 0
    """Bytes that were altered."""
    cuts: int = 0
    """Connections that were cut."""
    resets: int = 0
    """Connections that the proxy reset."""
    replays: int = 0
    """Connections that were replayed."""


class CutError(Exception):
    """The connection is to end here."""


class ResetError(Exception):
    """The connection is to be reset here."""
