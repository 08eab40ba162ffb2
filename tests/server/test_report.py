import base64
import io
import json
import math
import re
import typing
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from client.egress import nearest_ten
from common.errors import RunError
from common.plan_file import parse_plan, plan_toml
from server import record as schema
from server import report_format as write
from server.record import (
    ArmRecord,
    Picture,
    RoundRecord,
    RunRecord,
    SiteRecord,
    SiteRound,
)
from server.report import read_record, render_html, write_report
from server.report_counts import show_told, sites_in_tens, span, steps_of
from server.report_privacy import privacy_of
from server.report_verdict import verdict_of
from tests.plans import plan

SITES = ("north", "east", "south", "west-children")
LEVEL = {
    "federated": 0.804,
    "pooled": 0.812,
    "local-north": 0.752,
    "local-east": 0.731,
    "local-south": 0.689,
    "local-west-children": 0.602,
}
PLAN = """[plan]
name = "chest_nodules"  # four hospitals, 12 rounds
seed = 1

[federation]
rounds = 12
algorithm = "fedavg"
min_sites = 2
"""


def metrics(dice: float, seed: int) -> dict[str, float]:
    shake = np.random.default_rng(seed).uniform(0.0, 0.02)
    return {
        "dice": dice,
        "iou": dice / (2 - dice),
        "precision": dice + shake,
        "recall": dice - shake,
        "f1": dice + 0.001,
        "surface_distance_mm": 2.4 - dice,
        "hd95_mm": 14.0 - 10 * dice,
        "lesion_sensitivity": dice + 0.05,
    }


def mean(values: dict[str, dict[str, float]]) -> dict[str, float]:
    names = next(iter(values.values()), {})
    return {n: float(np.mean([v[n] for v in values.values()])) for n in names}


def site_round(site: str, number: int, **changed: object) -> SiteRound:
    i = SITES.index(site) if site in SITES else 4
    noise = np.random.default_rng([i, number]).normal(0, 0.015)
    values: dict[str, object] = {
        "site": site,
        "outcome": "accepted",
        "cases": (61, 48, 35, 17, 161)[i],
        "weight": (0.379, 0.298, 0.217, 0.106, 1.0)[i],
        "accepted": (93, 71, 55, 27, 246)[i],
        "found": (102, 74, 81, 31, 288)[i],
        "loss": 0.25 + 0.9 * math.exp(-number / 3.5) + 0.04 * i + noise,
        "steps": 50,
        "update_norm": 4.1 / number + 0.1 * i,
        "train_s": 11.4 + i,
        "bytes_down": 6_531_072,
        "bytes_up": 6_530_118,
    }
    return SiteRound.model_validate(values | changed)


def one_round(arm: str, number: int) -> RoundRecord:
    sites = SITES if arm == "federated" else (arm.removeprefix("local-"),)
    replies = [site_round(site, number) for site in sites]
    void = arm == "federated" and number == 5
    if arm == "federated":
        if number in (3, 5):
            replies[2] = site_round(
                "south",
                number,
                outcome="refused",
                reason="update is not finite",
                weight=0.0,
            )
        if void:
            for i, outcome in ((0, "late"), (1, "failed"), (3, "late")):
                replies[i] = site_round(SITES[i], number, outcome=outcome, weight=0.0)
    effective = number - (arm == "federated" and number >= 5)
    level = LEVEL[arm] * (1 - math.exp(-effective / 2.6)) + 0.01
    validation = {
        site: metrics(level + 0.035 * (1.5 - i) + 0.004 * ((number * (i + 2)) % 5), i)
        for i, site in enumerate(SITES)
    }
    return RoundRecord(
        number=number,
        outcome="void" if void else "closed",
        sites=replies,
        validation={} if void else validation,
        validation_mean={} if void else mean(validation),
        model_digest=f"{number * 17:02x}" * 32,
        seconds=48.25 + number,
    )


def one_arm(name: str) -> ArmRecord:
    test = {}
    for i, site in enumerate(SITES):
        home = 0.075 if name == f"local-{site}" else 0.0
        lift = 0.04 if name == "local-north" and site == "north" else 0.0
        test[site] = metrics(LEVEL[name] + 0.041 * (1.5 - i) + home + lift, i + 7)
    federated = name == "federated"
    return ArmRecord(
        name=name,
        rounds=[one_round(name, n) for n in range(1, 13)],
        final_round=11 if federated else 12,
        stopped="all rounds",
        steps=2400 if name in ("federated", "pooled") else 600,
        test=test,
        test_mean=mean(test),
        test_pooled=metrics(LEVEL[name] + 0.0123, 3),
        public=metrics(LEVEL[name] - 0.0217, 4) if federated else {},
        seconds=611.5 if federated else 402.75,
    )


