"""One run, one folder: its recipe, its metrics, its checkpoints, its weights.

    runs/<id>/recipe.json           the recipe; of a fine-tuning, transfer.json
              readings.json         of a pre-training: the fields of its variant
              metrics.jsonl         one line a step
              checkpoints/step-00000120.pt + .json    the last two; the JSON (written last) holds step and checksum
              model.safetensors     everything that learnt       encoder.safetensors   the volume encoder alone
              done.json             written last of all

Every write is atomic, so at any moment the folder says exactly how far the run is.
"""

import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from mg3d import paths
from mg3d.recipe import AnyPlan, Plan, Recipe

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

KEEP = 2  # checkpoints: the last one and, should it be damaged, the one before


class DamagedRun(RuntimeError):
    """A run folder whose files contradict each other; the message names the file and the mend."""


@final
class Run:
    """A handle on a run's folder. Cheap: nothing is read until asked for."""

    def __init__(self, path: Path):
        self.path = path

    def __repr__(self) -> str:
        return f"Run({self.path.name}: {'done' if self.done else f'step {self.step}'})"

    @classmethod
    def of(cls, plan: Plan) -> "Run":
        """The run of a plan, there or not."""
        return cls(paths.runs() / plan.id)

    @classmethod
    def open(cls, plan: Plan) -> "Run":
        """The run of a recipe, its folder made when there is none. With resume=False an old one is put aside first."""
        run = cls.of(plan)
        if not plan.resume and run.path.exists():
            _put_aside(run.path)
        if not (run.path / plan.FILE).exists():
            run.path.mkdir(parents=True, exist_ok=True)
            paths.write_atomic(run.path / plan.FILE, json.dumps(asdict(plan), indent=1).encode())  # pyright: ignore
        return run

    def plan(self, kind: type[AnyPlan]) -> AnyPlan:
        """What the folder was made for: a Recipe or a Transfer. DamagedRun when its file is not there or not whole."""
        file = self.path / kind.FILE
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise DamagedRun(f"{file}: not readable as JSON ({error}); delete the folder and start again") from error
        known = {f.name for f in fields(kind)}  # pyright: ignore[reportArgumentType]
        return kind(**{k: v for k, v in content.items() if k in known})

    @property
    def recipe(self) -> Recipe:
        """The recipe that the folder was made for."""
        return self.plan(Recipe)

    def keep_readings(self, config: Any) -> None:
        """Write down what the name of the recipe's variant means: the fields of its config, a dataclass."""
        content = json.dumps(asdict(config), indent=1).encode()
        paths.write_atomic(self.path / "readings.json", content)

    def check_readings(self, config: Any) -> None:
        """Raise ValueError where the recipe's variant has changed since the run was made, naming the fields.

        A field that did not exist then counts as its default. A run that wrote nothing down is let pass.
        """
        file = self.path / "readings.json"
        if not file.exists():
            return
        try:
            then = asdict(type(config)()) | json.loads(file.read_text())
        except (ValueError, TypeError) as error:
            raise DamagedRun(f"{file}: no readings ({error}); delete the folder and start again") from error
        now = json.loads(json.dumps(asdict(config)))  # as JSON keeps them: a tuple is a list
        changed = [f"{name} was {then[name]!r}, is {value!r}" for name, value in now.items() if then[name] != value]
        if changed:
            raise ValueError(
                f"{self.path}: variant {self.recipe.variant!r} has changed since this run: {'; '.join(changed)}; "
                "give the new one a name of its own, or start again with resume=False"
            )

    @property
    def done(self) -> bool:
        """True when the run has reached its last step and its weights are written."""
        return (self.path / "done.json").exists()

    @property
    def step(self) -> int:
        """Steps that the last whole checkpoint holds."""
        steps = self._checkpoints()
        return steps[-1] if steps else 0

    @property
    def metrics(self) -> "pd.DataFrame":
        """metrics.jsonl as a table, one row a line, columns as logged."""
        import pandas as pd

        return pd.DataFrame(list(self._lines()))

    @property
    def last(self) -> dict[str, float | int]:
        """The last line of metrics.jsonl, empty where there is none."""
        lines = list(self._lines())
        return lines[-1] if lines else {}

    def log(self, line: Mapping[str, float | int]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(dict(line)) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: a continued run logs it again."""
        kept = [json.dumps(line) + "\n" for line in self._lines() if line["step"] <= step]
        paths.write_atomic(self.path / "metrics.jsonl", "".join(kept).encode())

    def _lines(self) -> Iterator[dict[str, float | int]]:
        file = self.path / "metrics.jsonl"
        for text in file.read_text().splitlines() if file.exists() else ():
            with suppress(ValueError):  # the last line may be cut off by a kill
                yield json.loads(text)

    # checkpoints -----------------------------------------------------------------------------------------------

    def _checkpoints(self) -> list[int]:
        return sorted(int(p.stem.split("-")[1]) for p in (self.path / "checkpoints").glob("step-*.json"))

    def _file(self, step: int, suffix: str) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}{suffix}"

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint whole, then forget those older than the last two."""
        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        (self.path / "checkpoints").mkdir(exist_ok=True)
        paths.write_atomic(self._file(step, ".pt"), content)
        record = {"step": step, "sha256": hashlib.sha256(content).hexdigest()}
        paths.write_atomic(self._file(step, ".json"), json.dumps(record).encode())
        for old in self._checkpoints()[:-KEEP]:
            self._file(old, ".json").unlink()
            self._file(old, ".pt").unlink(missing_ok=True)

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the last checkpoint that is whole; None when there is none yet.

        A damaged one is named in a warning and the one before is taken; DamagedRun when none is whole.
        """
        import torch

        steps = self._checkpoints()
        for step in reversed(steps):
            file = self._file(step, ".pt")
            try:
                content = file.read_bytes()
                if hashlib.sha256(content).hexdigest() != json.loads(self._file(step, ".json").read_text())["sha256"]:
                    raise ValueError("its checksum is not the one that was written")
                return step, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(f"{file}: damaged ({error}); looking for an older one", stacklevel=2)
        if steps:
            raise DamagedRun(
                f"{self.path / 'checkpoints'}: no whole checkpoint left; delete {self.path} to start again"
            )
        return None

    # results ---------------------------------------------------------------------------------------------------

    def finish(self, weights: Mapping[str, Mapping[str, "Tensor"]], summary: Mapping[str, Any]) -> None:
        """Write `<name>.safetensors` for each set of weights, then done.json; the checkpoints are no longer needed."""
        from safetensors.torch import save

        for name, tensors in weights.items():
            whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            paths.write_atomic(self.path / f"{name}.safetensors", save(whole))
        paths.write_atomic(self.path / "done.json", json.dumps(dict(summary), indent=1).encode())
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def weights(self, name: str) -> dict[str, "Tensor"]:
        """The tensors of `<name>.safetensors`. DamagedRun when the file is missing or cut off."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        file = self.path / f"{name}.safetensors"
        try:
            return load(file.read_bytes())
        except (OSError, SafetensorError) as error:
            state = "done" if self.done else "not done"
            raise DamagedRun(f"{file}: {error}; the run is {state}, run it again with resume=False") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; RuntimeError when another one has it. A killed holder frees it."""
        with (self.path / ".lock").open("a") as file:
            try:
                import fcntl  # not on Windows, where two runs of one recipe at once are the user's to avoid

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass
            except OSError as error:
                raise RuntimeError(f"{self.path}: another process is working on this run") from error
            yield


def find(kind: type[Plan] = Recipe, **where: Any) -> list[Run]:
    """Runs whose recipe has the given fields, oldest first: `find(variant="paper", scale="demo")`.

    Of fine-tunings: `find(Transfer, study="findings")`.
    """
    folders = sorted(paths.runs().glob(f"*/{kind.FILE}"), key=os.path.getmtime)
    runs = [Run(f.parent) for f in folders if not f.parent.name.startswith(".")]
    return [r for r in runs if all(getattr(r.plan(kind), k) == v for k, v in where.items())]


def _put_aside(path: Path) -> None:
    """Rename a run's folder to `.old-<n>-<id>`, which `find` does not list."""
    n = sum(1 for _ in path.parent.glob(f".old-*-{path.name}"))
    path.rename(path.with_name(f".old-{n}-{path.name}"))
