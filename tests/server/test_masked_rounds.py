"""Rounds under masks: the mean is exact, whoever is lost on the way."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

import server.masked_round
from client.draws import secret_rounding
from common.errors import ContributionError, StoreError
from common.exchange import (
    KeysOrder,
    MaskedUpdate,
    OpenOrder,
    SharesOrder,
    TrainOrder,
    Update,
)
from common.parameters import digest_of, to_vector
from common.secagg.fixed_point import decode, encode
from common.secagg.lineage import FRESH, lineage_after
from common.secagg.terms import masked_weight, terms_of
from common.signing import public_text
from server.federation import first_model, open_federation
from server.rounds import run_arm
from tests.plans import plan
from tests.server.masked_grid import MaskedGrid, restarted, silent
from tests.server.scripted import arm_of, honest, signing_key

CASES = {"east": 10, "mid": 25, "north": 30, "south": 5, "west": 20}
PLAN = plan(
    privacy__secure_aggregation="on",
    federation__deadline_s=0.3,
    federation__rejoin_s=0.0,
)


def run(folder, grid, the_plan=PLAN):
    arm = arm_of(the_plan, folder, CASES)
    return run_arm(open_federation(grid, arm), arm)


def grid_of(folder, the_plan=PLAN, faults=None):
    scores = {1: 0.1, 2: 0.2, 3: 0.3}  # the last round is the best, and handed out
    return MaskedGrid(CASES, folder / "sites", the_plan, faults, scores=scores)


def in_the_clear(the_plan, survivors_of):
    """The same rounds by plain fixed-point FedAvg: quantise, add, divide."""
    network, layout = first_model(the_plan)
    model = to_vector(network, layout)
    carried: dict[str, np.ndarray] = {}
    since = dict.fromkeys(CASES, 0)
    roster = {s: public_text(signing_key(s).public_key()) for s in CASES}
    for number in range(1, the_plan.federation.rounds + 1):
        cap = max(masked_weight(the_plan.federation, n) for n in CASES.values())
        terms = terms_of(
            the_plan.privacy, "run", number, "", roster, cap, model.size, len(roster)
        )
        total = 0
        stay = survivors_of(number)
        for site in stay:
            order = TrainOrder("run", "", number, since[site], model, "")
            update = honest(site, CASES[site], order)
            rounding = secret_rounding(signing_key(site), the_plan.digest, number)
            left = carried.setdefault(site, np.zeros(model.size, np.float32))
            kept = left if the_plan.privacy.mask_bits == 16 else None
            total = total + encode(terms, update.delta, CASES[site], rounding, kept)
        model = model + decode(terms, total, len(stay)).mean
        since |= dict.fromkeys(stay, number)
    return model


def everyone(number):
    return sorted(CASES)


@pytest.mark.parametrize("bits", [32, 16])
def test_the_model_is_that_of_plain_fixed_point_fedavg_bit_for_bit(tmp_path, bits):
    the_plan = plan(
        privacy__secure_aggregation="on",
        privacy__mask_bits=bits,
        privacy__mask_range=1.0,
        federation__deadline_s=0.3,
    )
    grid = grid_of(tmp_path, the_plan)
    record, model = run(tmp_path / "run", grid, the_plan)
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    assert {r.updates for r in record.rounds} == {"under masks"}
    assert model.tobytes() == in_the_clear(the_plan, everyone).tobytes()
    shares = {row.site: row.weight for row in record.rounds[0].sites}
    assert shares == {s: n / 90 for s, n in CASES.items()}


def test_no_update_in_the_clear_is_asked_for_or_given(tmp_path):
    grid = grid_of(tmp_path)
    run(tmp_path / "run", grid)
    assert all(o.sealed for _, o in grid.asked if isinstance(o, TrainOrder))
    masked = [a for a in grid.answers if isinstance(a, MaskedUpdate)]
    assert len(masked) == 15
    assert not [a for a in grid.answers if isinstance(a, Update)]


@pytest.mark.parametrize("nonsense", [None, np.nan, np.inf, -1.0])
def test_a_masked_update_whose_cost_is_none_stays_out_by_name(tmp_path, nonsense):
    the_plan = plan(
        privacy__secure_aggregation="on",
        privacy__dp={"noise_multiplier": 1.0},
        federation__deadline_s=0.3,
        federation__rounds=1,
    )

    class Telling(MaskedGrid):
        def masked(self, site, order):
            answer = super().masked(site, order)
            if not isinstance(answer, MaskedUpdate):
                return answer
            prv = nonsense if site == "west" else 1.1
            return replace(answer, epsilon_pld=1.0, epsilon_prv=prv)

    record, _ = run(
        tmp_path / "run", Telling(CASES, tmp_path / "sites", the_plan), the_plan
    )
    (only,) = record.rounds
    assert only.outcome == "closed"
    rows = {row.site: row for row in only.sites}
    assert [s for s, row in rows.items() if row.outcome != "accepted"] == ["west"]
    assert "site 'west' told" in rows["west"].reason


def test_steady_state_has_two_turns_a_round(tmp_path):
    grid = grid_of(tmp_path)
    run(tmp_path / "run", grid)
    kinds = (KeysOrder, SharesOrder, TrainOrder, OpenOrder)
    turns = [
        (type(order), order.round)
        for site, order in grid.asked
        if site == "east" and isinstance(order, kinds)
    ]
    assert turns == [
        (KeysOrder, 1),
        (SharesOrder, 1),
        *[(kind, n) for n in (1, 2, 3) for kind in (TrainOrder, OpenOrder)],
    ]


def test_a_masked_vector_is_gone_before_the_next_is_asked_for(tmp_path, monkeypatch):
    """Memory at the hub is one sum and one vector, however many sites take part."""
    real, seen = server.masked_round.ask, []

    def watched(*given):
        for reply in real(*given):
            vector = getattr(reply.answer, "masked", None)
            alive = None if vector is None else weakref.ref(vector)
            yield reply
            del reply, vector
            if alive is not None:
                seen.append(alive() is None)

    monkeypatch.setattr(server.masked_round, "ask", watched)
    run(tmp_path / "run", grid_of(tmp_path))
    assert seen == [True] * 15


@pytest.mark.parametrize("fault", [silent, restarted])
@pytest.mark.parametrize("lost", ["east", "north", "west"])
def test_a_site_lost_after_its_keys_is_recovered_from(tmp_path, fault, lost):
    """Fault 3: the mean of the survivors is exact; the next round has it back."""
    grid = grid_of(tmp_path, faults={(lost, TrainOrder, 2): fault})
    record, model = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    rows = {row.site: row for row in record.rounds[1].sites}
    assert rows[lost].outcome in ("late", "failed")
    assert rows[lost].weight == 0.0

    def survivors(number):
        gone = {lost} if number == 2 else set()
        return sorted(set(CASES) - gone)

    assert model.tobytes() == in_the_clear(PLAN, survivors).tobytes()


def test_a_site_lost_in_the_set_up_is_left_out_from_the_start(tmp_path):
    for kind in (KeysOrder, SharesOrder):
        folder = tmp_path / kind.__name__
        grid = grid_of(folder, faults={("mid", kind, 1): silent})
        record, _ = run(folder / "run", grid)
        assert [r.outcome for r in record.rounds] == ["closed"] * 3
        outcomes = [{w.site: w.outcome for w in r.sites} for r in record.rounds]
        assert outcomes[0]["mid"] == "late"
        assert [o["mid"] for o in outcomes[1:]] == ["accepted"] * 2


def test_below_the_threshold_the_round_is_void_and_nothing_is_opened(tmp_path):
    """Fault 4: the model is unchanged, and no site was asked for a share."""
    lost = ("east", "north", "west")
    grid = grid_of(tmp_path, faults={(s, TrainOrder, 2): silent for s in lost})
    record, _ = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed", "void", "closed"]
    digests = [r.model_digest for r in record.rounds]
    assert digests[0] == digests[1] != digests[2]
    assert "error 41)" in record.rounds[1].reason
    assert not [o for _, o in grid.asked if isinstance(o, OpenOrder) and o.round == 2]


def test_a_site_that_is_started_again_in_the_set_up_takes_part(tmp_path):
    once = []

    def restarted_once(grid, site, order):
        return order if once or once.append(1) else restarted(grid, site, order)

    grid = grid_of(tmp_path, faults={("mid", SharesOrder, 1): restarted_once})
    record, model = run(tmp_path / "run", grid)
    assert {row.outcome for r in record.rounds for row in r.sites} == {"accepted"}
    assert model.tobytes() == in_the_clear(PLAN, everyone).tobytes()


def test_too_many_restarts_cost_a_second_try_and_not_the_round(tmp_path):
    """Sites that come back get new keys, and the round ends as if undisturbed."""
    once = set()

    def restarted_once(grid, site, order):
        return order if site in once or once.add(site) else restarted(grid, site, order)

    lost = ("east", "north", "west")
    faults = {(s, TrainOrder, 2): restarted_once for s in lost}
    grid = grid_of(tmp_path, faults=faults)
    record, model = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    assert {row.outcome for row in record.rounds[1].sites} == {"accepted"}
    assert model.tobytes() == in_the_clear(PLAN, everyone).tobytes()
    asked = [
        type(order)
        for site, order in grid.asked
        if site == "mid" and getattr(order, "round", 0) == 2
    ]
    assert asked[:4] == [TrainOrder, KeysOrder, SharesOrder, TrainOrder]


def lineages(grid, number):
    """What the sites were told of their optimisers' memory, in the order of asking."""
    told = [o.lineage for _, o in grid.orders if o.round == number]
    return list(dict.fromkeys(told))


