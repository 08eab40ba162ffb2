"""Who is believed, and that nothing counts twice: real seals, scripted sites."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, Message, RecordDict

from common.errors import ContributionError, EngineError
from common.exchange import Hello, Roster, TrainOrder, Update
from common.signing import asked_of, public_text, seal
from common.wire import from_record
from server.asking import Line, ask, roll_call
from server.federation import open_federation
from server.folding import fold_round
from server.past import Past
from server.presence import Presence
from server.server_step import first_state
from server.verifying import Keys, Verifier
from tests.plans import plan
from tests.server.scripted import ScriptedGrid, arm_of, honest, signing_key

CASES = {"east": 10, "north": 30, "west": 20}
KEYS = {site: signing_key(site).public_key() for site in CASES}
HELLO = Hello("run", "plan", "text", "layout")
ORDER = TrainOrder("run", "plan", 1, 0, np.ones(3, np.float32), "model")


def update_of(order: TrainOrder, site: str = "north"):
    answer = honest(site, CASES[site], order)
    return answer, seal(answer, asked_of(order, site), signing_key(site))


def refused(verifier: Verifier, *arguments: object) -> str | None:
    with pytest.raises(ContributionError) as caught:
        verifier.check(*arguments)
    return caught.value.code


def test_an_answer_counts_once():
    verifier = Verifier(KEYS)
    answer, sealed = update_of(ORDER)
    verifier.check(answer, sealed, ORDER, "north")
    assert refused(verifier, answer, sealed, ORDER, "north") == "duplicate"


def test_a_refused_answer_does_not_use_the_order_up():
    verifier = Verifier(KEYS)
    answer, sealed = update_of(ORDER)
    forged = replace(answer, cases=31)
    assert refused(verifier, forged, sealed, ORDER, "north") == "signature"
    verifier.check(answer, sealed, ORDER, "north")


def test_an_answer_to_an_earlier_try_of_the_same_round_is_a_replay():
    verifier = Verifier(KEYS)
    answer, sealed = update_of(ORDER)
    again = replace(ORDER, nonce="ab" * 16)
    assert refused(verifier, answer, sealed, again, "north") == "nonce"


def test_an_answer_to_an_earlier_round_with_its_number_altered_is_refused():
    verifier = Verifier(KEYS)
    answer, sealed = update_of(ORDER)
    later = replace(ORDER, round=2)
    moved = replace(answer, round=2)
    assert refused(verifier, moved, sealed, later, "north") == "signature"


def test_a_site_that_is_not_in_the_register_is_refused_at_the_roll_call():
    known = {site: key for site, key in KEYS.items() if site != "west"}
    with pytest.raises(EngineError, match="'west' has no verifying key here"):
        roll_call(line_to(ScriptedGrid(CASES), known), HELLO, 1.0)


def test_a_site_with_another_key_than_the_register_s_is_refused_at_the_roll_call():
    swapped = {**KEYS, "west": KEYS["east"]}
    with pytest.raises(EngineError, match="'west' showed another verifying key"):
        roll_call(line_to(ScriptedGrid(CASES), swapped), HELLO, 1.0)


def test_a_rehearsal_believes_the_key_of_the_roll_call_and_no_other_afterwards():
    verifier = Verifier()
    roster = Roster("north", 1, 1, 1, 1, 1, public_text(KEYS["north"]))
    sealed = seal(roster, asked_of(HELLO, "north"), signing_key("north"))
    verifier.check(roster, sealed, HELLO, "north")
    later = replace(HELLO, nonce="ab" * 16)
    other = replace(roster, key=public_text(KEYS["west"]))
    forged = seal(other, asked_of(later, "north"), signing_key("west"))
    assert refused(verifier, other, forged, later, "north") == "key"
    answer = honest("north", 30, ORDER)
    stranger = seal(answer, asked_of(ORDER, "north"), signing_key("west"))
    assert refused(verifier, answer, stranger, ORDER, "north") == "key"


def test_a_key_that_is_shown_but_not_held_is_refused():
    for shown in (public_text(KEYS["north"]), "", None):
        roster = Roster("north", 1, 1, 1, 1, 1, shown)
        sealed = seal(roster, asked_of(HELLO, "north"), signing_key("west"))
        assert refused(Verifier(), roster, sealed, HELLO, "north") == "key"


def test_who_missed_the_roll_call_is_not_believed_in_a_rehearsal():
    answer, sealed = update_of(ORDER)
    assert refused(Verifier(), answer, sealed, ORDER, "north") == "key"


def line_to(grid: ScriptedGrid, keys: Keys | None = None) -> Line:
    return Line(grid, Verifier(keys), Presence(grid))


class Meddler(ScriptedGrid):
    """The network between sites and server, which alters what it likes."""

    def __init__(self, meddle: Callable[[Message, list[Message]], Message]) -> None:
        super().__init__(CASES)
        self.meddle, self.seen = meddle, []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message in super().pull_messages(message_ids):
            self.seen.append(message)
            yield self.meddle(message, self.seen)


def of_site(message: Message) -> tuple[str, int]:
    facts = message.content["facts"]
    return facts["site"], facts.get("round", 0)


def earlier(message: Message, seen: list[Message]) -> Message:
    """West's answer of round 2 is swapped for the one of round 1."""
    if of_site(message) != ("west", 2):
        return message
    return next(m for m in seen if of_site(m) == ("west", 1))


