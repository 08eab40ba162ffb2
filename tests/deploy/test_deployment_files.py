"""Files that others read: systemd, container engines, Kubernetes. Each is judged by its
reader's own validator, and all of them must agree with one another and with `fedct`."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from deploy.cli import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = sorted((DEPLOY / "compose").glob("*.yaml"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
CONTAINERFILE = DEPLOY / "containers" / "Containerfile"
BUILD = DEPLOY / "containers" / "build.sh"
SUPERVISOR_STOPS_WITHIN_S = 30
YAML_STYLE = (
    "{extends: default, rules: {line-length: {max: 88}, document-start: disable}}"
)
STUBS = ("sysinit", "basic", "shutdown", "multi-user", "network")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def said(*command: object, **options: object) -> tuple[int, str]:
    """Exit code and everything that a checker said."""
    argv = [str(word) for word in command]
    if (BIN / argv[0]).exists():
        argv[0] = str(BIN / argv[0])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ended = subprocess.run(argv, check=False, **pipes, **options)
    return ended.returncode, ended.stdout


def systemd_analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    return found


def unit(path: Path) -> dict[str, str]:
    """The [Service] section; a key that stands twice keeps its last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read_string(path.read_text())
    return dict(parser["Service"])


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def service(path: Path) -> dict:
    (only,) = documents(path)[0]["services"].values()
    return only


def stateful_set(kind: str) -> dict:
    found = documents(DEPLOY / "kubernetes" / f"{kind}.yaml")
    return next(d for d in found if d["kind"] == "StatefulSet")


def pods() -> list[dict]:
    found = [d for path in MANIFESTS for d in documents(path)]
    whole = [d["spec"] for d in found if d["kind"] == "Pod"]
    return whole + [
        d["spec"]["template"]["spec"] for d in found if d["kind"] == "StatefulSet"
    ]


def stage(name: str) -> str:
    """The lines of a stage of the Containerfile."""
    text = CONTAINERFILE.read_text()
    return re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", text, re.M | re.S)[1]


def test_there_is_a_file_of_each_kind_for_hub_and_site():
    assert [p.name for p in UNITS] == ["fedct-client.service", "fedct-server.service"]
    assert [p.stem for p in COMPOSE] == ["hub", "site"]
    assert [p.stem for p in MANIFESTS] == ["hub-setup", "hub", "site-setup", "site"]


