"""The prepared-case store: each case oriented, resampled and windowed once.

    store/              mode 0700, belongs to one site
    ├── secret          32 random bytes, see `client.secret`
    ├── lock            held while intake writes
    ├── cases/          one file per prepared case, see `client.case_file`
    ├── split.json      which patient is in which part, see `client.split`
    ├── verdicts.json   what intake said, see `client.intake.table`; also as .csv
    └── intake.json      the same for an unchanged source, see `client.intake.seen`

The name of an entry is a keyed hash of all that went into it: decoded voxels, labels,
identity, and the plan's recipe. So an entry is never stale, plans with one recipe share
it, and preparing the same series again is a look at a file name.

An entry is whole or absent: it is written under a temporary name and renamed. What a
power failure may tear is caught (see SMALL_BYTES in `client.case_file`).
"""

import fcntl
import hmac
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from client.case_file import (
    CaseFile,
    as_case,
    open_case_file,
    verify_arrays,
    write_case,
)
from client.private_files import TEMPORARY, make_private_folder, sweep, sync_folder
from client.secret import pseudonym
from common.case import IntakeCase, PreparedCase, Target
from common.errors import StoreError
from common.plan import Plan
from common.preprocess import prepare_case, recipe_digest

MOST_FOREGROUND = 4096
"""Foreground voxels kept per case for balanced patches; see PreparedCase.foreground."""


@dataclass(frozen=True)
class CaseRecord:
    """What is known of an entry without touching its voxels. Local, never sent."""

    key: str
    """Name of the entry, hex."""
    case_id: str
    """HMAC of the series UID, hex."""
    patient_id: str
    """HMAC of the patient id, hex."""
    recipe: str
    """`common.preprocess.recipe_digest` of the plan it was prepared for."""
    shape: tuple[int, int, int]
    """Voxels D, H, W in model space."""
    label: int | None
    """Class of the whole case, where the task has one."""
    size_bytes: int
    """Size of the file."""


class CaseStore:
    """The prepared cases of one site, below one folder."""

    def __init__(self, root: Path, secret: bytes) -> None:
        """Open the store, or make it.

        Args:
            root: The site's store folder; made with mode 0700.
            secret: Of `client.secret.load_secret`; keys all ids.
        """
        self.root = root
        self._secret = secret
        self._cases = root / "cases"
        make_private_folder(root)
        make_private_folder(self._cases)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The right to write, for one process at a time; clears a crash's leftovers.

        Raises:
            StoreError: Another process is writing.
        """
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError(
                    "store is in use by another intake, expected to be alone; "
                    "wait until it has ended"
                ) from error
            sweep(self.root)
            sweep(self._cases)
            yield
            sync_folder(self._cases)
        finally:
            os.close(descriptor)

    def key_of(self, case: IntakeCase, plan: Plan) -> str:
        """Name of the entry that a case has under a plan's recipe."""
        about = [
            recipe_digest(plan),
            case.digest,
            case.series,
            case.patient,
            sorted(case.attributes.items()),
            case.has_hu,
            case.has_spacing,
        ]
        return hmac.digest(self._secret, json.dumps(about).encode(), "sha256").hex()

    def find(self, key: str) -> CaseRecord | None:
        """The record of an entry, or None where it has yet to be prepared.

        Raises:
            StoreError: The entry is there and damaged.
        """
        path = self._path(key)
        return _record(key, open_case_file(path)) if path.exists() else None

    def put(self, case: IntakeCase, target: Target, plan: Plan) -> CaseRecord:
        """Prepare a case and keep it; returns at once where it is kept already.

        Args:
            case: Accepted by intake, its digest set.
            target: What the plan's task wants learnt from it.
            plan: Gives the recipe.

        Raises:
            StoreError: The entry is there and damaged, or can't be written.
        """
        key = self.key_of(case, plan)
        known = self.find(key)
        if known is not None:
            return known
        prepared = prepare_case(
            case,
            target,
            plan,
            case_id=pseudonym(self._secret, case.series),
            patient_id=pseudonym(self._secret, case.patient),
        )
        if prepared.mask is not None:
            prepared = replace(prepared, foreground=foreground_voxels(prepared.mask))
        path = self._path(key)
        temporary = path.with_name(f"{key}.{os.getpid()}{TEMPORARY}")
        try:
            write_case(temporary, prepared, {"recipe": recipe_digest(plan)})
            record = _record(key, open_case_file(temporary))
            temporary.rename(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(
                f"store can't write a prepared case ({error.strerror}), expected "
                f"{prepared.image.nbytes >> 20} MB of room; free some or move the store"
            ) from error
        return record

    def open(self, record: CaseRecord) -> PreparedCase:
        """The case; its arrays are memory maps, read as they are touched.

        Raises:
            StoreError: The entry is gone or damaged.
        """
        return as_case(open_case_file(self._path(record.key)))

    def records(self) -> Iterator[CaseRecord]:
        """All entries, in the order of their names."""
        for path in sorted(self._cases.glob("*.case")):
            yield _record(path.stem, open_case_file(path))

    def verify(self, record: CaseRecord) -> None:
        """Read every byte of an entry and compare it with what was written.

        Raises:
            StoreError: The entry is gone or damaged.
        """
        path = self._path(record.key)
        verify_arrays(path, open_case_file(path))

    def discard(self, key: str) -> None:
        """Remove one entry, damaged or not."""
        self._path(key).unlink(missing_ok=True)

    def purge(self, which: Callable[[CaseRecord], bool] = lambda record: True) -> int:
        """Remove entries (all, if not told which) and any that are damaged.

        Args:
            which: Tells an entry to remove, as one of a patient who withdrew.

        Returns:
            How many were removed.
        """
        removed = 0
        for path in self._cases.glob("*.case"):
            try:
                goes = which(_record(path.stem, open_case_file(path)))
            except StoreError:
                goes = True
            if goes:
                path.unlink(missing_ok=True)
                removed += 1
        sync_folder(self._cases)
        return removed

    def _path(self, key: str) -> Path:
        return self._cases / f"{key}.case"


def foreground_voxels(mask: UInt8[np.ndarray, "D H W"]) -> Int32[np.ndarray, "N 3"]:
    """Indices (d, h, w) of foreground voxels, every class with an equal share.

    A small structure beside a large one would hardly be met otherwise. Within a class
    they are evenly spread in memory order, so nothing is random here.
    """
    flat = mask.ravel()
    inside = np.flatnonzero(flat)
    order = np.argsort(flat[inside], kind="stable")
    starts = np.flatnonzero(np.diff(flat[inside][order], prepend=0))
    classes = np.split(inside[order], starts[1:]) if len(starts) else []
    share = MOST_FOREGROUND // max(1, len(classes))
    kept = [
        voxels[np.linspace(0, len(voxels) - 1, min(share, len(voxels))).astype(int)]
        for voxels in classes
    ]
    picked = np.concatenate(kept) if kept else np.empty(0, dtype=np.intp)
    return np.stack(np.unravel_index(picked, mask.shape), axis=1).astype(np.int32)


def _record(key: str, case_file: CaseFile) -> CaseRecord:
    header = case_file.header
    d, h, w = header["grid"]["shape"]
    return CaseRecord(
        key=key,
        case_id=header["case_id"],
        patient_id=header["patient_id"],
        recipe=header["recipe"],
        shape=(d, h, w),
        label=header["label"],
        size_bytes=len(case_file.mapped),
    )
