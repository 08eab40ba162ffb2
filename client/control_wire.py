"""How the engineer's questions and answers become protobuf messages and back.

Both sides of the socket use this one module. Fields have the same names on both sides,
so protobuf's own JSON mapping does the work, and pydantic checks what comes out.

The socket is always `control.sock` in the site's folder. The kernel takes at most 107
bytes as the address of a socket, and gRPC reads its own meaning into characters like
`%`; hence the folder is opened, and the address goes by its descriptor through
`/proc/self/fd`, however long or odd the folder's name.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from common.errors import ControlError

SOCKET = "control.sock"
PROTOCOL = 2
"""Of `common/control.proto`; raised by every change that an older side misreads."""
EXIT_CODE_KEY = "fedct-exit-code"
"""Trailing metadata of a refusal: the exit code of its error."""

AnyModel = TypeVar("AnyModel", bound=BaseModel)


def fill(message: Any, **values: object) -> Any:
    """Set fields of a protobuf message, those that are None left out; returns it."""
    given = {name: value for name, value in values.items() if value is not None}
    return ParseDict(to_jsonable_python(given, exclude_none=True), message)


def read(message: Any, kind: type[AnyModel]) -> AnyModel:
    """A protobuf message as a model.

    Raises:
        ValidationError: The other side means something else by it.
    """
    plain = MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return kind.model_validate(plain)


@contextmanager
def socket_address(folder: Path) -> Iterator[str]:
    """A short path of the folder's socket; good while the body runs.

    Raises:
        ControlError: The folder can't be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ControlError(
            f"control got a folder that can't be opened ({error.strerror}), expected "
            "the site's folder, as the user who owns it"
        ) from error
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