def test_optimisers_go_on_from_one_chain_of_rounds_and_models(tmp_path):
    grid = grid_of(tmp_path)
    record, _ = run(tmp_path / "run", grid)
    first = digest_of(to_vector(*first_model(PLAN)))
    models = [first, *(r.model_digest for r in record.rounds)]
    chain = [FRESH]
    for number in (1, 2, 3):
        assert lineages(grid, number) == [chain[-1]]
        chain.append(lineage_after(chain[-1], number, models[number - 1]))
    assert [r.lineage for r in record.rounds] == chain[1:]
    assert [r.began_anew for r in record.rounds] == [True, False, False]


def test_all_optimisers_begin_anew_where_a_site_joins_the_sum(tmp_path):
    grid = grid_of(tmp_path, faults={("west", TrainOrder, 2): silent})
    record, _ = run(tmp_path / "run", grid)
    assert [r.began_anew for r in record.rounds] == [True, False, True]
    assert lineages(grid, 3) == [FRESH]
    gone = {("west", kind, 3): silent for kind in (KeysOrder, TrainOrder)}
    gone |= {("west", TrainOrder, 2): silent}
    grid = grid_of(tmp_path / "gone", faults=gone)
    record, _ = run(tmp_path / "gone" / "run", grid)
    assert [r.began_anew for r in record.rounds] == [True, False, False]
    assert lineages(grid, 3) == [record.rounds[1].lineage]


