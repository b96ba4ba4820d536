"""Machines for tests of a cluster, made of Linux namespaces on this one.

Each has its own network address, host name, processes, home, `/var/tmp`, `/dev/shm` and ssh
server; a folder that all of them see stands for the NFS share. The operator, who types `ray up`,
sits on the same network. All of it lives in one outer namespace whose first process reads the
standard input: when the test is gone, however it ended, so is everything else.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from apgd.data.cache import cache_root

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = ("unshare", "nsenter", "ip", "mount", "ssh", "sshd", "ssh-keygen", "rsync")
NETWORK = "10.77.0"

_OUTER = r"""
set -eu
ip link set lo up
ip link add bridge0 type bridge
ip address add "$GATEWAY/24" dev bridge0
ip link set bridge0 up
# A /tmp of its own, but for the folders below it that are needed.
mount -t tmpfs tmpfs /run
n=0
for path in $KEEP; do mkdir -p /run/keep/$n; mount --rbind "$path" /run/keep/$n; n=$((n + 1)); done
mount -t tmpfs tmpfs /tmp
n=0
for path in $KEEP; do mkdir -p "$path"; mount --rbind /run/keep/$n "$path"; n=$((n + 1)); done
mkdir -p /tmp/ray
mount --bind "$PASSWD" /etc/passwd
echo ready
read -r _ || true
"""

_MACHINE = r"""
set -eu
hostname "$NAME"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /mnt
mkdir -p /run/sshd /mnt/ubuntu /mnt/shared
mount --bind "$FOLDER/home" /mnt/ubuntu
mount --bind "$FOLDER/var_tmp" /var/tmp
mount --bind "$SHARED" /mnt/shared
mount --bind "$FOLDER/passwd" /etc/passwd
mount --bind "$FOLDER/hosts" /etc/hosts
ip link set lo up
echo waiting
read -r _
ip link set eth0 up
ip address add "$ADDRESS/24" dev eth0
ip route add default via "$GATEWAY"
/usr/sbin/sshd -f "$FOLDER/sshd_config" -E "$FOLDER/sshd.log"
echo ready
read -r _ || true
"""

# In place of the real one, which would fetch packages: the environment has those of the tests.
_STAND_IN_UV = """\
#!{python}
import pathlib, subprocess, sys
arguments = sys.argv[1:]
if arguments[0] == "venv":
    subprocess.run([{python!r}, "-m", "venv", "--without-pip", arguments[-1]], check=True)
elif arguments[:2] == ["pip", "freeze"]:
    print("ray==0")
else:
    assert arguments[:2] == ["pip", "install"], arguments
    environment = pathlib.Path(arguments[arguments.index("--python") + 1]).parents[1]
    repository = arguments[arguments.index("--editable") + 1]
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "tests.pth").write_text("\\n".join([repository, *{packages!r}]))
    for name, module, function in {scripts!r}:
        script = environment / "bin" / name
        script.write_text(
            f"#!{{environment}}/bin/python\\nimport sys\\n"
            f"from {{module}} import {{function}}\\nsys.exit({{function}}())\\n"
        )
        script.chmod(0o755)
"""
_SCRIPTS = [("ray", "ray.scripts.scripts", "main"), ("apgd", "apgd.cli", "main")]

_SSHD = """\
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""


