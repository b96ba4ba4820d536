"""The cluster files: Ray takes them, what to fill in is marked, and nothing private is there."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tune.planning.devices import DEVICES, HEAD

ROOT = Path(__file__).parents[2]
AWS = ROOT / "cluster.yaml"
ON_PREMISES = ROOT / "experiments/clusters/on_premises.yaml"
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBERS = {"three": 3, "four": 4, "five": 5, "six": 6}

both = pytest.mark.parametrize("path", [AWS, ON_PREMISES], ids=["aws", "on_premises"])


def load(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


def commands(path: Path) -> list[str]:
    return [c for key, value in load(path).items() if key.endswith("_commands") for c in value]


@both
def test_ray_accepts_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = prepare_config(load(path))
    validate_config(config)
    for local in config["file_mounts"].values():
        if not local.startswith("~"):
            assert (ROOT / local).exists(), local


def test_ray_refuses_a_misspelt_one() -> None:
    config = load(AWS) | {"max_worker": 8}
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(config))


@both
def test_readme_says_how_many_lines_are_to_be_filled_in(path: Path) -> None:
    marked = len(re.findall(r"FILL IN:", path.read_text()))
    name = path.relative_to(ROOT).as_posix()
    (said,) = re.findall(
        rf"[Ff]ill in the (\w+) lines marked FILL IN in \[{re.escape(name)}\]", README
    )
    assert NUMBERS[said] == marked


@both
def test_what_is_to_be_filled_in_is_nobodys(path: Path) -> None:
    text = path.read_text()
    addresses = re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text)
    for address in addresses:  # those set aside for documents, and this machine itself
        assert address.startswith(("192.0.2.", "198.51.100.", "127.0.0.1")), address
    for found in re.findall(r"\b(?:ami|sg|fs|subnet|vpc)-\w+", text):
        assert set(found.split("-", 1)[1]) == {"0"}, found
    assert not re.search(r"/root\b|/home/|AKIA|BEGIN|\d{12}\b(?<!0{12})", text)


@both
def test_every_line_that_may_be_changed_has_a_comment(path: Path) -> None:
    before_commands = path.read_text().split("\nfile_mounts:")[0]
    bare = [
        line
        for line in before_commands.splitlines()
        if re.match(r"\s*(- )?\w+: *\S", line)
        and not line.split("#")[0].rstrip().endswith(":")
        and "#" not in line
    ]
    explained_above = {
        *("type: aws", "resources: {}", "min_workers: 0", "max_workers: 8", "priority: 0"),
        *("- DeviceName: /dev/sda1", "InstanceMarketOptions: {MarketType: spot}"),
        "head_node_type: head",
    }
    assert [line for line in bare if line.strip() not in explained_above] == []


@both
def test_commands_are_blocks_that_a_shell_can_read(path: Path) -> None:
    assert len(commands(path)) >= 5
    for command in commands(path):
        assert command.endswith("\n")  # of a `|` block: in others, YAML takes ` # ...` away
        subprocess.run(["bash", "-n"], input=command, text=True, check=True, timeout=100)


@both
def test_only_what_machines_need_of_one_another_listens(path: Path) -> None:
    starts = [c for c in commands(path) if "ray start" in c]
    assert len(starts) == 2
    for command in starts:
        assert "--node-ip-address=" in command
        assert "--dashboard-host" not in command or "--dashboard-host=127.0.0.1" in command
        for port in ("node-manager", "object-manager", "runtime-env-agent", "min-worker"):
            assert f"--{port}-port=" in command
    assert "0.0.0.0" not in path.read_text()  # noqa: S104
    assert "~/.ray/auth_token" in load(path)["file_mounts"]


def test_the_two_files_differ_only_in_their_machines() -> None:
    aws, own = load(AWS), load(ON_PREMISES)
    for same in ("cluster_name", "file_mounts", "rsync_exclude", "worker_start_ray_commands"):
        assert aws[same] == own[same]
    own_head = own["head_start_ray_commands"][-1].replace("export RAY_enable_autoscaler_v2=0\n", "")
    assert own_head == aws["head_start_ray_commands"][-1]


def test_spot_machines_come_first_and_others_are_the_same() -> None:
    kinds = load(AWS)["available_node_types"]
    spot, demand = kinds["gpu_spot"], kinds["gpu_on_demand"]
    assert spot["priority"] > demand["priority"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == demand["node_config"]
    assert load(AWS)["provider"]["cache_stopped_nodes"] is False
    assert kinds["head"]["node_config"]["InstanceType"].startswith("m")


def test_plans_price_the_machines_that_are_rented() -> None:
    rented = {
        name: kind["node_config"]["InstanceType"]
        for name, kind in load(AWS)["available_node_types"].items()
    }
    assert rented.pop("head") == HEAD.instance
    named = {*rented.values(), *re.findall(r"(g5\.\w+): one A10G", AWS.read_text())}
    priced = {DEVICES[name].price for name in ("l4", "a10g")}
    assert named == {price.instance for price in priced if price is not None}


@pytest.mark.parametrize("script", ["set_up.sh", "aws_once.sh"])
def test_scripts_are_shell(script: str) -> None:
    path = ROOT / "experiments/clusters" / script
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=100)


class Node:
    """A home and a disk for set_up.sh, with a `uv` that writes down what it was asked for."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared = folder, shared
        self.home, self.local = folder / "home", folder / "disk"
        self.asked = folder / "asked"
        repository = self.home / "apgd_repo"
        (repository / "experiments/clusters").mkdir(parents=True)
        (repository / "pyproject.toml").write_text("[project]\n")
        self.script = repository / "experiments/clusters/set_up.sh"
        self.script.write_text((ROOT / "experiments/clusters/set_up.sh").read_text())
        uv = self.home / ".local/bin/uv"
        uv.parent.mkdir(parents=True)
        uv.write_text(
            f'#!/bin/bash\necho "$*" >> {shlex.quote(str(self.asked))}\n'
            'if [ "$1" = venv ]; then mkdir -p "${@: -1}/bin"; fi\n'
            'if [ "$2" = freeze ]; then echo torch==1.2.3; fi\n'
        )
        uv.chmod(0o755)

    def set_up(self, **changed: str) -> subprocess.CompletedProcess[str]:
        variables = {"SHARED": str(self.shared), "LOCAL": str(self.local), "EXTRAS": ""} | changed
        return subprocess.run(
            ["bash", str(self.script)],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.home), **variables},
            capture_output=True,
            text=True,
            timeout=200,
        )

    @property
    def installations(self) -> list[str]:
        lines = self.asked.read_text().splitlines() if self.asked.exists() else []
        return [line for line in lines if line.startswith("pip install")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "shared").mkdir()
    return Node(tmp_path / "first", tmp_path / "shared")


