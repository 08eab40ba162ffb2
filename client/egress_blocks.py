"""What the gate lets pass of masked numbers, keys and shares: their sizes.

They look like noise, so their values have no range to be checked. Their lengths are
fixed, and the names beside them are those of sites.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from common.secagg.fixed_point import TAIL
from common.secagg.terms import MAX_MEMBERS

_SITE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Looser than `common.joining.SiteName`: the names are those of the order."""


@dataclass(frozen=True)
class MaskedVector:
    """Numbers modulo 2^32 or 2^16, a few more than the order's model has."""


@dataclass(frozen=True)
class Block:
    """So many bytes of keys, signatures or shares."""

    size: int
    is_optional: bool = False


@dataclass(frozen=True)
class NamedBlocks:
    """Sites' names, each with so many bytes of keys or shares."""

    size: int


BlockRule = MaskedVector | Block | NamedBlocks


def wrong_block(rule: BlockRule, value: Any, model: np.ndarray | None) -> str | None:
    """What is wrong with a value, in words without it.

    Args:
        rule: What it has to be.
        value: As it would leave.
        model: The order's model, if it has one.
    """
    match rule:
        case MaskedVector():
            return _wrong_masked(value, model)
        case Block(size=size, is_optional=optional):
            empty = optional and value == b""
            return None if empty else _wrong_bytes(value, size)
        case NamedBlocks(size=size):
            return _wrong_blocks(value, size)


def _wrong_masked(value: Any, model: np.ndarray | None) -> str | None:
    if not isinstance(value, np.ndarray) or value.dtype not in (np.uint32, np.uint16):
        return "not unsigned numbers of 32 or 16 bits"
    if model is None or value.shape != (model.size + TAIL,):
        return "of another length than the model and its tail"
    return None


def _wrong_blocks(value: Any, size: int) -> str | None:
    if not isinstance(value, Mapping) or len(value) > MAX_MEMBERS:
        return "not one entry per site"
    for name, block in value.items():
        if type(name) is not str or not _SITE_NAME.fullmatch(name):
            return "under a name that no site has"
        if said := _wrong_bytes(block, size):
            return said
    return None


def _wrong_bytes(value: Any, size: int) -> str | None:
    right = type(value) is bytes and len(value) == size
    return None if right else "not bytes, or of another length"
