import os
from pathlib import Path

import pytest

from client.intake.header import DirectoryEntry
from client.intake.scan import missing_entries, printable, scan_folder
from client.intake.verdict import Code
from common.errors import IntakeError


def test_files_come_sorted_by_path_at_any_depth(tmp_path):
    for name in ("b/2", "a/z/1", "c", "a/10"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = [str(p.relative_to(tmp_path)) for p in scan_folder(tmp_path).files]
    assert found == ["a/10", "a/z/1", "b/2", "c"]


def test_a_loop_of_links_ends(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    scan = scan_folder(tmp_path)
    assert scan.refused == ((tmp_path / "deep" / "loop", Code.UNSAFE_LINK),)


def test_a_source_that_is_itself_a_link_is_followed_once(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "x").write_bytes(b"x")
    link.symlink_to(real)
    assert scan_folder(link).files == (real / "x",)


def test_a_file_as_source_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(IntakeError):
        scan_folder(tmp_path / "x")


def test_names_that_are_no_text_can_be_printed(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Aufnahme\xff"))
    path.write_bytes(b"x")
    [found] = scan_folder(tmp_path).files
    assert printable(found, tmp_path).encode("utf-8").startswith(b"Aufnahme")


@pytest.mark.parametrize(
    "components", [("..", "x"), ("a", "..", "x"), ("/etc", "passwd"), ("a/b",), ("",)]
)
def test_a_directory_entry_never_leads_outside(tmp_path, components):
    entry = DirectoryEntry(components, None)
    assert missing_entries([entry], tmp_path) == ([entry], [])


def test_entries_match_whatever_their_case(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im1").write_bytes(b"x")
    there = DirectoryEntry(("IMAGES", "IM1"), None)
    absent = DirectoryEntry(("IMAGES", "IM2"), "1.2")
    assert missing_entries([there, absent], tmp_path) == ([], [absent])
