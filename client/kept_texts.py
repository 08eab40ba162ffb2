"""Small files of a site that hold one text per name, as JSON, replaced as a whole."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.private_files import write_private
from common.errors import StoreError

_TEXTS = TypeAdapter(dict[str, str])


def read_texts(path: Path) -> dict[str, str]:
    """What such a file holds; nothing if there is none.

    Raises:
        StoreError: It can't be read. `code` is "memory".
    """
    try:
        return _TEXTS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"site found a {path.name} that can't be read ({type(error).__name__}), "
            "expected what FedCT wrote; put it back from a backup",
            code="memory",
        ) from error


def write_texts(path: Path, content: Mapping[str, str]) -> None:
    """Write such a file into a folder that is there.

    Raises:
        StoreError: It can't be written; what was there before stays. `code` is
            "memory".
    """
    try:
        write_private(path, json.dumps(content, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise StoreError(
            f"site can't write {path.name} ({error.strerror}), expected a disk with "
            "room; nothing was sent",
            code="memory",
        ) from error
