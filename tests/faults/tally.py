"""How often each fault was tried and survived: a line per test in a CSV file, and a table of it.

uv run pytest tests/faults -m "slow or not slow" --fault-tally=faults.csv
uv run python -m tests.faults.tally faults.csv
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path


def add(path: Path, fault: str, tried: int, survived: int) -> None:
    """Put a line into the file."""
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([fault, tried, survived])


def table(path: Path) -> str:
    """The sums by fault, as a Markdown table, in the order in which they came first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with path.open(newline="", encoding="utf-8") as file:
        for fault, tried, survived in csv.reader(file):
            sums[fault][0] += int(tried)
            sums[fault][1] += int(survived)
    rows = [f"| {fault} | {tried} | {survived} |" for fault, (tried, survived) in sums.items()]
    return "\n".join(["| Fault | Tried | Survived |", "| --- | ---: | ---: |", *rows]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table(Path(sys.argv[1])))
