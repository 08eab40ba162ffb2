"""The exam's own instruments: what they must find, they find."""

import base64

import pytest

from tests.faults.invariants import held, spellings
from tests.faults.patients import needles, write_patients

TEXTS = {"CANARY-EAST-PATIENT-0001", "2.25.1234567890123456789", "canary-file-1.dcm"}


@pytest.mark.parametrize("text", sorted(TEXTS))
@pytest.mark.parametrize("before", [b"", b"x", b"xy", b"xyz"])
def test_a_planted_identity_is_found_in_every_spelling(text, before):
    for spelt in spellings(text):
        assert held(before + spelt + b"more", TEXTS) == [text]
    assert held(base64.b64encode(before + text.encode() + b"more"), TEXTS) == [text]
    assert held(before + text[:-1].encode() + b"?", TEXTS) == []


def test_the_needles_are_all_that_names_a_patient(tmp_path):
    write_patients(tmp_path, "east", 2)
    found = needles(tmp_path)
    assert {"CANARY-EAST-PATIENT-0001", "CANARY-EAST-PATIENT-0002"} <= found
    assert {"canary-folder-of-canary-east-patient-0002"} <= found
    uids = {text for text in found if text.startswith("2.25.")}
    assert len(uids) >= 2 * (16 + 4)  # slices; study, series and frame; the SEG
    assert all(len(text) >= 12 for text in found)