def picture(seed: int) -> str:
    y, x = np.mgrid[-1:1:192j, -1:1:192j]
    body = (x**2 / 0.8 + y**2 / 0.6 < 1) * 120.0
    lungs = ((abs(x) - 0.42) ** 2 / 0.09 + y**2 / 0.28 < 1) * -90.0
    noise = np.random.default_rng(seed).normal(0, 8, x.shape)
    grey = np.clip(body + lungs + noise + 10, 0, 255).astype(np.uint8)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    ring = abs(np.hypot(x - 0.4, y + 0.05 * seed) - 0.12) < 0.015
    rgb[ring] = (90, 180, 255)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def run_record(arms: tuple[str, ...] = tuple(LEVEL)) -> RunRecord:
    counts = {"north": (93, 102), "east": (71, 74), "south": (55, 81)}
    sites = [
        SiteRecord(
            name=site,
            accepted=counts.get(site, (27, 31))[0],
            found=counts.get(site, (27, 31))[1],
            codes={"ok": 20 + i, "gap-in-slices": 4 + i, "no-label": 3},
            train=(61, 48, 35, 17)[i],
            validation=(13, 9, 8, 4)[i],
            test=(19, 14, 12, 6)[i],
        )
        for i, site in enumerate(SITES)
    ]
    return RunRecord(
        name="chest_nodules",
        description="Lung nodules on chest CT of four hospitals with one scanner each.",
        task="segmentation",
        monitor="dice",
        class_names=["nodule"],
        plan_digest="9f2c" * 16,
        plan_toml=PLAN,
        engine="in-process",
        started="2025-03-04T08:12:33Z",
        finished="2025-03-04T09:01:59Z",
        seconds=2966.0,
        intake_s=41.8,
        peak_memory_bytes=2_147_000_000,
        parameters=1_632_517,
        sites=sites,
        arms=[one_arm(name) for name in arms],
        pictures=[
            Picture(caption=f"Phantom {n}, slice {40 + n}", png_base64=picture(n))
            for n in range(4)
        ],
        versions={"fedct": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0"},
        device="cpu (2 threads)",
    )


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return run_record()


@pytest.fixture(scope="module")
def page(record: RunRecord) -> str:
    return render_html(record)


class _Page(HTMLParser):
    """What a browser would make of the page: tags, attributes, visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def changed(record: RunRecord, **update: object) -> RunRecord:
    """A record with other values, validated anew."""
    return RunRecord.model_validate(record.model_copy(update=update).model_dump())


def with_level(level: dict[str, float], **update: object) -> RunRecord:
    """Arms whose mean Dice is given, the same at every hospital."""
    base = run_record(())
    arms = []
    for name, dice in level.items():
        test = {site: metrics(dice, 0) for site in SITES}
        arms.append(one_arm(name).model_copy(update={"test": test}))
        arms[-1] = arms[-1].model_copy(update={"test_mean": mean(test)})
    return changed(base, arms=arms, **update)


def test_every_number_that_the_page_shows_is_the_records(record, page):
    text = _Page(page).text
    federated = record.arms[0]
    wanted = [
        *(write.show_seconds(s) for s in (record.seconds, record.intake_s)),
        write.show_bytes(record.peak_memory_bytes),
        write.show_count(record.parameters),
    ]
    for site in record.sites:
        wanted += [f"{site.accepted} of {site.found}"]
        wanted += [f"{code} × {number}" for code, number in site.codes.items()]
        wanted += [str(n) for n in (site.train, site.validation, site.test)]
    for arm in record.arms:
        wanted += [write.show_count(arm.steps), write.show_seconds(arm.seconds)]
        for group in (arm.test_mean, arm.test_pooled, arm.public, *arm.test.values()):
            wanted += [write.show(value) for value in group.values()]
        for round_ in arm.rounds:
            wanted += [write.show(v) for v in round_.validation_mean.values()]
            wanted += [write.show_seconds(round_.seconds), round_.model_digest[:12]]
    for round_ in federated.rounds:
        for site in round_.sites:
            wanted += [
                f"{site.accepted} of {site.found}",
                str(site.cases),
                str(site.steps),
            ]
            wanted += [write.show(site.loss), write.show(site.update_norm)]
            wanted += [write.show_share(site.weight), write.show_seconds(site.train_s)]
            wanted += [write.show_bytes(n) for n in (site.bytes_down, site.bytes_up)]
        for group in round_.validation.values():
            wanted.append(write.show(group["dice"]))
    missing = {word for word in wanted if f" {word} " not in f" {text} "}
    assert not missing
    assert len(set(wanted)) > 300


def test_bytes_on_the_wire_are_shown_where_there_was_a_wire(record, page):
    assert "this run had no wire" in _Page(page).text
    federated = record.arms[0]
    rounds = [
        r.model_copy(
            update={
                "sites": [
                    s.model_copy(
                        update={
                            "wire_bytes_down": 7_010_000,
                            "wire_bytes_up": 8_020_000,
                        }
                    )
                    for s in r.sites
                ]
            }
        )
        for r in federated.rounds
    ]
    wired = federated.model_copy(update={"rounds": rounds})
    text = _Page(render_html(changed(record, arms=[wired, *record.arms[1:]]))).text
    assert text.count(" 7.01 MB ") == text.count(" 8.02 MB ") == 12 * len(SITES)
    assert text.count(" 84.1 MB ") == len(SITES)  # 12 rounds down
    assert "this run had no wire" not in text


def test_every_text_of_the_record_is_on_the_page(record, page):
    text = _Page(page).text
    said = [record.name, record.description, record.device, record.plan_digest]
    said += [f"{k} {v}" for k, v in record.versions.items()]
    said += [picture.caption for picture in record.pictures]
    said += [record.engine, record.started, record.finished, *record.class_names]
    said += [
        "update is not finite",
        "Research use only, not a medical device.",
        privacy_of(record),
    ]
    said += [" ".join(line.split()) for line in record.plan_toml.splitlines()]
    assert [s for s in said if s not in text] == []
    for picture in record.pictures:
        assert f"data:image/png;base64,{picture.png_base64}" in page


def test_the_page_needs_nothing_from_outside(page):
    text = re.sub(r"data:image/png;base64,[\w+/=]*", "", page)
    assert not re.search(r"https?:|//[a-z]", text)
    tags = _Page(page).tags
    assert {t for t, _ in tags}.isdisjoint({"link", "iframe", "object", "base", "form"})
    for tag, attributes in tags:
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/png;base64,"))
        assert tag != "script" or not attributes
    policy = next(a["content"] for _, a in tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "url(" not in text
    assert "@import" not in text


def test_links_and_names_of_charts_lead_somewhere(page):
    tags = _Page(page).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        if attributes.get("href"):
            assert attributes["href"][1:] in ids
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    charts = [a for t, a in tags if t == "svg" and a.get("role") == "img"]
    assert len(charts) == 8
    assert all("aria-labelledby" in a for a in charts)
    assert all(a.get("alt") for t, a in tags if t == "img")


def test_an_injected_script_is_inert(record):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    base = run_record()
    text = base.model_dump_json().replace("west-children", "EVIL")
    text = text.replace("update is not finite", "EVIL").replace("hd95_mm", "EVIL")
    text = text.replace("no-label", "EVIL").replace("four hospitals, 12", "EVIL")
    filled = json.loads(text.replace("EVIL", json.dumps(evil)[1:-1]))
    for key in ("name", "description", "device", "engine", "started", "plan_digest"):
        filled[key] = evil
    filled["class_names"] = [evil]
    filled["versions"] = {evil: evil}
    filled["pictures"] = [{"caption": evil, "png_base64": evil}]
    page = render_html(RunRecord.model_validate(filled))
    tags = _Page(page).tags
    assert [t for t, _ in tags].count("script") == 1
    assert not [a for _, a in tags for name in a if name.startswith("on")]
    assert [t for t, _ in tags].count("img") == 1
    assert evil in _Page(page).text


def test_json_comes_back_the_same_and_files_are_whole(tmp_path, record, page):
    write_report(record, tmp_path)
    assert read_record(tmp_path) == record
    assert (tmp_path / "report.html").read_text("utf-8") == page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    write_report(changed(record, name="again"), tmp_path)
    assert read_record(tmp_path).name == "again"
    assert json.loads((tmp_path / "report.json").read_text())["record_version"] == 1


def test_an_undefined_metric_survives_json_that_any_reader_takes(tmp_path, record):
    arm = record.arms[0]
    test = {**arm.test, "north": {"dice": math.nan, "hd95_mm": math.inf}}
    broken = arm.model_copy(update={"test": test})
    write_report(changed(record, arms=[broken]), tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    back = read_record(tmp_path).arms[0].test["north"]
    assert math.isnan(back["dice"])
    assert back["hd95_mm"] == math.inf


def test_a_failed_write_leaves_the_old_report(tmp_path, record, monkeypatch):
    write_report(record, tmp_path)
    before = (tmp_path / "report.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.durable.os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        write_report(changed(record, name="again"), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "found no readable"),
        ("", "damaged or foreign"),
        ('{"record_version": 1, "name": "x"', "damaged or foreign"),
        ('{"record_version": 1}', "Field required"),
    ],
)
def test_an_absent_or_damaged_record_is_a_run_error(tmp_path, content, said):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(RunError, match=said) as caught:
        read_record(tmp_path)
    assert caught.value.exit_code == 42


def test_a_record_of_another_version_is_refused(tmp_path, record):
    text = record.model_dump_json().replace('"record_version":1', '"record_version":2')
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunError, match="record_version"):
        read_record(tmp_path)


def test_the_headline_names_all_three_numbers_when_federating_helped():
    verdict = verdict_of(
        with_level({"federated": 0.80, "pooled": 0.81, "local-east": 0.75})
    )
    assert verdict.tone == "helped"
    assert verdict.headline == (
        "Federated training reached Dice 0.80 on patients never seen, against 0.81 "
        "with all data in one place and 0.75 for the best hospital alone."
    )
    assert "It is 0.010 below training on all data" in verdict.answer


def test_the_headline_says_plainly_that_federating_did_not_help():
    verdict = verdict_of(
        with_level({"federated": 0.70, "local-east": 0.75, "local-north": 0.6})
    )
    assert verdict.tone == "worse"
    assert "Federating did not help here" in verdict.answer
    assert "east trained alone does better by 0.050" in verdict.answer
    assert "0.75 for the best hospital alone" in verdict.headline
    assert "1 of 2 hospitals does better" in verdict.answer
    assert "better off alone: east (0.700 against 0.750)" in verdict.answer


def test_a_difference_within_the_last_decimal_is_called_none():
    verdict = verdict_of(with_level({"federated": 0.802, "local-east": 0.799}))
    assert verdict.tone == "same"
    assert "no clear difference" in verdict.answer
    # Two decimals would show both as 0.80.
    assert "0.802" in verdict.headline
    assert "0.799" in verdict.headline


def test_a_poor_result_is_not_written_as_zero():
    assert "Dice 0.002" in verdict_of(with_level({"federated": 0.0021})).headline
    assert "Dice 0.00 " in verdict_of(with_level({"federated": 0.0})).headline


def test_a_loss_that_nobody_told_has_a_sentence_and_no_empty_chart(record, page):
    assert "No hospital told it" not in page
    arm = record.arms[0]
    rounds = [
        r.model_copy(
            update={"sites": [s.model_copy(update={"loss": None}) for s in r.sites]}
        )
        for r in arm.rounds
    ]
    silent = changed(record, arms=[arm.model_copy(update={"rounds": rounds})])
    text = _Page(render_html(silent)).text
    assert "No hospital told it; with differential privacy none does" in text
    assert "no values" not in text


def test_without_baselines_the_question_stays_open():
    verdict = verdict_of(with_level({"federated": 0.8}))
    assert verdict.tone == "open"
    assert "can't say whether federating helped" in verdict.answer
    only_pooled = verdict_of(with_level({"federated": 0.8, "pooled": 0.83}))
    assert only_pooled.tone == "open"
    assert "0.030 below" in only_pooled.answer
    assert "for the best hospital" not in only_pooled.headline


def test_a_nan_is_no_result_and_never_a_zero():
    record = with_level({"federated": math.nan, "local-east": 0.7})
    verdict = verdict_of(record)
    assert verdict.tone == "open"
    assert "Dice of the federated model is not defined" in verdict.headline
    assert "nan" not in re.sub(r"[^a-z ]", "", _Page(render_html(record)).text.lower())


def test_a_local_arm_that_is_undefined_is_not_the_best_hospital():
    verdict = verdict_of(
        with_level({"federated": 0.8, "local-east": math.nan, "local-north": 0.7})
    )
    assert "0.70 for the best hospital alone" in verdict.headline


def test_no_test_patient_means_no_claim():
    base = with_level({"federated": 0.8, "local-east": 0.7})
    sites = [site.model_copy(update={"test": 0}) for site in base.sites]
    arms = [a.model_copy(update={"test": {}, "test_mean": {}}) for a in base.arms]
    record = changed(base, sites=sites, arms=arms)
    verdict = verdict_of(record)
    assert verdict.tone == "open"
    assert verdict.headline.startswith("No patient was kept for testing")
    assert "No test case at any hospital." in verdict.caveats
    assert "no result on test patients" in _Page(render_html(record)).text


def test_one_hospital_is_not_called_a_federation():
    base = run_record(("federated", "local-north"))
    record = changed(base, sites=base.sites[:1])
    verdict = verdict_of(record)
    assert verdict.tone == "open"
    assert verdict.headline.startswith("One hospital trained by itself")
    assert "nothing was federated" in verdict.answer
    assert "Federating helped" not in render_html(record)


def test_only_void_rounds_are_a_failure_whatever_the_metrics_say():
    base = with_level({"federated": 0.8, "local-east": 0.7})
    rounds = [
        r.model_copy(
            update={"outcome": "void", "validation": {}, "validation_mean": {}}
        )
        for r in base.arms[0].rounds
    ]
    stopped = {"rounds": rounds, "stopped": "void rounds", "final_round": 0}
    record = changed(base, arms=[base.arms[0].model_copy(update=stopped)])
    verdict = verdict_of(record)
    assert verdict.tone == "failed"
    assert "no round counted" in verdict.headline
    assert any("too many void rounds" in caveat for caveat in verdict.caveats)
    assert "no trained model" in _Page(render_html(record)).text


def test_void_rounds_and_refused_replies_stand_beside_the_headline(record, page):
    caveats = " ".join(verdict_of(record).caveats)
    assert "Round 5 was void" in caveats
    assert "south (refused: update is not finite, rounds 3 and 5)" in caveats
    assert "51 test cases (fewest at west-children: 6)" in caveats
    assert "A rehearsal" in caveats
    tips = [a["data-tip"] for _, a in _Page(page).tags if "data-tip" in a]
    assert tips.count("south · round 3: refused, update is not finite") == 2
    assert [a.get("class") for _, a in _Page(page).tags].count("void") == 6


def test_rounds_that_gave_up_the_optimisers_memory_are_said(record):
    def said(*anew):
        rounds = [
            r.model_copy(update={"began_anew": r.number in anew})
            for r in record.arms[0].rounds
        ]
        arm = record.arms[0].model_copy(update={"rounds": rounds})
        arms = [arm, *record.arms[1:]]
        caveats = verdict_of(record.model_copy(update={"arms": arms})).caveats
        return [c for c in caveats if "all optimisers began without memory" in c]

    assert said(1) == []  # as every run
    assert said(1, 3, 4) == [
        "In rounds 3 and 4 all optimisers began without memory: masks require this "
        "where a hospital takes part that was not in the last sum."
    ]


def test_a_site_that_never_contributed_is_named(record):
    arm = record.arms[0]
    rounds = [
        r.model_copy(
            update={
                "sites": [
                    s.model_copy(update={"outcome": "failed"})
                    if s.site == "east"
                    else s
                    for s in r.sites
                ]
            }
        )
        for r in arm.rounds
    ]
    arms = [arm.model_copy(update={"rounds": rounds})]
    caveats = " ".join(verdict_of(changed(record, arms=arms)).caveats)
    assert "east, in any round (failed, 12 rounds)" in caveats


def test_rounds_that_a_hospital_did_not_judge_are_named(record):
    federated = record.arms[0]
    rounds = [
        r.model_copy(
            update={"validation": {s: m for s, m in r.validation.items() if s != gone}}
        )
        for r in federated.rounds
        for gone in ["south" if r.number in (3, 7) else ""]
    ]
    arms = [federated.model_copy(update={"rounds": rounds})]
    caveats = " ".join(verdict_of(changed(record, arms=arms)).caveats)
    assert "Not judged: south, rounds 3 and 7. The best round was picked" in caveats
    assert not any("Not judged" in c for c in verdict_of(record).caveats)


def test_arms_of_different_length_are_not_compared_silently(record):
    short = record.arms[1].model_copy(update={"steps": 1200})
    caveats = verdict_of(changed(record, arms=[record.arms[0], short])).caveats
    assert any("2,400 optimiser steps" in c and "1,200" in c for c in caveats)
    assert not any("optimiser steps" in c for c in verdict_of(record).caveats)


@pytest.mark.parametrize(
    ("aggregation", "updates", "said", "unsaid"),
    [
        ("mean", ["in the clear"] * 2, "mean believes every", "masked"),
        ("median", ["in the clear"] * 2, "one by median, which bears", "believes"),
        ("mean", ["under masks"] * 2, "were masked", "in the clear"),
        (
            "mean",
            ["under masks", "in the clear"],
            "Of 2 rounds that counted 1",
            "one by",
        ),
    ],
)
def test_the_page_says_who_saw_the_updates_and_what_became_of_them(
    record, aggregation, updates, said, unsaid
):
    text = plan_toml(plan(federation__aggregation=aggregation, federation__min_sites=3))
    federated = record.arms[0]
    closed = [r for r in federated.rounds if r.outcome == "closed"][:2]
    rounds = [
        r.model_copy(update={"updates": u})
        for r, u in zip(closed, updates, strict=True)
    ]
    arm = federated.model_copy(update={"rounds": rounds})
    told = privacy_of(changed(record, arms=[arm], plan_toml=text))
    assert said in told
    assert unsaid not in told
    assert "no differential privacy" in told


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn"])
def test_the_page_says_that_masks_do_not_bind_the_norm_layers_of_fedbn(
    record, algorithm
):
    chosen = plan(federation__algorithm=algorithm, model__norm="batch")
    federated = record.arms[0]
    rounds = [r.model_copy(update={"updates": "under masks"}) for r in federated.rounds]
    arm = federated.model_copy(update={"rounds": rounds})
    told = privacy_of(changed(record, arms=[arm], plan_toml=plan_toml(chosen)))
    assert ("did not bind the norm layers" in told) == (algorithm == "fedbn")


@pytest.mark.parametrize(("share", "is_said"), [(0.50, False), (0.57, True)])
def test_the_page_says_who_was_more_than_half_of_a_masked_mean(record, share, is_said):
    federated = record.arms[0]
    first = federated.rounds[0]
    rest = (1.0 - share) / (len(first.sites) - 1)
    rows = [row.model_copy(update={"weight": rest}) for row in first.sites[1:]]
    rows.append(first.sites[0].model_copy(update={"weight": share}))
    masked = {"updates": "under masks", "sites": rows, "outcome": "closed"}
    arm = federated.model_copy(update={"rounds": [first.model_copy(update=masked)]})
    told = privacy_of(changed(record, arms=[arm]))
    assert (f"{first.sites[0].site} weighed 57% of a mean" in told) == is_said
    assert ("weighed" in told) == is_said


def test_the_page_says_what_dp_cost_only_if_every_hospital_told(record):
    text = plan_toml(plan(privacy__dp={"noise_multiplier": 1.0}))
    federated = record.arms[0]
    first = federated.rounds[0]
    rows = [
        row.model_copy(update={"epsilon_pld": 1.0 + n, "epsilon_prv": 1.1 + n})
        for n, row in enumerate(first.sites)
    ]

    def told(rows) -> str:
        rounds = [first.model_copy(update={"sites": rows})]
        arm = federated.model_copy(update={"rounds": rounds})
        return privacy_of(changed(record, arms=[arm], plan_toml=text))

    assert f"epsilon {0.1 + len(rows):.1f} at delta 1e-05" in told(rows)
    assert "not every hospital told" in told([*rows[:-1], first.sites[-1]])
    silent = first.sites[-1].model_copy(update={"outcome": "accepted"})
    for nonsense in (None, -1.0, math.nan, 0.1):  # of a second update
        both = {"epsilon_pld": nonsense, "epsilon_prv": nonsense}
        again = silent.model_copy(update=both)
        assert "not every hospital told" in told([*rows, again])


TOLD_IN_TENS = {"north": 4, "east": 2, "south": 1, "west-children": 17}
"""Cases of hospitals whose policy rounds; each is told as 10, or 20."""


def deployed(cases: dict[str, int] = TOLD_IN_TENS, **changes: int) -> RunRecord:
    """A real federation's record, with counts as `client.egress` lets them out."""
    base = run_record(("federated",))
    told = {name: nearest_ten(n) for name, n in cases.items()}
    sites = [
        SiteRecord(
            name=name,
            accepted=n,
            found=n,
            codes={},
            train=n,
            validation=n,
            test=n,
        ).model_copy(update=changes if name == "north" else {})
        for name, n in told.items()
    ]
    arm = base.arms[0]
    rounds = [
        r.model_copy(
            update={
                "sites": [
                    row.model_copy(
                        update={
                            "cases": told[row.site],
                            "accepted": told[row.site],
                            "found": told[row.site],
                            "steps": told[row.site],
                        }
                    )
                    for row in r.sites
                ]
            }
        )
        for r in arm.rounds
    ]
    steps = sum(row.steps for r in rounds for row in r.sites)
    arm = arm.model_copy(update={"rounds": rounds, "steps": steps})
    return changed(
        base,
        engine="deployment",
        sites=sites,
        arms=[arm],
        pictures=[],
        intake_s=None,
        device="each hospital's own machine",
    )


@given(st.integers(0, 100_000))
def test_a_number_told_in_tens_is_shown_as_a_range_that_holds_the_true_one(count):
    low, high = span([(nearest_ten(count), True)])
    assert low <= count <= high
    # And no wider: its ends are told alike.
    assert nearest_ten(low) == nearest_ten(high) == nearest_ten(count)
    assert show_told(count, False) == write.show_count(count)


def test_numbers_that_came_in_tens_are_nowhere_shown_as_exact():
    record = deployed()
    page = _Page(render_html(record))
    text = page.text
    assert text.count("1–14 of 1–14") == 3 * (1 + 12)  # table, and every reply
    assert text.count("15–24 of 15–24") == 1 + 12
    assert not re.search(r"\b[12]0 of [12]0\b", text)
    assert "18–66 training cases" in text  # 3 x 1–14, and 15–24; truth is 24
    assert (
        "One run with one seed, 18–66 test cases (fewest at one hospital: 1–14)" in text
    )
    assert "Numbers of cases and series of all hospitals are ranges" in text
    assert "does not show whether a few series were refused" in text
    assert "bar" not in [a.get("class") for _, a in page.tags]


def test_one_number_that_is_no_multiple_of_ten_shows_that_a_hospital_rounds_nothing():
    record = deployed(accepted=9, found=13)
    page = _Page(render_html(record))
    assert sites_in_tens(record) == ["east", "south", "west-children"]
    assert "Numbers of cases and series of east, south and west-children are" in (
        page.text
    )
    assert "9 of 13" in page.text
    # North has 10, exactly; one of the others may have fewer.
    assert "27–62 test cases (fewest at one hospital: 1–10)" in page.text
    assert [a.get("class") for _, a in page.tags].count("bar") == 1


def test_a_rehearsal_rounds_nothing_whatever_its_numbers_are(record):
    same = changed(deployed(), engine="in-process", intake_s=1.0)
    assert sites_in_tens(same) == []
    assert "10 of 10" in _Page(render_html(same)).text
    assert "ranges" not in " ".join(verdict_of(same).caveats)


def test_steps_are_a_range_only_where_they_would_tell_the_cases():
    by_steps = plan_toml(plan())
    by_epochs = by_steps.replace("steps = 2", "epochs = 1")
    assert parse_plan(by_epochs).training.epochs == 1
    for text, shown in ((by_steps, "600"), (by_epochs, "216–792")):
        record = changed(deployed(), plan_toml=text)
        assert steps_of(record, record.arms[0]) == shown
        assert f" {shown} " in _Page(render_html(record)).text


def test_a_real_federation_is_not_told_to_run_again_with_baselines():
    verdict = verdict_of(deployed())
    assert verdict.tone == "open"
    assert "A real federation has no baselines" in verdict.answer
    assert "(fedct evaluate)" in verdict.answer
    assert "run it again" not in verdict.answer
    assert "run it again" in verdict_of(with_level({"federated": 0.8})).answer


def test_a_real_federation_shows_no_intake_time_and_says_whose_memory_it_was(page):
    text = _Page(render_html(deployed())).text
    assert "Intake 0" not in text
    assert "Intake –" not in text
    assert "All rounds, without intake 49 min 26 s" in text
    assert "Peak memory of the hub's process 2.15 GB" in text
    assert "this run had no wire" not in text
    rehearsed = _Page(page).text
    assert "Intake and all rounds 49 min 26 s" in rehearsed
    assert "Peak memory, all hospitals in one process 2.15 GB" in rehearsed


def test_only_the_federated_model_is_called_handed_out(record, page):
    text = _Page(page).text
    assert text.count(", handed out") == 1
    assert text.count("closed, tested") == len(record.arms) - 1
    assert "whose model is handed out" in text


def test_a_model_that_is_kept_back_is_nowhere_called_handed_out(record):
    why = "run 'lung-1' hands out no model: epsilon is 9.0, expected at most 8"
    kept = changed(record, no_model=why)
    text = _Page(render_html(kept)).text
    assert verdict_of(kept).caveats[0] == f"R{why[1:]}."
    assert f"R{why[1:]}." in text
    assert "closed, not handed out" in text
    assert "model of round 11, not handed out" in text
    assert not re.search(r"(?<!not) handed out", text)


def test_a_model_of_the_last_round_is_not_called_picked(record):
    last = changed(record, plan_toml=plan_toml(plan(evaluation__final="last")))
    text = _Page(render_html(last)).text
    assert "It is the last round that counted, as the plan asks." in text
    assert "Monitored metric dice" in text
    assert not re.search(r"picked on|picked the model|[Bb]est round", text)
    best = changed(record, plan_toml=plan_toml(plan()))
    assert "It was picked on validation patients" in _Page(render_html(best)).text


def test_each_void_round_says_its_own_reason(record):
    whys = {4: "3 of 3 shares did not open", 5: "1 of 2 replies", 8: "1 of 2 replies"}
    arm = record.arms[0]
    rounds = [
        r.model_copy(update={"outcome": "void", "reason": whys[r.number]})
        if r.number in whys
        else r
        for r in arm.rounds
    ]
    void = changed(record, arms=[arm.model_copy(update={"rounds": rounds})])
    caveats = verdict_of(void).caveats
    assert (
        "Round 4 was void (3 of 3 shares did not open): the model did not change there."
        in caveats
    )
    assert (
        "Rounds 5 and 8 were void (1 of 2 replies): the model did not change there."
        in caveats
    )
    text = _Page(render_html(void)).text
    assert text.count("void: 1 of 2 replies") == 2
    assert "quorum" not in text


def test_with_one_class_a_metric_stands_once_and_with_two_in_full(record):
    twins = {"dice": 0.8, "dice/nodule": 0.8, "assd_mm": 1.5, "assd_mm/nodule": 1.5}
    arm = record.arms[0].model_copy(
        update={"test": dict.fromkeys(SITES, twins), "test_mean": twins}
    )
    one = _Page(render_html(changed(record, arms=[arm]))).text
    assert "ASSD (mm)" in one
    assert "· nodule" not in one
    two = changed(record, arms=[arm], class_names=["nodule", "lung"])
    assert "Dice · nodule" in _Page(render_html(two)).text


def test_codes_of_intake_are_a_list(record, page):
    for site in record.sites:
        for code, number in site.codes.items():
            assert f"<li>{code} × {number}</li>" in page


def test_differences_add_up_as_written():
    from server.report_view import gain_rows

    # 0.8046 − 0.7504 is 0.054, but a reader sees 0.805 and 0.750.
    level = {"federated": 0.8046, **{f"local-{site}": 0.7504 for site in SITES}}
    for row in gain_rows(with_level(level)):
        shown = float(write.show_difference(row.over_own).replace("−", "-"))
        assert row.federated is not None
        assert row.own is not None
        ours, own = float(write.show(row.federated)), float(write.show(row.own))
        assert shown == pytest.approx(ours - own, abs=1e-9)


@pytest.mark.parametrize("arms", [(), ("pooled",), ("local-north",)])
def test_a_run_without_a_federated_arm_still_renders(arms):
    page = _Page(render_html(run_record(arms))).text
    assert "No federated model was trained in this run." in page


def test_a_long_run_of_many_sites_renders():
    names = [f"hospital-{n:02d}-of-a-long-name" for n in range(20)]
    base = run_record(("federated",))
    rounds = []
    for n in range(1, 61):
        sites = [site_round(name, n) for name in names]
        values = {name: {"dice": 0.5 + n / 300} for name in names}
        round_ = (
            base.arms[0]
            .rounds[0]
            .model_copy(
                update={
                    "number": n,
                    "sites": sites,
                    "validation": values,
                    "validation_mean": mean(values),
                }
            )
        )
        rounds.append(round_)
    test = {name: {"dice": 0.7} for name in names}
    arm = base.arms[0].model_copy(
        update={"rounds": rounds, "test": test, "test_mean": {"dice": 0.7}}
    )
    sites = [base.sites[0].model_copy(update={"name": name}) for name in names]
    page = render_html(changed(base, sites=sites, arms=[arm], pictures=[]))
    assert len(page) < 3_000_000
    assert "nan" not in "".join(re.findall(r'(?:points|cx|cy|x|y)="[^"]*"', page))


@pytest.mark.parametrize("value", [0.0, 1e-7, 0.5, 1.0, 12345.0, -0.3])
def test_a_constant_curve_still_has_an_axis(value):
    from server.report_svg import scale_around, ticks

    scale = scale_around([value, value], 200.0, 0.0, floor=0.0)
    assert scale.low <= value <= scale.high
    assert 2 <= len(ticks(scale)) <= 8
    assert 0.0 <= scale(value) <= 200.0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (write.show(0.80449), "0.804"),
        (write.show(math.nan), "–"),
        (write.show(None), "–"),
        (write.show(-math.inf), "–"),
        (write.show(41.0), "41"),
        (write.show(12.345), "12.35"),
        (write.show_difference(-0.0004), "±0.000"),
        (write.show_difference(-0.05), "−0.050"),
        (write.show_difference(0.05), "+0.050"),
        (write.show_bytes(0), "0 B"),
        (write.show_bytes(999), "999 B"),
        (write.show_bytes(999_999), "1.00 MB"),
        (write.show_bytes(2_147_000_000), "2.15 GB"),
        (write.show_seconds(0.421), "0.42 s"),
        (write.show_seconds(59.7), "1 min 00 s"),
        (write.show_seconds(7500), "2 h 05 min"),
        (write.metric_label("hd95_mm"), "HD95 (mm)"),
        (write.metric_label("roc_auc"), "ROC AUC"),
        (write.metric_label("dice/lung_left"), "Dice · lung left"),
        (write.join_words(["a", "b", "c"]), "a, b and c"),
        (write.plural(2, "series"), "2 series"),
    ],
)
def test_numbers_are_written_one_way(shown, expected):
    assert shown == expected


def _models() -> list[type[BaseModel]]:
    every = [getattr(schema, name) for name in dir(schema)]
    kinds = [k for k in every if isinstance(k, type) and issubclass(k, schema.Record)]
    return [kind for kind in kinds if kind is not schema.Record]


@pytest.mark.parametrize("model", _models(), ids=lambda model: model.__name__)
def test_the_documentation_names_exactly_the_fields_of_the_schema(model):
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text("utf-8")
    section = re.search(
        rf"^### .*`{model.__name__}`\n(.*?)(?=^#|\Z)", text, re.M | re.S
    )
    assert section
    assert re.findall(r"^\| `(\w+)` \|", section[1], re.M) == list(model.model_fields)
    for field in model.model_fields.values():
        if typing.get_origin(field.annotation) is typing.Literal:
            values = [v for v in typing.get_args(field.annotation) if v != 1]
            assert all(f'"{value}"' in section[1] for value in values)
