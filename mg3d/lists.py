"""From the words of a command line to a list of jobs: those of a table, of a file, or all combinations of fields.

table III    scale=phantom seeds=0,1,2            what TABLES["III"].jobs(...) lists
jobs.json    [{"recipe": {"scale": "demo"}}, {"transfer": {"study": "findings", "init": "run:..."}}]
recipes      scale=demo variant=paper,no-ssm seed=0,1,2       six recipes; of transfers likewise
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg3d.recipe import Plan, Recipe, one_of
from mg3d.transfer import Transfer

KINDS: dict[str, type[Plan]] = {"recipe": Recipe, "transfer": Transfer}
PARTS: dict[str, type[Plan]] = {"pretraining": Recipe, "finetuning": Transfer}


def options(parser: argparse.ArgumentParser) -> None:
    """Add what says which jobs, and how they are carried out."""
    source = parser.add_argument_group("jobs", "carry out a list of jobs, each into the folder of its run")
    which = source.add_mutually_exclusive_group()
    which.add_argument("--table", help="jobs of a table; words: scale=phantom seeds=0,1,2")
    which.add_argument("--jobs-file", type=Path, help="jobs of a JSON file, see mg3d.lists")
    which.add_argument("--recipes", action="store_true", help="words: fields of Recipe, variant=paper,no-ssm seed=0,1")
    which.add_argument("--transfers", action="store_true", help="words: fields of Transfer")
    source.add_argument("--dry-run", action="store_true", help="say what is done, what would run, and what it costs")
    source.add_argument("--notebooks", type=Path, help="folder of 02_pretrain and 05_downstream")
    cluster = parser.add_argument_group("cluster", "give the jobs to submitit")
    cluster.add_argument("--cluster", choices=("slurm", "local"), help="as job arrays; on this machine, a GPU each")
    cluster.add_argument("--hours", type=float, default=24.0, help="of a job; then it is queued again and goes on")
    cluster.add_argument("--gpus", type=int, help="of a job; default: its plan's, one")
    cluster.add_argument("--cpus", type=int, default=8, help="of a job")
    cluster.add_argument("--slurm", action="append", default=[], metavar="NAME=VALUE", help="any option of sbatch")


def listed(given: argparse.Namespace) -> list[Plan] | None:
    """The list of jobs that a command line asks for; None when it asks for none. Raises ValueError."""
    asked = given.table or given.recipes or given.transfers or given.jobs_file
    if not asked and (given.dry_run or given.cluster):
        raise ValueError("--dry-run and --cluster are for lists of jobs, e.g. --table III")
    if asked and (given.p or given.out or given.again):
        raise ValueError("-p, --out and --again are for notebooks; what jobs are given are words, name=value")
    if given.table:
        return of_table(given.table, given.words)
    if given.recipes or given.transfers:
        return of_fields("recipe" if given.recipes else "transfer", given.words)
    return of_file(given.jobs_file) if given.jobs_file else None


def of_table(name: str, words: Sequence[str]) -> list[Plan]:
    """The jobs of a table. ValueError, with the valid names, for a wrong one.

    `words` are `scale=` and `seeds=` of `Table.jobs`, `pretraining.<field>=` and `finetuning.<field>=` for all its
    recipes and transfers, and `rows=`, words of which the name of a row must hold one.
    """
    from mg3d.tables import TABLES

    one_of("table", name, TABLES)
    table, how = TABLES[name], dict[str, Any]()
    for word, value in fields(words).items():
        part, _, field = word.partition(".")
        if part in PARTS and field:
            how.setdefault(part, {})[field] = PARTS[part].value(field, value)
        elif word == "rows":
            table = table.only(*value.split(","))
        else:
            one_of(f"word of table {name}", word, ("scale", "seeds", "rows", *(f"{p}.<field>" for p in PARTS)))
            how[word] = _numbers(word, value) if word == "seeds" else value
    return list(table.jobs(**how))


def of_file(path: Path) -> list[Plan]:
    """The jobs of a JSON file. ValueError names the entry that is none."""
    try:
        entries: Any = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise ValueError("a list is expected")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no list of jobs ({error})") from error
    found: list[Plan] = []
    for number, entry in enumerate(entries, start=1):
        try:
            ((kind, content),) = entry.items()
            found.append(KINDS[kind].parse(content))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            told = error if isinstance(error, ValueError) and "unpack" not in str(error) else "a recipe or transfer"
            raise ValueError(f"{path}: entry {number}: {told}; expected e.g. {{'recipe': {{'seed': 1}}}}") from error
    return found


def of_fields(kind: str, words: Sequence[str]) -> list[Plan]:
    """All combinations of `field=value,value ...`, the last field varying fastest."""
    given = fields(words)
    rows = itertools.product(*(value.split(",") for value in given.values()))
    return [KINDS[kind].parse(dict(zip(given, row, strict=True))) for row in rows]


def fields(words: Sequence[str]) -> dict[str, str]:
    """`name=value` words as a dict. ValueError for a word that is none."""
    for word in words:
        if "=" not in word:
            raise ValueError(f"expected name=value, got {word!r}")
    return dict(word.split("=", 1) for word in words)


def _numbers(name: str, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in value.split(","))
    except ValueError:
        raise ValueError(f"{name}={value}: expected whole numbers, e.g. {name}=0,1,2") from None
