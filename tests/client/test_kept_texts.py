"""What a site noted and can't read any more stops it, under a number of its own."""

import pytest

from client.kept_texts import read_texts, write_texts
from client.mask_memory import MASKED, OPENED, check_group, note_opening
from client.order_log import ANSWERED, check_question
from client.peers import PEERS, check_peers
from common.error_numbers import number_of, spoken
from common.errors import StoreError
from server.error_sentences import sentence_of
from tests.client.test_order_log import order

DAMAGED = [b"", b"\x00\xff{", b"[]", b'{"1": 1}', b'{"1": ']
READERS = {
    ANSWERED: lambda site, run: check_question(site, order()),
    OPENED: lambda site, run: note_opening(run, 1, "model", ("a", "b")),
    MASKED: lambda site, run: check_group(run, 1, "ab", 2, 0),
    PEERS: lambda site, run: check_peers(site, {"a": 64 * "a"}),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [*DAMAGED, None])
def test_a_damaged_file_is_told_as_a_check_of_its_own(tmp_path, name, content):
    tmp_path.chmod(0o700)
    run = tmp_path / "state" / "run"
    run.mkdir(parents=True, mode=0o700)
    run.parent.chmod(0o700)
    READERS[name](tmp_path, run)  # nothing noted yet
    path = (tmp_path if name == PEERS else run) / name
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{name} that can't be read") as caught:
        READERS[name](tmp_path, run)
    number = number_of(caught.value)
    assert spoken(number) == "23.5"
    assert "what it notes of rounds" in sentence_of(number)
    assert path.is_dir() or path.read_bytes() == content


def test_a_group_that_is_none_has_the_same_number(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / MASKED).write_text('{"1": "[[4]]"}')
    with pytest.raises(StoreError) as caught:
        check_group(tmp_path, 1, "ab", 2, 0)
    assert spoken(number_of(caught.value)) == "23.5"


def test_what_can_not_be_written_has_the_same_number_and_leaves_what_was(
    tmp_path, monkeypatch
):
    path = tmp_path / PEERS
    write_texts(path, {"a": "b"})

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.kept_texts.write_private", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        write_texts(path, {})
    assert spoken(number_of(caught.value)) == "23.5"
    assert read_texts(path) == {"a": "b"}
