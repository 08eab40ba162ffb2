"""What must hold after every run, whatever went wrong in it.

I1  Each accepted update counts exactly once: a round has one row per site, the shares
    of a closed round are those of the accepted cases, a site's audit log has the order.
I2  The model of a round is a function of the recorded site sets only: it is worked out
    again from them, to the bit (`tests.faults.oracle`).
I3  A finite model is never replaced by one that is not: every checkpoint that is kept,
    and the model that is handed out.
I4  After a resume the final model is that of the uninterrupted run with the same site
    sets: the same comparison, and the model on the disk is the journal's.
I5  The chain of every site's audit log holds.
I6  No patient data at the hub or on the wire: every name, number, UID and file name of
    the sites' patients, in five spellings, is searched for in every file of the hub
    (runs, logs, SuperLink's database) and in all that the sites sent and received,
    decrypted. Not covered here: updates reach the hub signed and in the clear; that no
    plain update does is a matter of secure aggregation.
"""

import base64
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from client.audit import read_audit
from common.parameters import digest_of
from common.plan_file import load_plan
from server.run_files import FINAL_FILE, PLAN_FILE
from tests.faults.federation import Federation, Run
from tests.faults.oracle import Oracle
from tests.faults.patients import needles
from tests.faults.points import WIRE

_BEGIN = 5
_oracles: dict[Path, Oracle] = {}


def check_invariants(run: Run) -> None:
    """Check I1 to I6 of a run that has finished or was stopped."""
    fed, done = run.fed, run.journal()
    plan = load_plan(run.folder / PLAN_FILE)
    assert [entry.record.number for entry in done] == [*range(1, len(done) + 1)]
    for entry in done:
        _counts_once(run, entry.record)
    models = _oracle(fed).models(plan, done)
    for entry, model in zip(done, models, strict=True):
        assert entry.record.model_digest == digest_of(model), (
            f"I2: round {entry.record.number} has another model than its site set"
        )
    for path in (run.folder / "checkpoints").glob("*.safetensors"):
        kept = load_file(path)["model"]
        number = int(path.stem.removeprefix("round-"))
        assert np.isfinite(kept).all(), f"I3: {path.name}"
        assert number == 0 or digest_of(kept) == digest_of(models[number - 1]), "I4"
    if (run.folder / FINAL_FILE).exists():
        best = load_file(run.folder / FINAL_FILE)["model"]
        assert np.isfinite(best).all(), "I3: the model that is handed out"
        assert digest_of(best) in {e.record.model_digest for e in done}, "I4"
    for site in fed.sites.values():
        assert read_audit(site.folder).broken is None, f"I5: {site.name}"
    assert leaks(fed) == [], "I6"


def _counts_once(run: Run, record) -> None:
    rows = record.sites
    assert [row.site for row in rows] == sorted(run.fed.sites), "I1: one row a site"
    counted = [row for row in rows if row.outcome == "accepted"]
    cases = sum(row.cases for row in counted)
    closed = record.outcome == "closed"
    for row in rows:
        share = row.cases / cases if row in counted else 0.0
        assert not closed or abs(row.weight - share) < 1e-12, "I1: shares"
    for row in counted:
        orders = read_audit(run.fed.sites[row.site].folder).lines
        trained = [
            line
            for line in orders
            if (line.kind, line.round, line.code) == ("train", record.number, 0)
            and f"-{run.folder.name}-" in (line.run or "")
        ]
        assert trained, f"I1: {row.site} has no such order in its log"


def leaks(fed: Federation) -> list[str]:
    """Which identity of a patient is found where; reads the wire's record once."""
    texts = set().union(*(needles(fed.folder / "patients" / s) for s in fed.sites))
    found = [
        f"{t} in {p.name}" for p in _outside(fed) for t in held(p.read_bytes(), texts)
    ]
    for site in fed.sites.values():
        (site.control / WIRE).unlink(missing_ok=True)
    return found


def held(content: bytes, texts: Iterable[str]) -> list[str]:
    """Which of the texts the content holds, in any spelling.

    Thousands of texts begin in few ways, so what they begin with is looked for first.
    """
    begun: dict[str, list[str]] = {}
    for text in texts:
        begun.setdefault(text[:_BEGIN], []).append(text)
    return [
        text
        for begin, whole in begun.items()
        for number, spelt in enumerate(spellings(begin))
        if spelt in content
        for text in whole
        if spellings(text)[number] in content
    ]


def spellings(text: str) -> list[bytes]:
    """A text as it may stand in a file: plain, hex, reversed, UTF-16, base64.

    In base64 a text looks different at each of three places, and its ends belong to its
    neighbours too; they are left out.
    """
    plain = text.encode()
    spelt = [plain, plain.hex().encode(), plain[::-1], text.encode("utf-16-le")]
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + plain)
        first, end = -(-8 * shift // 6), 8 * (shift + len(plain)) // 6
        spelt.append(coded[first:end])
    return spelt


def _outside(fed: Federation) -> Iterable[Path]:
    yield from (p for p in sorted(fed.hub.folder.rglob("*")) if p.is_file())
    for site in fed.sites.values():
        if (site.control / WIRE).exists():
            yield site.control / WIRE


def _oracle(fed: Federation) -> Oracle:
    if fed.folder not in _oracles:
        sites = {name: site.folder for name, site in fed.sites.items()}
        _oracles[fed.folder] = Oracle(fed.folder / "oracle", sites)
    return _oracles[fed.folder]
