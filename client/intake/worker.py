"""The decoder process: one loop over a socket, with its own limits.

Everything that parses bytes from a file runs here, because codecs have had memory bugs
and pydicom has no limits. A process that dies costs its parent one file. Messages in
both directions are JSON, never pickles: a decoder that a hostile file has taken over
must not be able to hand its parent code. Voxels are written to a shared memory file
that the parent owns and that can't be resized.

Imports numpy, pydicom and the codecs only, so that it starts in a fraction of a second.
Not covered here: a sandbox. The process has the rights of its parent and could read
files and open sockets; a site that wants more puts intake into a container.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

from pydicom import config

from client.intake.container import FileProblemError
from client.intake.decode import PlaneTask, decode_plane
from client.intake.header import FileHead, PixelFormat
from client.intake.parse import read_head

Message = dict[str, Any]
MESSAGE_BYTES = 64 << 20
"""Longest message; the head of a 16,384-frame image has about 20 MB."""


def main() -> None:
    """Serve until the parent closes the socket; argv: socket, memory, seconds."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    memory_bytes, item_s = int(sys.argv[2]), float(sys.argv[3])
    warnings.simplefilter("ignore")
    config.settings.reading_validation_mode = config.IGNORE
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    send(channel, {"ready": True})
    while (received := receive(channel)) is not None:
        message, target = received
        # The parent has its own clock; this one ends an orphan stuck in a codec.
        signal.setitimer(signal.ITIMER_REAL, 2 * item_s)
        reply = _answer(message, target)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if target >= 0:
            os.close(target)
        send(channel, reply)


def send(channel: socket.socket, message: Message, descriptor: int = -1) -> None:
    """Send one message, and with it a file descriptor if there is one."""
    body = json.dumps(message, default=str).encode("ascii")
    prefix = struct.pack("<I", len(body))
    if descriptor >= 0:
        socket.send_fds(channel, [prefix], [descriptor])
        channel.sendall(body)
    else:
        channel.sendall(prefix + body)


def receive(channel: socket.socket) -> tuple[Message, int] | None:
    """The next message and its descriptor or -1; None when the other side is gone."""
    prefix, descriptors, _, _ = socket.recv_fds(channel, 4, 1)
    while 0 < len(prefix) < 4:
        prefix += channel.recv(4 - len(prefix))
    if not prefix:
        return None
    (length,) = struct.unpack("<I", prefix)
    body = bytearray()
    while len(body) < length:
        part = channel.recv(min(length - len(body), 1 << 20))
        if not part:
            return None
        body += part
    return json.loads(body), descriptors[0] if descriptors else -1


def _answer(message: Message, target: int) -> Message:
    try:
        if message["job"] == "head":
            return _head_message(read_head(Path(message["path"])))
        plane = dict(message["plane"])
        plane["path"] = Path(plane["path"])
        pixels = dict(plane["pixels"])
        pixels["padding"] = tuple(pixels["padding"]) if pixels["padding"] else None
        plane["pixels"] = PixelFormat(**pixels)
        return vars(decode_plane(PlaneTask(**plane), target))
    except FileProblemError as problem:
        return {"problem": problem.problem}
    except MemoryError:
        return {"problem": "DECODE_LIMIT"}
    except Exception:  # the process boundary: whatever a file provoked is the file's
        return {
            "problem": "UNREADABLE" if message["job"] == "head" else "DECODE_FAILED"
        }


def _head_message(head: FileHead) -> Message:
    """The head as JSON has it; `asdict` would copy deeply, at the cost of parsing."""
    message = dict(vars(head))
    message["planes"] = [
        {**vars(plane), "pixels": plane.pixels and vars(plane.pixels)}
        for plane in head.planes
    ]
    message["label"] = head.label and vars(head.label)
    if head.directory is not None:
        message["directory"] = [vars(entry) for entry in head.directory]
    return message


if __name__ == "__main__":
    main()
