from functools import partial

import pytest

import deploy.demo
from common.errors import RunError
from common.plan_file import load_plan
from deploy.demo import AWKWARD_SITE, demo
from deploy.phantom.hospital import write_hospital


@pytest.fixture
def rehearsed(monkeypatch):
    """Tiny phantoms, and the call of `simulate` in place of its minutes of work."""
    calls = []
    tiny = partial(write_hospital, size="tiny")
    monkeypatch.setattr(deploy.demo, "write_hospital", tiny)
    monkeypatch.setattr(
        deploy.demo, "simulate", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    return calls


def test_the_demo_writes_what_its_plan_asks_for(rehearsed, tmp_path):
    demo(tmp_path / "demo", patients=1)
    ((args, kwargs),) = rehearsed
    assert args == (tmp_path / "demo" / "demo.toml", tmp_path / "demo" / "run")
    assert set(kwargs["baselines"]) == {"pooled", "local"}
    plan = load_plan(args[0])
    root = args[0].parent / plan.simulation.data_root
    sources = [*plan.simulation.sites, plan.simulation.public]
    assert len(sources) == 5
    for source in sources:
        assert any((root / source.source).rglob("*")), source
    awkward = tmp_path / "demo" / "phantoms" / AWKWARD_SITE / "AWKWARD"
    assert len(list(awkward.rglob("*"))) > 10


def test_the_demo_takes_only_a_new_folder(rehearsed, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="got a file 'file'"):
        demo(tmp_path / "file")
    with pytest.raises(RunError, match="is not empty, expected a new one") as refusal:
        demo(tmp_path)
    assert "go on" not in str(refusal.value)
    (tmp_path / "demo.toml").touch()
    with pytest.raises(RunError, match="is not empty, expected a new one") as refusal:
        demo(tmp_path)
    words = f"--out {tmp_path / 'run'} --baselines pooled,local --resume"
    assert str(refusal.value).endswith(words)
    assert rehearsed == []
