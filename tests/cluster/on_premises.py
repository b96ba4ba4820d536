"""The cluster of experiments/clusters/on_premises.yaml, made on machines of a test."""

import re
import subprocess
from pathlib import Path

from tests.cluster.machines import REPOSITORY, Machine, Machines, wait_until
from tune.records import Kind, RecordStore

FILE = "experiments/clusters/on_premises.yaml"
SHORT = "--methods task_arithmetic doge_ta --trials 2"
"""Added to smoke runs, which have four methods otherwise."""


def filled_in(text: str, values: dict[str, str]) -> str:
    """A cluster file whose lines marked FILL IN have got the values, as a person would give them.

    Args:
        text: the file.
        values: by the name before `:` or `=` in its line.

    Raises:
        AssertionError: where a marked line has no value, or a value no line.
    """
    unused = dict(values)
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        if in_list and line.lstrip().startswith("- "):
            continue  # an item of a list that was replaced
        in_list = False
        if "FILL IN:" not in line:
            lines.append(line)
            continue
        found = re.match(r"(\s*(?:export )?(\w+)(?:: *|=))", line)
        assert found is not None
        assert found[2] in unused, f"no value for the line {line!r}"
        lines.append(found[1].rstrip(" ") + (" " if ":" in found[1] else "") + unused.pop(found[2]))
        in_list = line.split("#")[0].rstrip().endswith(":")
    assert unused == {}, f"no line for {unused}"
    return "\n".join(lines) + "\n"


def readme_commands() -> list[str]:
    """The commands of the README's section for machines of one's own."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = readme.split("### Machines of your own\n")[1].split("\n#")[0]
    blocks = re.findall(r"```\n(.*?)```", section, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


class OnPremises:
    """The cluster, as its operator sees it."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        head, *workers = machines.all
        (machines.shared / "apgd").mkdir()
        self.file = machines.folder / "on_premises.yaml"
        self.file.write_text(
            filled_in(
                (REPOSITORY / FILE).read_text(),
                {
                    "head_ip": head.address,
                    "worker_ips": str([worker.address for worker in workers]),
                    "ssh_user": "ubuntu",
                    "ssh_private_key": "~/.ssh/id_ed25519",
                    "SHARED": "/mnt/shared/apgd",
                },
            )
        )
        self.fetched = machines.folder / "fetched"

    @property
    def runs(self) -> Path:
        """The shared folder of runs."""
        return self.machines.shared / "apgd/runs"

    def as_typed(self, command: str) -> str:
        """A command of the README with this test's environment, cluster file and folder."""
        command = command.replace("uv run ", "").replace(FILE, str(self.file))
        return command.replace("'~/runs/' runs/", f"'~/runs/' {self.fetched}/")

    def do(self, command: str, timeout: float = 300) -> str:
        """Do what the README says."""
        return self.machines.operate(self.as_typed(command), timeout)

    def wait_for_all(self, status: str) -> None:
        """Wait until that command says that all machines have joined."""
        everybody = f"\n {len(self.machines.all)} local.cluster.node"
        wait_until(lambda: everybody in self.do(status), "all machines to join", 300)

    def start(self, name: str) -> subprocess.Popen[str]:
        """Submit a short smoke run into the folder of that name."""
        return self.machines.start(self.as_typed(self._submission(name)))

    def finish(self, name: str) -> str:
        """Submit a short smoke run and wait for its end; what it printed."""
        return self.do(self._submission(name), timeout=500)

    def _submission(self, name: str) -> str:
        return (
            f"uv run ray submit {FILE} experiments/full_repro.py -- --smoke {SHORT} "
            f"--run-dir runs/{name} --experts-dir runs/{name}-experts"
        )

    def log(self, name: str) -> str:
        """The log of a run."""
        path = self.runs / name / "run.log"
        return path.read_text() if path.exists() else ""

    def experts(self, name: str, file: str = "") -> int:
        """How many experts of a run have been begun, or have that file."""
        return len(list((self.runs / f"{name}-experts").glob(f"*/{file}")))

    def listening(self, machine: Machine) -> set[str]:
        """Addresses and ports, `10.77.0.1:22`, on which a machine can be reached from others."""
        printed = self.machines.on(machine, "ss -Hltn")
        addresses = {line.split()[3] for line in printed.splitlines() if "LISTEN" in line}
        return {a for a in addresses if not a.startswith(("127.", "[::1]", "[::ffff:127."))}


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """All results of a run, to the last bit."""
    store = RecordStore(folder)
    return {
        f"{kind} {record.method} {record.variant} {record.seed} {sorted(record.params.items())}":
            dict(record.scores)
        for kind in Kind
        for record in store.all(kind)
    }  # fmt: skip