def test_a_second_try_is_made_from_the_memory_of_the_first(tmp_path):
    """West, which was not in the last sum, is back for it; it waits for round 4."""
    once = set()

    def restarted_once(grid, site, order):
        return order if site in once or once.add(site) else restarted(grid, site, order)

    def silent_once(grid, site, order):
        return order if once else None

    lost = ("east", "mid", "north")
    faults = {(s, TrainOrder, 3): restarted_once for s in lost}
    faults |= {("west", TrainOrder, 2): silent, ("west", KeysOrder, 3): silent_once}
    the_plan = plan(
        privacy__secure_aggregation="on",
        federation__deadline_s=0.3,
        federation__rejoin_s=0.0,
        federation__rounds=4,
    )
    grid = MaskedGrid(CASES, tmp_path / "sites", the_plan, faults)
    record, _ = run(tmp_path / "run", grid, the_plan)
    assert once == set(lost)
    assert [r.outcome for r in record.rounds] == ["closed"] * 4
    assert [r.began_anew for r in record.rounds] == [True, False, False, True]
    assert lineages(grid, 3) == [record.rounds[1].lineage]
    assert "west" not in {s for s, o in grid.orders if o.round == 3}


def test_a_site_that_never_delivers_costs_the_others_their_memory_seldom(tmp_path):
    """It gives its keys and shares each time, and then nothing."""
    the_plan = plan(
        privacy__secure_aggregation="on",
        federation__deadline_s=0.3,
        federation__rejoin_s=0.0,
        federation__rounds=9,
    )
    faults = {("west", TrainOrder, n): silent for n in range(2, 10)}
    grid = MaskedGrid(CASES, tmp_path / "sites", the_plan, faults)
    record, _ = run(tmp_path / "run", grid, the_plan)
    anew = [r.number for r in record.rounds if r.began_anew]
    assert anew == [1, 3, 9]
    waiting = [r.sites[-1].reason for r in record.rounds if r.number in (4, 8)]
    assert all("waits for a round in which all begin anew" in why for why in waiting)
    steady = [o for s, o in grid.asked if s == "east" and isinstance(o, KeysOrder)]
    assert {o.round for o in steady} == {1, 3, 4, 9}  # set up only as the sites change


