"""Whether an answer is the one site's answer to the one order.

In a real federation the verifying keys come from the register of enrolled sites. A
rehearsal has no register: there the key that a site shows at the roll call is believed,
and holds for the rest of the run.

Not covered here: what the answer says. Sizes, norms and counts are checked where it is
folded.
"""

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import ContributionError, JoinError
from common.exchange import Answer, Order, Roster
from common.signing import Mark, Seal, asked_of, public_from_text, public_text, verify

Keys = Mapping[str, Ed25519PublicKey]
"""Site to verifying key."""
Note = Callable[[str, Mark], None]
"""Called with a site and how far its audit log is."""


class Verifier:
    """Knows who signs for which site, and which orders were answered."""

    def __init__(
        self, keys: Keys | None = None, note: Note = lambda site, mark: None
    ) -> None:
        """Begin with the register's keys; unset: believe the roll call (rehearsals).

        Args:
            keys: The register's.
            note: Hears, with each answer that counts, how far its site's audit log is.
        """
        self._note = note
        self._registered = keys is not None
        self._keys = dict(keys or {})
        self._answered: set[str] = set()

    def check(self, answer: Answer, seal: Seal, order: Order, site: str) -> None:
        """Check an answer before anything is done with it; a refusal leaves no trace.

        Args:
            answer: As it came.
            seal: What came with it.
            order: What this site was asked.
            site: Who was asked; at the roll call, who answered.

        Raises:
            ContributionError: It does not count; `code` says in a word why, "key",
                "duplicate" or one of `signing.verify`.
        """
        key = self._key_of(site, answer)
        verify(answer, asked_of(order, site), seal, key)
        if order.nonce in self._answered:
            raise ContributionError(
                f"site {site!r} answered one order twice; the first answer counts",
                code="duplicate",
            )
        if seal.mark is not None:
            self._note(site, seal.mark)
        self._answered.add(order.nonce)
        self._keys.setdefault(site, key)

    def _key_of(self, site: str, answer: Answer) -> Ed25519PublicKey:
        known = self._keys.get(site)
        if known is None and (self._registered or not isinstance(answer, Roster)):
            raise ContributionError(
                f"site {site!r} has no verifying key here, expected an enrolled site; "
                "enrol it (`fedct server enroll`)",
                code="key",
            )
        if not isinstance(answer, Roster):
            assert known is not None
            return known
        if known is not None and answer.key != public_text(known):
            raise ContributionError(
                f"site {site!r} showed another verifying key than the one it is known "
                "by; was its key renewed? then enrol it again",
                code="key",
            )
        try:
            return known or public_from_text(answer.key or "")
        except JoinError as error:
            raise ContributionError(f"site {site!r}: {error}", code="key") from error