def reason_to_skip() -> str | None:
    """Why machines cannot be made here, or None where they can."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"needs programs that are missing: {', '.join(missing)}"
    probe = [
        "unshare", "--fork", "--pid", "--mount-proc", "--net", "--mount", "--uts", "--ipc",
        "sh", "-c", "ip link add a0 type veth peer name b0 && mount -t tmpfs tmpfs /mnt",
    ]  # fmt: skip
    tried = subprocess.run(probe, capture_output=True, text=True, timeout=120)
    return None if tried.returncode == 0 else f"needs namespaces: {tried.stderr.strip()}"


@dataclass
class Machine:
    """One machine, on or off; its disk stays when it is switched off."""

    name: str
    address: str
    folder: Path
    process: subprocess.Popen[str] | None = None
    """The outermost process; its first descendants are those of the machine."""

    def pid_of_init(self) -> int:
        """Number, outside, of the machine's process 1."""
        assert self.process is not None
        # nsenter -> unshare -> bash
        (unshare,) = psutil.Process(self.process.pid).children()
        (init,) = unshare.children()
        return int(init.pid)

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes on the machine whose names begin like this."""
        found = []
        for process in psutil.Process(self.pid_of_init()).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith(name[:15]):  # of which Linux keeps no more
                    found.append(process)
        return found

    def kill(self) -> None:
        """Pull the plug: SIGKILL to process 1, with which all others of the machine die."""
        assert self.process is not None
        os.kill(self.pid_of_init(), signal.SIGKILL)
        self.process.wait(timeout=120)
        self.process = None


@dataclass
class Machines:
    """A network of machines and their operator."""

    folder: Path
    outer: subprocess.Popen[str]
    all: list[Machine] = field(default_factory=list)

    @property
    def shared(self) -> Path:
        """The folder that all machines see as /mnt/shared."""
        return self.folder / "shared"

    def add(self, cpus: int = 1) -> Machine:
        """A further machine, switched on, on which Ray sees so many CPUs."""
        number = len(self.all) + 1
        name, folder = f"machine{number}", self.folder / f"machine{number}"
        machine = Machine(name, f"{NETWORK}.{number}", folder)
        for part in ("home/.local/bin", "var_tmp/apgd/cache"):
            (folder / part).mkdir(parents=True)
        for start in (".bashrc", ".profile"):
            usual = Path("/etc/skel", start)
            (folder / "home" / start).write_text(usual.read_text() if usual.exists() else "")
        with (folder / "home/.bashrc").open("a") as bashrc:
            bashrc.write(f"export RAY_OVERRIDE_RESOURCES='{{\"CPU\": {cpus}}}'\n")
        uv = folder / "home/.local/bin/uv"
        uv.write_text(
            _STAND_IN_UV.format(
                python=sys.executable,
                packages=[p for p in sys.path if p.endswith("-packages")],
                scripts=_SCRIPTS,
            )
        )
        uv.chmod(0o755)
        rendered = cache_root() / "rendered"  # which takes half a minute
        rendered.mkdir(parents=True, exist_ok=True)
        (folder / "var_tmp/apgd/cache/rendered").symlink_to(rendered)
        _write_users(folder / "passwd", "ubuntu", "/mnt/ubuntu")
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} {name}\n")
        (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
        shutil.copy(self.folder / "operator/.ssh/id_ed25519.pub", folder / "authorized_keys")
        _make_key(folder / "host_key")
        self.all.append(machine)
        self.switch_on(machine)
        return machine

    def switch_on(self, machine: Machine) -> None:
        """Start a machine that is off."""
        assert machine.process is None
        machine.process = subprocess.Popen(
            [
                *self._enter(),
                "unshare", "--fork", "--pid", "--mount-proc", "--net", "--mount", "--uts", "--ipc",
                "--kill-child", "bash", "-c", _MACHINE,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(machine.folder / "init.log").open("a"),
            text=True,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8",
                "NAME": machine.name,
                "ADDRESS": machine.address,
                "GATEWAY": f"{NETWORK}.254",
                "FOLDER": str(machine.folder),
                "SHARED": str(self.shared),
            },
        )  # fmt: skip
        _expect(machine.process, "waiting", machine.folder / "init.log")
        status = Path(f"/proc/{machine.pid_of_init()}/status").read_text()
        (namespaces,) = [line.split()[1:] for line in status.splitlines() if "NSpid" in line]
        plug = f"plug{machine.name.removeprefix('machine')}"
        self.operate(
            f"ip link delete {plug} 2>/dev/null; "
            f"ip link add {plug} type veth peer name eth0 netns {namespaces[1]} && "
            f"ip link set {plug} master bridge0 up"
        )
        assert machine.process.stdin is not None
        machine.process.stdin.write("\n")
        machine.process.stdin.flush()
        _expect(machine.process, "ready", machine.folder / "init.log")

    def _enter(self) -> list[str]:
        (init,) = psutil.Process(self.outer.pid).children()
        return ["nsenter", "--target", str(init.pid), "--pid", "--net", "--mount", "--ipc"]

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start what the operator types, in the repository's folder."""
        home = self.folder / "operator"
        return subprocess.Popen(
            [*self._enter(), "bash", "-c", f"cd {shlex.quote(str(REPOSITORY))}; {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                "PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": str(home),
                "LANG": "C.UTF-8",
                "RAY_USAGE_STATS_ENABLED": "0",
                "COLUMNS": "200",
            },
        )

    def operate(self, command: str, timeout: float = 300) -> str:
        """Do what the operator types; returns what was printed.

        Raises:
            AssertionError: where the command fails.
        """
        process = self.start(command)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            process.kill()
            printed = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout
            raise AssertionError(f"{command}: not done after {timeout} s\n{printed}") from None
        assert process.returncode == 0, f"{command}\n{output}"
        return output

    def on(self, machine: Machine, command: str, timeout: float = 180) -> str:
        """What a command prints on a machine, as its user."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        login = f"bash --login -i -c {shlex.quote(command)} 2>/dev/null"
        return self.operate(
            f"ssh {options} -i ~/.ssh/id_ed25519 ubuntu@{machine.address} {shlex.quote(login)}",
            timeout,
        )

    def processes(self) -> list[psutil.Process]:
        """All processes of all machines and of the operator: ours in another PID namespace."""
        own = Path("/proc/self/ns/pid").readlink()
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(OSError, psutil.NoSuchProcess):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() != own:
                    found.append(process)
        return found


def _expect(process: subprocess.Popen[str], word: str, log: Path) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line == word, f"{line!r} in place of {word!r}: {log.read_text()}"


def _write_users(path: Path, name: str, home: str) -> None:
    """A user database whose first entry of user 0 is a person, whose home ssh takes for `~`."""
    others = Path("/etc/passwd").read_text()
    path.write_text(f"{name}:*:0:0::{home}:/bin/bash\n{others}")


def _make_key(path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=120
    )


@contextmanager
def machines(folder: Path, count: int, cpus: int = 1) -> Iterator[Machines]:
    """So many machines and an operator with a key, until the end of a `with` block."""
    home = folder / "operator"
    for part in (home / ".ssh", folder / "shared"):
        part.mkdir(parents=True)
    _make_key(home / ".ssh/id_ed25519")
    _write_users(folder / "passwd", "operator", str(home))
    below_tmp = {
        path
        for path in map(str, (REPOSITORY, folder, sys.prefix, sys.base_prefix, cache_root()))
        if path.startswith("/tmp/")  # noqa: S108
    }
    cache_root().mkdir(parents=True, exist_ok=True)
    outer = subprocess.Popen(
        [
            "unshare", "--fork", "--pid", "--mount-proc", "--net", "--mount", "--ipc",
            "--kill-child", "bash", "-c", _OUTER,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "outer.log").open("a"),
        text=True,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "GATEWAY": f"{NETWORK}.254",
            "PASSWD": str(folder / "passwd"),
            "KEEP": " ".join(sorted(below_tmp)),
        },
    )  # fmt: skip
    network = Machines(folder, outer)
    try:
        _expect(outer, "ready", folder / "outer.log")
        for _ in range(count):
            network.add(cpus)
        yield network
    finally:
        alive = network.processes()
        outer.kill()
        outer.wait(timeout=120)
        _gone, left = psutil.wait_procs(alive, timeout=120)
        assert left == [], f"these outlived their machines: {left}"


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 180) -> None:
    """Wait for something to become true.

    Raises:
        AssertionError: where it does not in time.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain for {what}"
        time.sleep(0.1)
