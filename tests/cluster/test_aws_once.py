"""aws_once.sh against a stand-in for AWS: what it makes is complete, also after an error."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_AWS = """#!{python}
import json, sys
from pathlib import Path

file = Path({state!r})
state = json.loads(file.read_text())
words = sys.argv[1:]
action = words[1]
options = dict(zip(words[2:], words[3:]))
state["asked"].append(action)


def end(text="", status=0):
    file.write_text(json.dumps(state))
    print(text, file=sys.stderr if status else sys.stdout)
    sys.exit(status)


if action == state["fails"]:
    end(f"An error occurred (UnauthorizedOperation) when calling {{action}}", 254)
elif action == "describe-vpcs":
    end("vpc-0")
elif action == "describe-security-groups":
    end("None" if state["group"] is None else "sg-0")
elif action == "create-security-group":
    state["group"] = []
    end("sg-0")
elif action == "authorize-security-group-ingress":
    rule = [options["--protocol"], options.get("--source-group") or options["--cidr"]]
    if rule in state["group"]:
        end("An error occurred (InvalidPermission.Duplicate) when calling it", 254)
    state["group"].append(rule)
    end("{{}}")
elif action == "describe-file-systems":
    there = options["--query"].endswith("State")
    end("available" if there else "fs-0" if state["files"] else "None")
elif action == "create-file-system":
    state["files"] = True
    end("fs-0")
elif action == "describe-mount-targets":
    end(" ".join(state["mounted"]))
elif action == "describe-subnets":
    end("subnet-0 subnet-1")
elif action == "create-mount-target":
    state["mounted"].append(options["--subnet-id"])
    end("{{}}")
elif action == "get-parameter":
    end("ami-0")
end(f"what is {{action}}?", 2)
"""
NOTHING: dict[str, Any] = {"group": None, "files": False, "mounted": [], "asked": [], "fails": ""}
RULES = [["-1", "sg-0"], ["tcp", "192.0.2.7/32"]]


class Aws:
    """An account in which nothing is, and the commands that talk to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = folder / "state.json"
        self.change(**NOTHING)
        self._command("aws", _AWS.format(python=sys.executable, state=str(self._state)))
        self.answers("echo 192.0.2.7")

    def _command(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)
        (self._folder / name).chmod(0o755)

    def answers(self, how: str) -> None:
        """What a question for one's own address comes to."""
        self._command("curl", f"#!/bin/bash\n{how}\n")

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state

    def change(self, **fields: Any) -> None:
        before = self.state if self._state.exists() else {}
        self._state.write_text(json.dumps(before | fields))

    def create(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "experiments/clusters/aws_once.sh"), "create"],
            env={"PATH": f"{self._folder}:/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
            timeout=200,
        )


@pytest.fixture
def aws(tmp_path: Path) -> Aws:
    return Aws(tmp_path)


def test_what_is_needed_is_made_once(aws: Aws) -> None:
    for _ in range(2):
        done = aws.create()
        assert done.returncode == 0, done.stderr
        assert "SecurityGroupIds: [sg-0]" in done.stdout
        assert "ImageId: ami-0" in done.stdout
        assert "EFS=fs-0.efs.us-east-1.amazonaws.com" in done.stdout
        assert aws.state["group"] == RULES
        assert aws.state["mounted"] == ["subnet-0", "subnet-1"]
    assert aws.state["asked"].count("create-security-group") == 1
    assert aws.state["asked"].count("create-file-system") == 1


def test_a_group_that_was_left_without_rules_gets_them(aws: Aws) -> None:
    aws.change(fails="authorize-security-group-ingress")
    refused = aws.create()
    assert refused.returncode != 0
    assert "UnauthorizedOperation" in refused.stderr
    assert aws.state["group"] == []
    aws.change(fails="")
    assert aws.create().returncode == 0
    assert aws.state["group"] == RULES


def test_another_address_is_let_in_as_well(aws: Aws) -> None:
    aws.create()
    assert aws.create(SSH_FROM="198.51.100.0/24").returncode == 0
    assert aws.state["group"] == [*RULES, ["tcp", "198.51.100.0/24"]]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("exit 6", "could not be found; say with SSH_FROM=192.0.2.7/32"),
        ("echo", "but is '/32'"),
        ("echo 2001:db8::1", "must be IPv4 addresses like 192.0.2.7/32, but is '2001:db8::1/32'"),
    ],
)
def test_nothing_is_made_without_an_address(aws: Aws, answer: str, said: str) -> None:
    aws.answers(answer)
    refused = aws.create()
    assert refused.returncode == 1
    assert said in refused.stderr
    assert not any("create" in action for action in aws.state["asked"])


@pytest.mark.parametrize(
    "addresses", ["192.0.2.7", "192.0.2.256/32", "192.0.2.7/33", "192.0.2/24", "me/32", "/32"]
)
def test_what_is_no_address_is_refused(aws: Aws, addresses: str) -> None:
    refused = aws.create(SSH_FROM=addresses)
    assert refused.returncode == 1
    assert f"but is '{addresses}'" in refused.stderr
    assert aws.state["group"] is None