def test_a_needed_site_without_its_memory_has_all_begin_anew(tmp_path):
    three = {"east": 10, "mid": 25, "west": 20}

    class Forgetful(MaskedGrid):
        def masked(self, site, order):
            if site == "west" and isinstance(order, TrainOrder) and order.lineage:
                raise StoreError("site lost its training state", code="state")
            return super().masked(site, order)

    the_plan = plan(
        privacy__secure_aggregation="on",
        federation__deadline_s=0.3,
        federation__rejoin_s=0.0,
        federation__rounds=5,
    )
    grid = Forgetful(three, tmp_path / "sites", the_plan)
    arm = arm_of(the_plan, tmp_path / "run", three)
    record, _ = run_arm(open_federation(grid, arm), arm)
    outcomes = [r.outcome for r in record.rounds]
    assert outcomes[:4] == ["closed", "void", "void", "closed"]
    assert record.rounds[3].began_anew


def test_a_void_round_leaves_no_mark_on_the_chain(tmp_path):
    faults = {(s, OpenOrder, 2): silent for s in ("east", "north", "west")}
    grid = grid_of(tmp_path, faults=faults)
    record, _ = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed", "void", "closed"]
    assert lineages(grid, 2) == lineages(grid, 3) == [record.rounds[0].lineage]
    assert (record.rounds[1].lineage, record.rounds[1].began_anew) == ("", None)


def test_the_largest_weight_stays_though_its_site_goes(tmp_path):
    """Or those that masked a round would have other numbers when it comes again."""

    def dies(grid, site, order):
        raise KeyboardInterrupt

    largest = max(CASES, key=CASES.__getitem__)
    grid = grid_of(tmp_path, faults={("east", OpenOrder, 2): dies})
    arm = arm_of(PLAN, tmp_path / "run", CASES)
    with pytest.raises(KeyboardInterrupt):
        run_arm(open_federation(grid, arm), arm)
    grid.faults = {}
    federation = open_federation(grid, arm)
    del federation.node_of[largest], federation.rosters[largest]
    record, _ = run_arm(federation, arm)
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    assert [r.weight_cap for r in record.rounds] == [CASES[largest]] * 3
    assert [r.began_anew for r in record.rounds] == [True, False, False]


def test_survivors_that_vanish_before_opening_make_the_round_void(tmp_path):
    lost = ("east", "north", "west")
    grid = grid_of(tmp_path, faults={(s, OpenOrder, 1): silent for s in lost})
    record, _ = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["void", "closed", "closed"]


def test_two_sites_that_vanish_before_opening_are_not_needed(tmp_path):
    lost = ("east", "north")
    grid = grid_of(tmp_path, faults={(s, OpenOrder, 1): silent for s in lost})
    record, model = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    assert model.tobytes() == in_the_clear(PLAN, everyone).tobytes()


