"""How long `import mg3d` takes in a fresh process, against `import monai`.

    python bench/start.py [--repeats 3]

Each measurement is a process; the time that Python takes to start and to import nothing is taken off.
"""

import subprocess
import sys
from collections.abc import Sequence

from measure import Line, arguments, in_turns, table

ROWS = {
    "nothing": "pass",
    "mg3d": "import mg3d",
    "verbs": "from mg3d import Recipe, cohort, pretrain, load",
    "monai": "import monai",
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = arguments(__doc__).parse_args(words)

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)

    start(ROWS["monai"])  # the files come from the memory of the system from now on, for every row
    found = in_turns({row: lambda code=code: start(code) for row, code in ROWS.items()}, options.repeats)
    seconds = {row: found[row] - found["nothing"] for row in ROWS}
    for row, value in seconds.items():
        print(f"{row:14}{value:7.2f} s")
    shown = f"{seconds['mg3d']:.2f} s (monai {seconds['monai']:.2f} s)"
    verbs = f"{seconds['verbs']:.2f} s (torch is most of it)"
    lines = [
        Line("`import mg3d`", "< 1.5 s", shown, seconds["mg3d"] < 1.5),
        Line("and the names that notebooks use", "", verbs, None),
    ]
    table(lines, __file__)


if __name__ == "__main__":
    main()
