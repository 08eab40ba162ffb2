import shutil

import pytest
import torch

from client.open_site import choose_device, open_cases, open_site
from client.site import SiteConfig, write_site
from common.errors import EngineError, IntakeError, PlanError, StoreError
from common.exchange import Hello
from common.plan_file import parse_plan
from server.federation import first_model
from tests.client.conftest import slices
from tests.plans import SLICES

PLAN = parse_plan(SLICES)


def test_a_folder_becomes_a_service(make_site, tmp_path):
    service = open_site(make_site(tmp_path / "north", PLAN), PLAN)
    layout = first_model(PLAN)[1]
    roster = service.hello(Hello("run", PLAN.digest, "", layout.digest))
    assert roster.site == "north"
    assert roster.train + roster.validation + roster.test == roster.accepted


def test_opening_twice_gives_the_same_cases_in_the_same_parts(make_site, tmp_path):
    folder = make_site(tmp_path / "north", PLAN)
    first, again = open_cases(folder, PLAN).data, open_cases(folder, PLAN).data
    for part in ("train", "validation", "test", "count"):
        assert getattr(first, part) == getattr(again, part)
    shutil.rmtree(folder / "store")
    anew = open_cases(folder, PLAN).data
    assert [r.shape for r in anew.train] == [r.shape for r in first.train]
    assert anew.count == first.count


def test_no_patient_is_in_two_parts(make_site, tmp_path):
    data = open_cases(make_site(tmp_path / "north", PLAN), PLAN).data
    parts = (data.train, data.validation, data.test)
    patients = [{record.patient_id for record in part} for part in parts]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 5


def test_a_public_site_has_test_cases_only(make_site, tmp_path):
    hospital = open_cases(make_site(tmp_path / "north", PLAN), PLAN).data
    public = open_cases(make_site(tmp_path / "public", PLAN, public=True), PLAN).data
    assert (public.train, public.validation) == ((), ())
    assert len(public.test) == public.count.accepted == hospital.count.accepted


def test_a_member_without_a_source_is_named(tmp_path):
    write_site(tmp_path / "north", SiteConfig(name="north"), SLICES, 1)
    with pytest.raises(StoreError, match="'north' has no source"):
        open_site(tmp_path / "north", PLAN)


def test_what_is_wrong_with_a_site_is_a_typed_error(make_site, tmp_path):
    with pytest.raises(StoreError, match=r"no readable site\.json"):
        open_site(tmp_path, PLAN)
    absent = make_site(tmp_path / "absent", PLAN, source=tmp_path / "nowhere")
    with pytest.raises(IntakeError):
        open_site(absent, PLAN)
    plan = slices(data__min_cases=1000)
    floor = make_site(tmp_path / "floor", plan)
    with pytest.raises(PlanError, match=r"expected at least 1000 \(data.min_cases\)"):
        open_site(floor, plan)


def test_a_refused_source_names_the_codes(make_site, tmp_path):
    plan = slices(task__classes={"vessel": ["vessel"]})
    with pytest.raises(PlanError, match=r"0 of 8 .* for LABEL_MISSING 8x;"):
        open_site(make_site(tmp_path / "north", plan), plan)


def test_float16_on_a_cpu_is_refused_before_intake(make_site, tmp_path):
    plan = slices(training__amp="fp16")
    folder = make_site(tmp_path / "north", plan)
    with pytest.raises(EngineError, match=r"'north' .* 'fp16' .* expected a GPU"):
        open_site(folder, plan)
    assert not (folder / "store").exists()


def test_the_device_is_what_was_asked_for_or_an_error():
    assert choose_device("cpu") == torch.device("cpu")
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == wanted
    for name in ("banana", "cpu:x", "mps", "meta", ""):
        with pytest.raises(EngineError, match="expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    with pytest.raises(EngineError, match=r"'cuda:99', found \d+ usable GPUs"):
        choose_device("cuda:99")