@pytest.mark.parametrize("told", [24, 49])
def test_a_site_that_lies_about_its_weight_makes_the_round_void_or_stays_out(
    tmp_path, told
):
    class Liar(MaskedGrid):
        def masked(self, site, order):
            if site == "mid" and isinstance(order, TrainOrder) and order.round == 1:
                self.cases["mid"] = told
                try:
                    return super().masked(site, order)
                finally:
                    self.cases["mid"] = 25
            return super().masked(site, order)

    grid = Liar(CASES, tmp_path / "sites", PLAN)
    record, _ = run(tmp_path / "run", grid)
    row = next(row for row in record.rounds[0].sites if row.site == "mid")
    if told > max(CASES.values()):  # which a site itself refuses
        assert [r.outcome for r in record.rounds] == ["closed"] * 3
        assert "error 40.20" in row.reason
        return
    assert [r.outcome for r in record.rounds] == ["void", "closed", "closed"]
    assert "error 40.20)" in record.rounds[0].reason


def test_a_site_given_another_model_spoils_its_round_alone(tmp_path):
    """Fault 32, masked: the round fails closed."""

    def other_model(grid, site, order):
        bent = order.model + np.float32(0.5)
        return replace(order, model=bent, model_digest=digest_of(bent))

    grid = grid_of(tmp_path, faults={("mid", TrainOrder, 2): other_model})
    arm = arm_of(PLAN, tmp_path / "run", CASES)
    federation = open_federation(grid, arm)
    # the seal would tell already; masks must hold without it
    federation.line.verifier.check = lambda *a, **k: None
    record, _ = run_arm(federation, arm)
    assert [r.outcome for r in record.rounds] == ["closed", "void", "closed"]
    assert "error 40.22)" in record.rounds[1].reason


def bent(block: bytes) -> bytes:
    """The same with one bit changed."""
    return bytes([block[0] ^ 1, *block[1:]])


def test_a_site_whose_shares_do_not_decrypt_is_left_out_by_number(tmp_path):
    def altered(grid, site, order):
        return replace(order, sealed={s: bent(x) for s, x in order.sealed.items()})

    grid = grid_of(tmp_path, faults={("mid", TrainOrder, 2): altered})
    record, model = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    row = next(r for r in record.rounds[1].sites if r.site == "mid")
    assert (row.outcome, row.weight) == ("failed", 0.0)
    assert "error 40.16)" in row.reason

    def survivors(number):
        return sorted(set(CASES) - ({"mid"} if number == 2 else set()))

    assert model.tobytes() == in_the_clear(PLAN, survivors).tobytes()


def test_a_site_that_gives_other_shares_makes_the_round_void(tmp_path):
    class Liar(MaskedGrid):
        def masked(self, site, order):
            answer = super().masked(site, order)
            if site == "east" and isinstance(order, OpenOrder) and order.round == 2:
                wrong = {s: bytes(2) + x[2:] for s, x in answer.shares.items()}
                return replace(answer, shares=wrong)
            return answer

    grid = Liar(CASES, tmp_path / "sites", PLAN, scores={1: 0.1, 3: 0.3})
    record, _ = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed", "void", "closed"]
    assert "error 40.16)" in record.rounds[1].reason
    assert record.rounds[1].model_digest == record.rounds[0].model_digest


def test_a_site_that_masks_more_than_it_may_makes_the_round_void(tmp_path):
    """It skips its own cut at the plan's range, which nobody sees in one vector."""

    class Hostile(MaskedGrid):
        def masked(self, site, order):
            answer = super().masked(site, order)
            if site == "mid" and isinstance(answer, MaskedUpdate) and answer.round == 2:
                moved = answer.masked.copy()
                moved[:1] += np.uint32(3 << 29)  # wraps
                return replace(answer, masked=moved)
            return answer

    grid = Hostile(CASES, tmp_path / "sites", PLAN, scores={1: 0.1, 3: 0.3})
    record, _ = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed", "void", "closed"]
    assert "error 40.28)" in record.rounds[1].reason
    assert record.rounds[1].model_digest == record.rounds[0].model_digest