def test_a_machine_is_set_up_once(node: Node) -> None:
    done = node.set_up()
    assert done.returncode == 0, done.stderr
    assert (node.home / "runs").resolve() == node.shared / "runs"
    assert node.local.stat().st_mode & 0o777 == 0o700
    again = node.set_up()
    assert again.returncode == 0
    assert "up to date" in again.stdout
    assert len(node.installations) == 1
    assert (node.home / ".bashrc").read_text().count("apgd_profile") == 1
    profile = (node.home / ".apgd_profile").read_text()
    assert f'APGD_CACHE="{node.local}/cache"' in profile
    assert "RAY_AUTH_MODE=token" in profile


def test_it_is_set_up_again_where_dependencies_change(node: Node) -> None:
    node.set_up()
    (node.home / "apgd_repo/pyproject.toml").write_text("[project]\ndependencies = ['numpy']\n")
    node.set_up()
    node.set_up(EXTRAS="aws,dashboard")
    assert len(node.installations) == 3
    assert node.installations[-1].endswith("apgd_repo[aws,dashboard]")


def test_an_installation_that_failed_is_made_again(node: Node) -> None:
    uv = node.home / ".local/bin/uv"
    good = uv.read_text()
    uv.write_text(good + 'if [ "$2" = install ]; then exit 1; fi\n')
    assert node.set_up().returncode != 0
    uv.write_text(good)
    assert node.set_up().returncode == 0
    assert len(node.installations) == 2


def test_all_machines_get_the_versions_of_the_first(node: Node, tmp_path: Path) -> None:
    node.set_up()
    (versions,) = node.shared.glob("versions-*.txt")
    assert versions.read_text() == "torch==1.2.3\n"
    assert "--constraint" not in node.installations[0]
    second = Node(tmp_path / "second", node.shared)
    second.set_up()
    assert f"--constraint {versions}" in second.installations[0]
    assert list(node.shared.glob("versions-*")) == [versions]


def test_a_share_that_is_not_mounted_is_refused(node: Node) -> None:
    done = node.set_up(SHARED=str(node.shared / "nowhere"))
    assert done.returncode != 0
    assert "SHARED must be a folder that all machines see" in done.stderr
    assert not (node.shared / "nowhere").exists()
    assert node.installations == []


def test_runs_that_lie_on_the_machine_are_not_hidden(node: Node) -> None:
    (node.home / "runs").mkdir()
    done = node.set_up()
    assert done.returncode != 0
    assert "move it away" in done.stderr


def test_the_token_is_for_its_owner_alone(node: Node) -> None:
    token = node.home / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    assert node.set_up().returncode == 0
    assert token.stat().st_mode & 0o777 == 0o600