@pytest.fixture
def machine(tmp_path) -> Path:
    """A root folder with our units, a `fedct`, and the units that those name."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in STUBS:
        (units / f"{name}.target").write_text("[Unit]\nDescription=stub\n")
    for path in UNITS:
        shutil.copy(path, units)
    command = tmp_path / "opt/fedct/bin/fedct"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.stem)
def test_systemd_takes_each_unit_without_a_word(path, machine):
    code, words = said(systemd_analyze(), f"--root={machine}", "verify", path.name)
    assert (code, words) == (0, "")


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.stem)
def test_systemd_rates_the_exposure_of_each_unit_below_two_of_ten(path):
    command = (systemd_analyze(), "security", "--offline=true", "--threshold=20")
    code, words = said(*command, "--no-pager", path)
    assert code == 0, words


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.stem)
def test_a_unit_keeps_foreign_folders_off_the_import_path_and_never_gives_up(path):
    section = unit(path)
    assert "PYTHONSAFEPATH=1" in section["Environment"].split()
    assert section["User"] == "fedct"
    assert section["Restart"] == "always"
    assert "network-online" not in path.read_text()


def test_only_the_site_may_use_a_gpu():
    server, client = (
        unit(DEPLOY / f"systemd/fedct-{n}.service") for n in ("server", "client")
    )
    assert server["PrivateDevices"] == "yes"
    assert "PrivateDevices" not in client
    assert client["DevicePolicy"] == "closed"
    assert client["DeviceAllow"] == "char-nvidia* rw"


def test_the_user_of_the_units_is_one_that_systemd_makes(tmp_path):
    found = shutil.which("systemd-sysusers")
    if found is None:
        pytest.skip("systemd-sysusers is not installed (Debian package systemd)")
    (tmp_path / "etc").mkdir()
    file = DEPLOY / "systemd/fedct.sysusers.conf"
    code, words = said(found, f"--root={tmp_path}", file)
    assert code == 0, words
    assert "fedct:" in (tmp_path / "etc/passwd").read_text()


def test_compose_files_follow_the_compose_specification():
    schema = ("--builtin-schema", "vendor.compose-spec")
    code, words = said("check-jsonschema", *schema, *COMPOSE)
    assert code == 0, words


def test_manifests_are_what_kubernetes_takes():
    code, words = said("kubernetes-validate", "--strict", *MANIFESTS)
    assert code == 0, words
    assert words.count(" passed ") == sum(len(documents(p)) for p in MANIFESTS)


def test_yaml_is_clean():
    code, words = said("yamllint", "--strict", "-d", YAML_STYLE, *COMPOSE, *MANIFESTS)
    assert (code, words) == (0, "")


def test_the_containerfile_is_clean():
    code, words = said("hadolint", CONTAINERFILE)
    assert (code, words) == (0, "")


def test_only_the_hub_s_image_has_an_nginx_and_no_image_runs_as_root():
    assert "nginx" in re.findall(r"^    apt-get install.*", stage("hub"), re.M)[0]
    for name in ("debian", "packages", "fedct", "site"):
        assert "nginx" not in re.sub(r"^#.*", "", stage(name), flags=re.M)
    for name in ("fedct", "hub"):
        *_, last = re.findall(r"^USER (.*)$", stage(name), re.M)
        assert last == "10001:10001"


def test_the_build_script_is_clean():
    code, words = said("shellcheck", BUILD)
    assert (code, words) == (0, "")


@pytest.mark.parametrize("kind", ["hub", "site"])
def test_nothing_kills_a_supervisor_while_it_is_stopping(kind):
    verb = {"hub": "server", "site": "client"}[kind]
    section = unit(DEPLOY / f"systemd/fedct-{verb}.service")
    compose = service(DEPLOY / f"compose/{kind}.yaml")
    pod = stateful_set(kind)["spec"]["template"]["spec"]
    graces = (section["TimeoutStopSec"], compose["stop_grace_period"])
    seconds = [int(grace.removesuffix("s")) for grace in graces]
    seconds.append(pod["terminationGracePeriodSeconds"])
    assert min(seconds) > SUPERVISOR_STOPS_WITHIN_S
    assert section["KillMode"] == "mixed"  # or its programs are told at the same time


@pytest.mark.parametrize("path", COMPOSE, ids=lambda p: p.stem)
def test_a_composed_container_has_no_right_it_does_not_need(path):
    compose = service(path)
    assert compose["read_only"] is True
    assert compose["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in compose["security_opt"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "user"} & {*compose}


def test_a_pod_has_no_right_it_does_not_need():
    user = re.search(r"^USER (\d+):(\d+)$", stage("fedct"), re.M)
    assert len(pods()) == 4
    for pod in pods():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert (context["runAsUser"], context["runAsGroup"]) == (
            int(user[1]),
            int(user[2]),
        )
        assert pod["automountServiceAccountToken"] is False
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("kind", ["hub", "site"])
def test_there_is_one_pod_and_no_probe_that_ends_a_round(kind):
    found = stateful_set(kind)
    assert found["spec"]["replicas"] == 1
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert "livenessProbe" not in container
    assert "startupProbe" not in container


def test_nobody_can_call_a_site():
    assert "ports" not in service(DEPLOY / "compose/site.yaml")
    found = documents(DEPLOY / "kubernetes/site.yaml")
    (policy,) = (d["spec"] for d in found if d["kind"] == "NetworkPolicy")
    assert policy["podSelector"] == {}
    assert policy["ingress"] == []
    assert "Ingress" in policy["policyTypes"]


def test_a_site_asks_for_a_gpu_and_only_reads_the_ct():
    compose = service(DEPLOY / "compose/site.yaml")
    (device,) = compose["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    (data,) = (v for v in compose["volumes"] if isinstance(v, dict))
    assert data["read_only"] is True
    (container,) = stateful_set("site")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == "/data")
    assert mount["readOnly"] is True


def test_the_port_is_the_one_a_new_hub_listens_on():
    from server.hub import HubFile

    port = HubFile(name="hub.example").port
    assert f"EXPOSE {port}\n" in stage("hub")
    published = service(DEPLOY / "compose/hub.yaml")["ports"]
    assert published == [f"${{FEDCT_PORT:-{port}}}:${{FEDCT_PORT:-{port}}}"]
    (container,) = stateful_set("hub")["spec"]["template"]["spec"]["containers"]
    assert [p["containerPort"] for p in container["ports"]] == [port]


def test_every_image_is_of_this_version():
    wanted = {f"fedct-{kind}:{VERSION}" for kind in ("hub", "site")}
    images = [service(path)["image"] for path in COMPOSE]
    images += [c["image"] for pod in pods() for c in pod["containers"]]
    assert {image.rstrip("}").split("/")[-1] for image in images} == wanted
    assert f"ARG VERSION={VERSION}\n" in stage("fedct")


def commands() -> set[tuple[str, ...]]:
    """Every `fedct` command line that any of the files starts."""
    found = [shlex.split(unit(path)["ExecStart"])[1:] for path in UNITS]
    for path in COMPOSE:
        found += [service(path)["command"], service(path)["healthcheck"]["test"][2:]]
    for container in (c for pod in pods() for c in pod["containers"]):
        found += [container["args"]] if "args" in container else []
        if "readinessProbe" in container:
            found.append(container["readinessProbe"]["exec"]["command"][1:])
    for line in CONTAINERFILE.read_text().splitlines():
        if words := re.search(r"CMD (\[.*\])$", line):
            argv = yaml.safe_load(words[1])
            found.append(argv[1:] if argv[0] == "fedct" else argv)
    return {tuple(argv) for argv in found}


def test_fedct_knows_every_command_that_the_files_start():
    assert {argv[:2] for argv in commands()} == {
        (who, what) for who in ("server", "client") for what in ("start", "status")
    }
    for argv in commands():
        who, what, folder, *options = argv
        kind = {"server": "hub", "client": "site"}[who]
        assert folder == f"/var/lib/fedct/{kind}"
        verb = typer.main.get_command(app).commands[who].commands[what]
        with verb.make_context(what, [folder, *options]) as context:
            assert folder in map(str, context.params.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--base"], "--base got no value"),
        (["--what", "x"], "got --what"),
        (["--target", "both"], "expected hub or site"),
        (["--wheelhouse", "nowhere"], "expected a wheelhouse"),
    ],
)
def test_the_build_script_refuses_what_it_can_not_build(arguments, words, tmp_path):
    code, output = said(BUILD, *arguments, cwd=tmp_path)
    assert code == 2
    assert words in output


@pytest.mark.parametrize(
    ("requirements", "words"),
    [
        ("# 1 wheels for Python 3.12\nfedct==0.1.0 --hash=x\n", "another Python"),
        ("# 1 wheels for Python 3.11\ntorch==2.13.0 --hash=x\n", "holds no fedct"),
    ],
)
def test_the_build_script_refuses_a_wheelhouse_for_others(
    requirements, words, tmp_path
):
    (tmp_path / "requirements.txt").write_text(requirements)
    code, output = said(BUILD, "--wheelhouse", tmp_path)
    assert code == 2
    assert words in output
