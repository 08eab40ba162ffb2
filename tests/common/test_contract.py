"""Sides that don't speak one contract are told which of them to update."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord

import common.contract
import common.signing
from client.install import install, read_kit
from common.certificates import fingerprint_of
from common.contract import CONTRACT, check_contract
from common.errors import ContributionError, JoinError, VersionError
from common.exchange import Hello, Judgement, JudgeOrder, Roster
from common.joining import Request, parse, to_bytes
from common.signing import asked_of, seal, verify
from common.wire import from_record, to_record
from server.asked import read_request
from tests.joining import NOW, a_hub, a_site, content_of, let_in

HELLO = Hello("run", "plan", "text", "layout")
ROSTER = Roster("north", 1, 1, 1, 1, 1)


@pytest.mark.parametrize("writer", ["hub", "site"])
def test_the_older_side_is_the_one_to_update(writer):
    reader = {"hub": "site", "site": "hub"}[writer]
    check_contract(writer, CONTRACT, "99.0")  # the package may be any version
    for contract, old in ((0, writer), (CONTRACT + 1, reader), (None, writer)):
        with pytest.raises(
            VersionError, match=f"^{writer} .*update FedCT at the {old}$"
        ):
            check_contract(writer, contract, "9.9.9")
    for odd in (True, 1.0, "1", b"1", [1]):
        with pytest.raises(VersionError, match="older FedCT"):
            check_contract(writer, odd, "1")


def test_what_a_stranger_calls_its_version_is_not_repeated():
    with pytest.raises(VersionError, match=r"contract 9 \(FedCT unknown\)"):
        check_contract("site", 9, "PHANTOM-1\n" * 9)


@pytest.mark.parametrize("message", [HELLO, ROSTER], ids=["hello", "roster"])
@pytest.mark.parametrize("contract", [CONTRACT + 1, 0, None])
def test_the_roll_call_is_understood_as_far_as_its_contract(message, contract):
    """Whatever else another version's message holds, or lacks."""
    record = to_record(message)
    facts = {**record["facts"], "something new": 1, "contract": contract}
    del facts["nonce" if isinstance(message, Hello) else "train"]
    if contract is None:
        del facts["contract"]
    record["facts"] = ConfigRecord(facts)
    with pytest.raises(VersionError, match="expected contract"):
        from_record(record, type(message))


def test_an_answer_of_another_contract_is_refused_by_that_name(monkeypatch):
    """A site that was updated while the run went on, and was never asked who it is."""
    key = Ed25519PrivateKey.generate()
    order = JudgeOrder("run", "plan", 1, 0, "test", None, "model")  # type: ignore[arg-type]
    answer = Judgement("north", 1, "test", {})
    asked = asked_of(order, "north")
    signed = seal(answer, replace(asked, contract=CONTRACT + 1), key)
    said = f"for contract {CONTRACT + 1}, expected {CONTRACT}"
    with pytest.raises(ContributionError, match=said) as caught:
        verify(answer, asked, signed, key.public_key())
    assert caught.value.code == "contract"


def test_a_request_of_another_contract_is_refused_at_the_hub(tmp_path, monkeypatch):
    asked = a_site(tmp_path / "site")
    monkeypatch.setattr(common.contract, "CONTRACT", CONTRACT + 1)
    with pytest.raises(VersionError, match=r"^site speaks .*update FedCT at the site$"):
        read_request(asked.request)


def test_a_kit_of_another_contract_is_refused_at_the_site_and_leaves_no_trace(
    tmp_path, monkeypatch
):
    hub, asked = a_hub(tmp_path / "hub"), a_site(tmp_path / "site")
    kit, told = let_in(hub, asked), fingerprint_of(hub.authority)
    before = content_of(asked.folder)
    with monkeypatch.context() as patched:
        patched.setattr(common.contract, "CONTRACT", CONTRACT + 1)
        with pytest.raises(
            VersionError, match=r"^hub speaks .*update FedCT at the hub$"
        ):
            install(asked.folder, read_kit(kit), told, NOW)
    assert content_of(asked.folder) == before
    install(asked.folder, read_kit(kit), told, NOW)


def test_a_file_that_only_another_version_can_read_is_not_called_altered(tmp_path):
    content = a_site(tmp_path / "site").request
    ours, theirs = (b'"contract": %d' % n for n in (CONTRACT, CONTRACT + 1))
    newer = content.replace(ours, theirs + b', "colour": 3')
    with pytest.raises(VersionError, match="update FedCT at the hub"):
        parse(newer, Request)
    with pytest.raises(JoinError, match="altered") as caught:
        parse(content.replace(b'"csr"', b'"crs"'), Request)
    assert not isinstance(caught.value, VersionError)
    assert to_bytes(parse(content, Request)) == content
