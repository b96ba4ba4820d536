"""Look the installed packages up in a database of known vulnerabilities, with pip-audit.

The exit status is 1 where one is found that `.ci/vulnerabilities.txt` does not accept. Where no
database can be reached, one line says so, and the status is 0.
"""

import json
import subprocess
import sys
from pathlib import Path

SECONDS = 300.0
SERVICES = ("pypi", "osv")
ACCEPTED = Path(__file__).with_name("vulnerabilities.txt")


def accepted(text: str) -> dict[str, str]:
    """Identifiers and reasons: lines `ID reason`, without comments."""
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.strip().partition(" ")
            if not reason.strip():
                raise SystemExit(f"{ACCEPTED.name} must give a reason for {name}")
            found[name] = reason.strip()
    return found


def judge(answer: str, known: dict[str, str]) -> tuple[int, list[str]]:
    """How many packages were looked up, and sentences on vulnerabilities that are not accepted.

    pip-audit calls a package that the database does not know skipped, and is content; so an index
    that knows none looks like one without vulnerabilities.
    """
    packages = json.loads(answer)["dependencies"]
    looked_up = [package for package in packages if "skip_reason" not in package]
    found = []
    for package in looked_up:
        for one in package["vulns"]:
            if not {one["id"], *one.get("aliases", ())} & set(known):
                fixed = ", ".join(one.get("fix_versions", ())) or "no version yet"
                found.append(
                    f"{package['name']} {package['version']}: {one['id']}, fixed in {fixed}"
                )
    return len(looked_up), found


def installed() -> str:
    """The packages of the project's environment, one `name==version` a line."""
    listed = subprocess.run(
        ["uv", "pip", "freeze", "--exclude-editable"], capture_output=True, text=True, check=True
    )
    return "".join(f"{line}\n" for line in listed.stdout.splitlines() if "==" in line)


def ask(service: str, requirements: Path) -> str | None:
    """What pip-audit answers, as JSON; None where its database cannot be reached."""
    try:
        done = subprocess.run(
            ["uvx", "pip-audit", "--vulnerability-service", service, "--requirement", requirements,
             "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off",
             "--timeout", "10"],
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, OSError):
        return None
    return done.stdout if done.stdout.startswith("{") else None


def main() -> int:
    """Ask one database after the other, until one answers."""
    known = accepted(ACCEPTED.read_text(encoding="utf-8"))
    requirements = Path(".venv") / "audited.txt"
    requirements.write_text(installed(), encoding="utf-8")
    for service in SERVICES:
        answer = ask(service, requirements)
        if answer is None:
            continue
        count, found = judge(answer, known)
        if count:
            print("\n".join([*found, f"pip-audit: {count} packages, {len(found)} vulnerabilities"]))
            return int(bool(found))
    print(f"pip-audit: SKIPPED, neither {' nor '.join(SERVICES)} can be reached from here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
