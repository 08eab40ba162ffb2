"""The canary federation: what leaves hospitals whose every text is a canary.

A real federation (`tests.faults.federation`: hub, sites and proxies as processes of
their own, mutual TLS) works on studies out of `tests.attacks.canary_studies`, with
things going wrong that have a canary in their mouth. Then every file of the hub (runs,
journal, report, model, logs, SuperLink's database) and all that the sites sent and
received, decrypted, is searched for each canary in each of `SPELLINGS`.

The functions below that take `(what, order, past)` happen inside a site's process, at
the places of `tests.faults.points`.
"""

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from flwr.app import ConfigRecord, Error, Message

from client import desk
from common.errors import PolicyError
from common.exchange import Judgement
from tests.attacks.canary_studies import (
    DAY,
    DECIMAL,
    MOMENT,
    TIME,
    UID_ROOT,
    WHOLE,
    WORD,
    Nest,
    write_canaries,
)
from tests.faults.federation import Federation, Run, federation
from tests.faults.hosts import until
from tests.faults.points import CONTROL, WIRE

_PREFIX = 7
"""Letters by which canaries are told apart from what else there is."""


# --- looking for canaries -----------------------------------------------------------


def _base64(shift: int) -> Callable[[str], bytes]:
    """As base64 of the text with so many bytes before it; its ends are left out."""

    def spelt(text: str) -> bytes:
        coded = base64.b64encode(b"\0" * shift + text.encode())
        first, end = -(-8 * shift // 6), 8 * (shift + len(text.encode())) // 6
        return coded[first:end]

    return spelt


SPELLINGS: Mapping[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "base64": _base64(0),
    "base64, one byte on": _base64(1),
    "base64, two bytes on": _base64(2),
    "hex": lambda text: text.encode().hex().encode(),
    "HEX": lambda text: text.encode().hex().upper().encode(),
    "reversed": lambda text: text.encode()[::-1],
    "UTF-16 LE": lambda text: text.encode("utf-16-le"),
    "UTF-16 BE": lambda text: text.encode("utf-16-be"),
}
"""How a text may stand in a file, by name."""
KINDS = (WORD, WORD.lower(), UID_ROOT, DECIMAL, WHOLE, TIME, MOMENT, DAY)
"""Beginnings that little else has: where one is not found, no canary of it is."""


def hits(content: bytes, canaries: Iterable[str]) -> set[tuple[str, str]]:
    """Which canaries a content holds, and how they are spelt.

    Tens of thousands of canaries begin in few ways, so that is looked for first, and
    what follows only where it is found.
    """
    begun: dict[str, list[str]] = {}
    for canary in canaries:
        begin = next((k for k in KINDS if canary.startswith(k)), canary[:_PREFIX])
        begun.setdefault(begin, []).append(canary)
    return {
        (canary, name)
        for begin, group in begun.items()
        for name, spelt in SPELLINGS.items()
        if spelt(begin) in content
        for canary in group
        if spelt(canary) in content
    }


def search(paths: Iterable[Path], canaries: set[str]) -> list[str]:
    """Every hit in files, as "canary, spelt so, in that file"."""
    return [
        f"{canary}, {how}, in {path.name}"
        for path in paths
        for canary, how in sorted(hits(path.read_bytes(), canaries))
    ]


def outside(fed: Federation) -> list[Path]:
    """All files that hold what left the hospitals: the hub's, and the wire's record."""
    hub = [path for path in sorted(fed.hub.folder.rglob("*")) if path.is_file()]
    said = [path for path in sorted(fed.hub.control.rglob("*")) if path.is_file()]
    return hub + said + wires(fed)


def wires(fed: Federation) -> list[Path]:
    """What the sites sent and received, decrypted."""
    return [site.control / WIRE for site in fed.sites.values()]


# --- in a site's process --------------------------------------------------------------


def _canary_at_hand() -> str:
    """The name of a patient of the site in whose process this runs."""
    control = Path(os.environ[CONTROL])
    source = control.parents[1] / "patients" / control.name
    path = next(path for path in sorted(source.rglob("*")) if path.suffix == ".dcm")
    return str(pydicom.dcmread(path, stop_before_pixels=True).PatientName)


def stumble(what: Any, order: Any, past: Any) -> None:
    """Fail in an unforeseen way, with a patient's name in the traceback."""
    raise ValueError(_canary_at_hand())


def refuse(what: Any, order: Any, past: Any) -> None:
    """Fail in a foreseen way, with a patient's name in the sentence."""
    raise PolicyError(f"site refused {_canary_at_hand()}", code="schema")


def name_a_sum(answer: Judgement, order: Any, past: Any) -> Judgement:
    """Before the gate: call a sum after a patient."""
    return replace(answer, sums={**answer.sums, _canary_at_hand(): np.ones(1)})


def sign_as_patient(answer: Any, order: Any, past: Any) -> Any:
    """Before the gate: answer under a patient's name."""
    return replace(answer, site=_canary_at_hand())


def leak(messages: list[Message], order: Any, past: Any) -> list[Message]:
    """Behind the gate: put a patient's name into the answer, in every spelling."""
    (answer,) = messages
    canary = _canary_at_hand()
    spelt = {f"leak {n}": way(canary) for n, way in enumerate(SPELLINGS.values())}
    answer.content["facts"] = ConfigRecord({**answer.content["facts"], **spelt})
    return [answer]


def speak(messages: list[Message], order: Any, past: Any) -> list[Message]:
    """Behind the gate: say why in words, as a site did that sent its sentences."""
    (answer,) = messages
    words = f"site refused {_canary_at_hand()}"
    answer.__dict__["_error"] = Error(answer.error.code, words)
    return [answer]


# --- the federation -------------------------------------------------------------------


@dataclass
class Canaries:
    """A federation whose hospitals are full of canaries."""

    fed: Federation
    nest: Nest

    def found(self) -> list[str]:
        """Every hit outside the hospitals."""
        return search(outside(self.fed), self.nest.hatched)

    def canary_of(self, site: str) -> str:
        """The one that the functions above let out at a site."""
        source = self.fed.folder / "patients" / site
        path = next(p for p in sorted(source.rglob("*")) if p.suffix == ".dcm")
        return str(pydicom.dcmread(path, stop_before_pixels=True).PatientName)

    def disturb(self) -> None:
        """Damage a study of the last site, and lay other files beside it."""
        source = self.fed.folder / "patients" / list(self.fed.sites)[-1]
        slices = [p for p in sorted(source.rglob("*")) if p.suffix == ".dcm"]
        whole = slices[-1].read_bytes()
        slices[-1].write_bytes(whole[: len(whole) // 2])
        words = str(self.nest.text("LO", "in a text file")).encode()
        (source / f"{self.nest.name()}.txt").write_bytes(words)
        (source / f"{self.nest.name()}.dcm").write_bytes(b"\0" * 128 + b"DICM" + words)

    def run(
        self, rounds: int, *, kill: bool, wrong: Sequence[int], **changes: object
    ) -> Run:
        """A run in which sites stumble, refuse and lie with canaries about them.

        Args:
            rounds: How many.
            wrong: In which of them the first site stumbles, refuses, and lies.
            kill: Whether a service dies in training, too, and is started again.
            changes: To the plan.
        """
        first, *_, last = self.fed.sites.values()
        here = f"{__name__}:"
        desk.pause(first.folder, str(self.nest.text("LO", "reason of a pause")))
        stumbling, refusing, signing = wrong
        first.at("begin", f"{here}stumble", round=stumbling)
        first.at("begin", f"{here}refuse", round=refusing)
        first.at("made", f"{here}sign_as_patient", round=signing)
        first.at("made", f"{here}name_a_sum", kind="judge")
        if kill:
            last.at("training", "hold", round=1)
        run = self.fed.run(rounds=rounds, min_sites=1, **changes)
        until(lambda: "not in" in self.fed.hub.log("runner"), what="a paused site")
        desk.resume(first.folder)
        if kill:
            last.reached("training", round=1)
            last.kill_service()
            last.go_on()
        run.finished()
        first.go_on()
        return run

    def leaking_run(self) -> Run:
        """A run in which the first site's gate is gone: answers and refusals speak."""
        first = next(iter(self.fed.sites.values()))
        first.at("message", f"{__name__}:leak", round=1)
        first.at("begin", f"{__name__}:refuse", round=2)
        first.at("message", f"{__name__}:speak", round=2)
        run = self.fed.run(rounds=2, min_sites=1)
        run.finished()
        first.go_on()
        return run


@contextmanager
def canary_federation(folder: Path, sites: Iterable[str]) -> Iterator[Canaries]:
    """The federation, started, below a new folder; it ends with the block."""
    nest = Nest(1)
    writer = write_canaries(nest)
    with federation(folder, tuple(sites), write_patients=writer) as fed:
        yield Canaries(fed, nest)
