import pytest

from client.site import SIGN_KEY, SiteConfig, read_site, write_site
from common.errors import StoreError
from common.sources import Source
from tests.plans import SLICES

CONFIG = SiteConfig(
    name="north",
    source=Source(source="/data/north", format="nifti"),
    members=("/a", "/b"),
    device="cuda:1",
)


def test_a_config_comes_back_as_it_was(tmp_path):
    write_site(tmp_path / "north", CONFIG, SLICES, 1)
    assert read_site(tmp_path / "north") == CONFIG
    assert (tmp_path / "north" / "plan.toml").read_text() == SLICES


def test_a_site_s_folder_is_private(tmp_path):
    write_site(tmp_path / "north", CONFIG, SLICES, 1)
    assert (tmp_path / "north").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "north").rglob("*"):
        mode = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == mode


def test_a_rehearsal_s_key_follows_from_its_seed_and_the_site_and_stays(tmp_path):
    def key_of(place, name, seed):
        config = CONFIG.model_copy(update={"name": name})
        write_site(tmp_path / place, config, SLICES, seed)
        return (tmp_path / place / SIGN_KEY).read_bytes()

    first = key_of("a", "north", 1)
    assert key_of("b", "north", 1) == first
    assert len({first, key_of("c", "north", 2), key_of("d", "south", 1)}) == 3
    assert key_of("a", "north", 2) == first


def test_a_folder_that_others_may_enter_is_refused(tmp_path):
    folder = tmp_path / "north"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "theirs").write_text("x")
    with pytest.raises(StoreError, match="mode 0755, expected 0700"):
        write_site(folder, CONFIG, SLICES, 1)
    assert [path.name for path in folder.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"\xff", b'{"name": "north", "colour": "red"}']
)
def test_a_damaged_config_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "site.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"no readable site\.json"):
        read_site(tmp_path)
