"""What the gate lets pass of masked numbers, keys and shares: their sizes.

They look like noise, so their values have no range to be checked. Their lengths are
fixed, and the names beside them are those of sites: those in the order, or, where that
has not all of them, those whose keys of the round this site put together.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.exchange import Order
from common.secagg.fixed_point import TAIL


@dataclass(frozen=True)
class MaskedVector:
    """Numbers modulo 2^32 or 2^16, a few more than the order's model has."""


@dataclass(frozen=True)
class Block:
    """Keys, a signature or a share."""

    size: int
    """Bytes."""
    is_optional: bool = False
    """Whether none at all will do as well."""


@dataclass(frozen=True)
class NamedBlocks:
    """Sites' names, each with keys or shares."""

    size: int
    """Bytes of each."""
    known: str | None = None
    """Field of the order that has the names; unset: they are the sites of the round,
    each of them once."""


BlockRule = MaskedVector | Block | NamedBlocks


def wrong_block(
    rule: BlockRule, value: Any, order: Order, grouped: Collection[str] = ()
) -> str | None:
    """What is wrong with a value, in words without it.

    Args:
        rule: What it has to be.
        value: As it would leave.
        order: What is answered.
        grouped: Sites whose keys of the order's round were put together here.
    """
    match rule:
        case MaskedVector():
            return _wrong_masked(value, getattr(order, "model", None))
        case Block(size=size, is_optional=optional):
            empty = optional and value == b""
            return None if empty else _wrong_bytes(value, size)
        case NamedBlocks(size=size, known=field):
            if field is None:
                return _wrong_blocks(value, size, grouped, whole=True)
            return _wrong_blocks(value, size, getattr(order, field, {}))


def _wrong_masked(value: Any, model: np.ndarray | None) -> str | None:
    if not isinstance(value, np.ndarray) or value.dtype not in (np.uint32, np.uint16):
        return "not unsigned numbers of 32 or 16 bits"
    if model is None or value.shape != (model.size + TAIL,):
        return "of another length than the model and its tail"
    return None


def _wrong_blocks(
    value: Any, size: int, names: Collection[str], *, whole: bool = False
) -> str | None:
    if not isinstance(value, Mapping):
        return "not one entry per site"
    for name, block in value.items():
        if type(name) is not str or name not in names:
            return "under a name that is not one of the round's"
        if said := _wrong_bytes(block, size):
            return said
    if whole and value and len(value) != len(names):
        return "not for each site of the round"
    return None


def _wrong_bytes(value: Any, size: int) -> str | None:
    right = type(value) is bytes and len(value) == size
    return None if right else "not bytes, or of another length"
