"""The machine's rows tell what is there, and fail where a round would."""

import importlib.metadata
import shutil
import sys
from collections import namedtuple

import psutil
import pytest

from client import preflight_machine as machine
from client.preflight_codecs import FRAMES, decodes
from client.preflight_row import Check, passed, run_checks


def test_every_decoder_gives_the_values_that_were_encoded():
    assert len(FRAMES) == 12
    assert {syntax: decodes(syntax) for syntax in FRAMES} == dict.fromkeys(FRAMES)


def test_a_decoder_that_gives_other_values_or_none_is_told(monkeypatch):
    syntax = "1.2.840.10008.1.2.4.90"
    frame, step, bits = FRAMES[syntax]
    monkeypatch.setitem(FRAMES, syntax, (frame, step + 1, bits))
    assert decodes(syntax) == "wrong values"
    monkeypatch.setitem(FRAMES, syntax, (frame[:100], step, bits))
    assert "Error" in decodes(syntax)


def test_decoders_are_tried_in_a_process_of_their_own(monkeypatch):
    row = machine.check_decoders()
    assert (row.verdict, row.found) == ("PASS", "12 transfer syntaxes decode rightly")
    crash = "import os, json; print(json.dumps({'syntax': '1.2', 'wrong': None}), "
    crash += "flush=True); os.abort()"
    child = machine._child
    monkeypatch.setattr(machine, "_child", lambda _, limit: child(["-c", crash], limit))
    row = machine.check_decoders()
    assert (row.verdict, "crashed after 1.2" in row.found) == ("FAIL", True)


@pytest.mark.parametrize(
    ("device", "gpus", "verdict"),
    [
        ("auto", [], "WARN"),
        ("cpu", [], "PASS"),
        ("cuda:1", [], "FAIL"),
        ("auto", [{"name": "G", "bytes": 8e10, "right": True}], "PASS"),
        ("cuda", [{"name": "G", "bytes": 8e10, "right": False}], "FAIL"),
    ],
)
def test_a_gpu_is_asked_for_found_and_right(monkeypatch, device, gpus, verdict):
    monkeypatch.setattr(machine, "_driver", lambda: None)
    probe = f"import json; print(json.dumps(dict(built='13.0', gpus={gpus!r})))"
    monkeypatch.setattr(machine, "_GPU", probe)
    assert machine.check_gpu(device).verdict == verdict


def test_the_real_question_about_the_gpu_is_answered():
    row = machine.check_gpu("auto")
    assert row.verdict in ("PASS", "WARN"), row
    assert "CPU" in row.found or "GB" in row.found


def test_a_torch_that_does_not_load_fails(monkeypatch):
    monkeypatch.setattr(machine, "_GPU", "import os; os.abort()")
    row = machine.check_gpu("auto")
    assert (row.verdict, "ended with -6" in row.found) == ("FAIL", True)


Room = namedtuple("Room", "total used free")


@pytest.mark.parametrize(
    ("free", "verdict"), [(1e9, "FAIL"), (10e9, "WARN"), (100e9, "PASS")]
)
def test_room_on_the_disk(monkeypatch, tmp_path, free, verdict):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Room(1e12, 0, free))
    row = machine.check_disk(tmp_path)
    assert (row.verdict, row.found) == (verdict, f"{free / 1e9:.1f} GB free")


def test_memory_is_no_more_than_the_machine_has():
    row = machine.check_memory()
    free, _, total, *_ = row.found.split()
    assert 0 < float(free) <= float(total) <= psutil.virtual_memory().total / 1e9 + 0.1


def test_a_package_of_another_version_is_named(monkeypatch):
    assert machine.check_packages().verdict == "PASS"
    real = importlib.metadata.version

    def other(name: str) -> str:
        if name == "monai":
            raise importlib.metadata.PackageNotFoundError
        return "1.40.0" if name == "flwr" else real(name)

    monkeypatch.setattr(machine, "version", other)
    row = machine.check_packages()
    assert row.verdict == "FAIL"
    assert row.found == "flwr is 1.40.0, expected ==1.41.0, monai is missing"


def test_no_check_stops_or_delays_another():
    import threading

    hung = threading.Event()

    def broken():
        raise ValueError("PATIENT-7")

    checks = [
        Check("hangs", lambda: hung.wait() and None, 0.2),
        Check("breaks", broken),
        Check("fine", lambda: passed("fine", "yes")),
    ]
    rows = run_checks(checks)
    hung.set()
    assert [row.verdict for row in rows] == ["FAIL", "FAIL", "PASS"]
    assert "0 s" in rows[0].found
    assert "ValueError" in rows[1].found
    assert "PATIENT-7" not in str(rows)
    assert sys.exc_info() == (None, None, None)