def neighbour(message: Message, seen: list[Message]) -> Message:
    """West's answer of round 2 is swapped for north's."""
    if of_site(message) != ("west", 2):
        return message
    return next(m for m in seen if of_site(m) == ("north", 2))


def altered(message: Message, seen: list[Message]) -> Message:
    """One bit of west's update of round 2 is flipped."""
    if of_site(message) == ("west", 2):
        array = message.content["vectors"]["delta"]
        data = bytearray(array.data)
        data[5] ^= 1
        message.content["vectors"]["delta"] = Array(
            array.dtype, array.shape, array.stype, bytes(data)
        )
    return message


def unsealed(message: Message, seen: list[Message]) -> Message:
    if of_site(message) == ("west", 2):
        content = {k: v for k, v in message.content.items() if k != "seal"}
        message.content = RecordDict(content)
    return message


@pytest.mark.parametrize(
    ("meddle", "code"),
    [
        (earlier, "round"),
        (neighbour, "key"),
        (altered, "signature"),
        (unsealed, "seal"),
    ],
)
def test_what_was_meddled_with_on_the_way_is_refused_and_the_others_count(
    tmp_path, meddle, code, caplog
):
    the_plan = plan()
    grid = Meddler(meddle)
    arm = arm_of(the_plan, tmp_path, CASES)
    federation = open_federation(grid, arm)
    state = first_state(np.zeros(50, np.float32), the_plan.federation)
    outcomes = {}
    for number in (1, 2):
        past = Past(dict.fromkeys(CASES, number - 1))
        folded = fold_round(federation, arm, state, "model", number, past)
        outcomes[number] = {row.site: row.outcome for row in folded.rows}
    assert set(outcomes[1].values()) == {"accepted"}
    assert outcomes[2] == {"east": "accepted", "north": "accepted", "west": "refused"}
    (row,) = [r for r in caplog.records if r.getMessage() == "refused"]
    assert (row.site, row.code) == ("west", code)


def test_every_order_goes_out_with_a_nonce_of_its_own():
    grid = ScriptedGrid(CASES)
    node_of, _ = roll_call(line := line_to(grid), HELLO, 1.0)
    orders = {site: replace(ORDER, nonce=str(n)) for n, site in enumerate(CASES)}
    for reply in ask(line, node_of, orders, Update, 1.0):
        assert reply.outcome == "accepted", reply.reason
    hellos = [
        from_record(m.content, Hello).nonce
        for m in grid._sent.values()
        if m.metadata.message_type == "query"
    ]
    assert len(set(hellos)) == len(CASES)
