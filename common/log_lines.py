"""How hub and site write their logs: a time, a verb, and its numbers, one event a line.

The code says `log.info("reply", extra={"round": 2, "row": row})`. A plain formatter
would drop what stands in `extra`, and with it who was refused and why; here it is
written behind the verb. A frozen record gives its own short values; what is long or
nested (metrics, vectors, lists of rows) stays in the journal.
"""

import json
import logging
from typing import Any

from pydantic import BaseModel

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LONGEST = 300
"""Characters of one value, so that a peer's words can't flood the log."""


class EventFormatter(logging.Formatter):
    """Time, level, text, and the extras as `key=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, without traceback."""
        extras = {k: v for k, v in vars(record).items() if k not in _PLAIN}
        shown = [f"{key}={value}" for key, value in _flat(extras).items()]
        return " ".join([super().formatMessage(record), *shown])


def log_events() -> None:
    """Have this process's log written so, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(EventFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _flat(extras: dict[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in extras.items():
        if isinstance(value, BaseModel):
            flat |= _flat({k: v for k, v in value if v not in (None, "")})
        elif isinstance(value, float):
            flat[key] = f"{value:.4g}"
        elif isinstance(value, int):
            flat[key] = str(value)
        elif isinstance(value, str):
            flat[key] = _word(value)
    return flat


def _word(text: str) -> str:
    """As it is if it is one word; else quoted, on one line."""
    short = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    plain = short.isascii() and short.isprintable() and not set(' "=') & set(short)
    return short if plain and short else json.dumps(short)
