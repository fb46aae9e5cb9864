"""All benches, one after the other, and one table of what was hoped for and what was measured.

    python bench [names ...]        e.g. python bench data start

A bench prints its own details as it runs, and at the end lines of this table. About 15 minutes on two idle cores.
"""

import subprocess
import sys
import time
from pathlib import Path

from measure import HEAD, machine

BENCHES = ("start", "data", "retrieval", "accumulate", "swin", "step")  # the quick ones first


def lines(name: str) -> list[str]:
    """Run a bench, showing what it prints, and give the lines that belong into the table."""
    file = Path(__file__).with_name(f"{name}.py")
    found = []
    with subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True) as bench:
        for line in bench.stdout or ():
            print(line, end="", flush=True)
            if line.startswith("| "):
                found.append(line)
    if bench.returncode:
        found.append(f"| {name} |  | ended with {bench.returncode}, see above | no | `python bench/{name}.py` |\n")
    return found


def main(names: list[str]) -> None:
    """Run the named benches, or all."""
    start, found = time.perf_counter(), []
    where = machine(2)  # before this makes it busy
    for name in names or BENCHES:
        print(f"\n== {name}", flush=True)
        found += lines(name)
    print(f"\n{where}; {(time.perf_counter() - start) / 60:.0f} minutes\n")
    print("|", " | ".join(HEAD), "|\n|", "|".join(["---"] * len(HEAD)), "|")
    print("".join(found), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