@pytest.mark.parametrize(
    ("kind", "change", "number"),
    [
        (KeysOrder, lambda o: {"members": {**o.members, "west": "ab" * 32}}, "40.15"),
        (KeysOrder, lambda o: {"members": {"mid": o.members["mid"]}}, "40.11"),
        (SharesOrder, lambda o: {"keys": {**o.keys, "x": o.keys["west"]}}, "40.12"),
        (SharesOrder, lambda o: {"keys": {**o.keys, "east": o.keys["west"]}}, "40.15"),
        (TrainOrder, lambda o: {"sealed": {"x": bytes(9), **o.sealed}}, "40.16"),
    ],
    ids=["another roster", "roster of one", "stranger", "site twice", "its share"],
)
def test_a_site_that_is_told_other_things_takes_no_part_and_says_which(
    tmp_path, kind, change, number
):
    """In the first round; the others' sum is exact, or there is none."""
    told = {("mid", kind, 1): lambda grid, site, o: replace(o, **change(o))}
    grid = grid_of(tmp_path, faults=told)
    record, _ = run(tmp_path / "run", grid)
    first = record.rounds[0]
    reasons = [first.reason, *(row.reason for row in first.sites)]
    assert any(f"error {number})" in reason for reason in reasons)
    row = next(r for r in first.sites if r.site == "mid")
    assert row.outcome != "accepted"
    assert [r.outcome for r in record.rounds[1:]] == ["closed"] * 2


def test_a_masked_vector_of_another_shape_is_refused_by_name(tmp_path):
    class Short(MaskedGrid):
        def masked(self, site, order):
            answer = super().masked(site, order)
            if site == "mid" and isinstance(answer, MaskedUpdate) and order.round == 1:
                return replace(answer, masked=answer.masked[:-1])
            return answer

    grid = Short(CASES, tmp_path / "sites", PLAN)
    record, _ = run(tmp_path / "run", grid)
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    row = next(r for r in record.rounds[0].sites if r.site == "mid")
    assert row.outcome == "refused"
    assert "expected uint32" in row.reason


def test_a_resumed_run_ends_in_the_same_model_to_the_bit(tmp_path, monkeypatch):
    whole, model = run(tmp_path / "a", grid_of(tmp_path / "one"))
    grid = grid_of(tmp_path / "two")
    import server.rounds

    real = server.rounds.append

    def cut(journal, entry):
        if entry.record.number == 2:
            raise KeyboardInterrupt
        real(journal, entry)

    monkeypatch.setattr(server.rounds, "append", cut)
    with pytest.raises(KeyboardInterrupt):  # round 2 was opened, and not written
        run(tmp_path / "b", grid)
    monkeypatch.setattr(server.rounds, "append", real)
    record, again = run(tmp_path / "b", grid)
    assert again.tobytes() == model.tobytes()
    assert [r.model_digest for r in record.rounds] == [
        r.model_digest for r in whole.rounds
    ]


def test_a_repeated_round_opens_no_other_sum(tmp_path, monkeypatch):
    """Two sums of a round that differ by one site would tell that site's update."""
    grid = grid_of(tmp_path)
    import server.rounds

    real = server.rounds.append

    def cut(journal, entry):
        if entry.record.number == 2:
            raise KeyboardInterrupt
        real(journal, entry)

    monkeypatch.setattr(server.rounds, "append", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", grid)
    monkeypatch.setattr(server.rounds, "append", real)
    grid.faults = {("west", TrainOrder, 2): silent}
    record, _ = run(tmp_path / "b", grid)
    assert [r.outcome for r in record.rounds] == ["closed", "void", "closed"]


def test_too_few_sites_for_masks_close_no_round(tmp_path):
    two = {"east": 10, "west": 20}
    grid = MaskedGrid(two, tmp_path / "sites", PLAN)
    arm = arm_of(PLAN, tmp_path / "run", two)
    from common.errors import RunError

    with pytest.raises(RunError, match="closed no round"):
        run_arm(open_federation(grid, arm), arm)
    assert not [o for _, o in grid.asked if isinstance(o, KeysOrder | TrainOrder)]


def test_an_error_in_the_set_up_names_its_check(tmp_path):
    grid = grid_of(tmp_path)
    grid.masked = lambda site, order: (_ for _ in ()).throw(
        ContributionError("no", code="cohort")
    )
    from common.errors import RunError

    with pytest.raises(RunError, match=r"error 40\.11"):
        run(tmp_path / "run", grid)
