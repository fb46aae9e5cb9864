"""The verbs: which volumes a recipe takes, what stops before any work, and what a finished run gives back."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from volumes import chest, write_nifti

from mg3d import SCALES, Recipe, cohort, load, pretrain
from mg3d.data.corpora import MissingCorpus
from mg3d.objectives.readings import VARIANTS
from mg3d.recipe import Scale
from mg3d.train import choose, listed, main, where
from mg3d.types import Case

PHANTOMS = Scale("phantom", 30, 6, 2, 4, (64, 32, 64), shrink=16, lr=1e-3, lr_fusion=1e-3, test=4)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MG3D_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setitem(SCALES, "phantoms", PHANTOMS)
        yield tmp_path_factory


def cases(n: int) -> list[Case]:
    return [Case(f"p{i // 2}_{i}", f"p{i // 2}", "train", Path(f"{i}.nii.gz"), "report") for i in range(n)]


def test_scales_are_nested_and_keep_patients_together():
    everything = cases(200)
    chosen = [{c.id for c in choose(everything, volumes=n)} for n in (20, 50, 120, 0)]
    assert [len(c) for c in chosen] == [20, 50, 120, 200]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    assert {c.id for c in choose(everything[::-1], volumes=50)} == chosen[1]  # whatever the corpus's order
    assert len({i.split("_")[0] for i in chosen[0]}) == 10  # 20 volumes of 10 patients
    assert [c.id for c in choose(everything, volumes=0)] == [c.id for c in everything]


def test_a_real_corpus_brings_test_cases_to_those_who_test(tmp_path, home):
    """Pre-training leaves them alone; a study and a probe have them."""
    rows = ["id,volume,report,patient,split"]
    for i, split in enumerate(("train", "train", "valid", "test", "test")):
        write_nifti(tmp_path / f"{i}.nii", chest(seed=i))
        rows.append(f"v{i},{i}.nii,No nodule.,p{i},{split}")
    table = tmp_path / "all.csv"
    table.write_text("\n".join(rows))
    recipe = Recipe(scale="folder", data=str(table), text="tiny")
    for tested, expected in ((False, 0), (True, 2)):
        cases = listed(recipe, tested=tested, progress=False).cases
        assert sum(c.split == "test" for c in cases) == expected
        assert sum(c.split == "train" for c in cases) == 2


def test_what_is_done_starts_no_processes(home, monkeypatch):
    recipe = Recipe(scale="phantoms", text="tiny", seed=3)
    run = pretrain(recipe)
    monkeypatch.setattr("mg3d.distributed.launch", lambda recipe: pytest.fail("processes were started"))
    assert pretrain(dataclasses.replace(recipe, gpus=2)).path == run.path


def test_a_variant_that_has_changed_is_no_longer_that_of_its_runs(home, monkeypatch):
    recipe = Recipe(scale="phantoms", text="tiny", seed=3)
    run = pretrain(recipe)
    monkeypatch.setitem(VARIANTS, "paper", dataclasses.replace(VARIANTS["paper"], sharp=2.0))
    for use in (lambda: pretrain(recipe), lambda: load(run)):
        with pytest.raises(ValueError, match=r"'paper' has changed .*: sharp was 1\.0, is 2\.0"):
            use()
    assert run.done


def test_no_phantom_is_refused(home):
    found = cohort(Recipe(scale="phantoms", text="tiny"), progress=False)
    assert found.prepared.quarantine == []
    counts = {s: sum(e.case.split == s for e in found.prepared.entries) for s in ("train", "valid", "test")}
    assert counts == {"train": 30, "valid": 6, "test": 4}
    page = str(found.audit())
    assert "30" in page


def test_a_run_from_the_shell_is_the_run_of_the_notebook(home, capsys):
    main(["scale=phantoms", "text=tiny", "seed=3"])
    recipe = Recipe(scale="phantoms", text="tiny", seed=3)
    run = pretrain(recipe)
    assert capsys.readouterr().out.strip() == str(run.path)
    assert run.done
    assert run.recipe == recipe
    assert list(run.metrics["step"]) == [1, 2]
    assert {"mim", "mlm", "sfr", "cml", "ssm", "dfa", "rank", "valid_mim"} <= set(run.metrics)
    model, other = load(run), load(run)
    assert not model.training
    encoder = run.weights("encoder")
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, encoder[name])
        assert torch.equal(value, other.encoder.state_dict()[name])
    assert not any(k.startswith("text.") for k in run.weights("model"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "mg3dd"}, ["mg3dd", "mg3d"]),
        ({"encoder": "swin"}, ["swin_b", "vit_b"]),
        ({"variant": "papper"}, ["papper", "released"]),
    ],
)
def test_a_wrong_name_stops_before_any_work(home, fields, words):
    with pytest.raises(ValueError, match="unknown") as error:
        pretrain(Recipe(scale="phantoms", seed=9, **fields))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("scale", ["47k", "1.4k", "ctrg", "folder"])
def test_missing_data_say_what_where_and_how_to_get_it(home, scale, tmp_path):
    recipe = Recipe(scale=scale, data=str(tmp_path / "nowhere"))
    with pytest.raises(MissingCorpus) as error:
        pretrain(recipe)
    assert str(tmp_path / "nowhere") in str(error.value)
    assert "Where to get it" in str(error.value)


def test_data_lie_where_the_recipe_says(home):
    assert where(Recipe(scale="47k", data="~/ct")) == Path("~/ct").expanduser()
    assert where(Recipe(scale="47k")).name == "ctrate"


def test_the_shell_refuses_what_is_no_field(home):
    with pytest.raises(SystemExit, match="field=value"):
        main(["demo"])
    with pytest.raises(ValueError, match="did you mean seed"):
        main(["sede=1"])


def test_accumulated_parts_train_too(home):
    run = pretrain(Recipe(scale="phantoms", text="tiny", accumulate=2, seed=5))
    assert np.isfinite(run.metrics["loss"]).all()
