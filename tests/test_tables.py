"""The tables list what to run and set our numbers beside the printed ones; each is tested by being a row of TABLES."""

import numpy as np
import pytest
from finished import done

from mg3d import train
from mg3d.cells import Row, command
from mg3d.grid import ANOTHER, NO_COHORT, OFFICIAL, SYNTHETIC, setting, wide
from mg3d.heads import NO_POOL, NO_TEXT, _readings
from mg3d.objectives.readings import OURS, TERMS, VARIANTS
from mg3d.paper import COLUMNS, PRINTED
from mg3d.recipe import SCALES, SMALLER, Recipe
from mg3d.tables import MEASURED, TABLES
from mg3d.transfer import REAL, STUDIES, Transfer

IDS = [f"v{i}" for i in range(40)]
TRUE = np.random.default_rng(0).integers(0, 2, (40, 2))
HOW = {"scale": "phantom", "seeds": (0, 1, 2), "finetuning": {"study": "findings", "probe": True}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))


def finish(job, rng, *, signal: float = 1.0, **found):
    if isinstance(job, Recipe):
        return done(job)
    scores = signal * TRUE + rng.normal(size=TRUE.shape)
    found = found or {"test": {"auroc": (0.7 + signal / 20, 0.6, 0.8)}}
    kept = {"ids": IDS, "patients": IDS, "predictions": scores, "targets": TRUE}
    return done(job, **found, **kept)


@pytest.mark.parametrize("name", PRINTED)
def test_a_table_of_the_paper_has_its_rows_and_columns(name):
    assert tuple(TABLES[name].rows) == tuple(PRINTED[name])
    assert tuple(TABLES[name].columns) == COLUMNS[name]
    printed = [cell.printed for cell in TABLES[name].cells(scale=REAL)]
    assert printed == [value for row in PRINTED[name].values() for value in row.values()]


@pytest.mark.parametrize("scale", [*SMALLER, REAL])
@pytest.mark.parametrize("name", TABLES)
def test_jobs_can_start_once_each_and_in_order(name, scale):
    jobs = TABLES[name].jobs(scale=scale, seeds=(0, 1))
    assert len({job.id for job in jobs}) == len(jobs)
    made = set()
    for job in jobs:
        if isinstance(job, Recipe):
            train.check(job)
            made.add(job.id)
        else:
            assert job.init == "scratch" or job.run in made
    assert made <= {job.run for job in jobs if isinstance(job, Transfer)}
    one_a_seed = {job.seed for job in jobs if isinstance(job, Recipe)}
    assert one_a_seed == ({0} if scale == REAL else {0, 1})
    assert {job.seed for job in jobs if isinstance(job, Transfer)} == {0, 1}


@pytest.mark.parametrize("name", TABLES)
def test_claims_are_about_rows(name):
    table = TABLES[name]
    assert {row for claim in table.claims for row in claim} <= set(table.rows)
    assert len(table.claims) >= len(table.rows) - 1


def test_columns_are_metrics_of_their_studies():
    """Fields of STUDIES where the paper's metric is the study's, and the same study in other words."""
    for title, column in MEASURED.items():
        study = STUDIES[column.study]
        assert column.metric == study.metric or title.startswith("BLEU-")
        assert column.reads == (study.task in ("align", "retrieve"))


def test_a_column_says_how_it_is_fine_tuned():
    cells = {(c.row, c.column): c for c in TABLES["learning"].cells(scale="phantom", seeds=(3,))}
    ((recipe, transfer),) = cells["plus", "probe, 10 %"].jobs
    assert recipe is not None
    assert (recipe.variant, transfer.probe, transfer.share, transfer.seed) == ("plus", True, 0.1, 3)
    assert transfer.init == f"run:{recipe.id}"
    tuned = cells["from scratch", "fine-tuned"].jobs[0][1]
    assert (tuned.init, tuned.probe, tuned.share) == ("scratch", False, 1.0)
    real = {c.column: c.why for c in TABLES["learning"].cells(scale=REAL)}
    assert real["probe"] == NO_COHORT
    assert not real["by prompts, zero-shot"]


def test_a_term_alone_is_the_one_with_a_weight():
    weights = {term: [getattr(VARIANTS[f"only-{term}"], name) for name in (*TERMS, *OURS)] for term in (*TERMS, *OURS)}
    assert weights == {term: [float(name == term) for name in (*TERMS, *OURS)] for term in weights}
    alone = [row.variant for name, row in TABLES["terms"].rows.items() if name.endswith(" alone")]
    assert alone == [f"only-{term}" for term in weights]


def test_only_ours_has_a_feature_of_a_whole_report():
    for row in TABLES["II"].rows.values():
        recipe = row.recipe(scale="demo", seed=0)
        if recipe.method == "mg3d":
            assert _readings(recipe)
        else:
            with pytest.raises(ValueError, match="those of mg3d alone are read"):
                _readings(recipe)


def test_rows_differ_as_the_paper_says():
    sizes = [SCALES[row.recipe(scale="phantom", seed=0).scale].volumes for row in TABLES["V"].rows.values()]
    assert sizes == [100, 200, 800, 1600]
    real = [row.recipe(scale=REAL, seed=0).scale for row in TABLES["V"].rows.values()]
    assert real == ["1.4k", "2.8k", "10k", "47k"]
    assert Row(method="").recipe(scale="demo", seed=0) is None
    half = Row(halved=True).recipe(scale=REAL, seed=0)
    assert (half.lr, half.lr_fusion) == (1e-5, 5e-5)
    assert len(TABLES["scaling"].cells(scale="phantom")) == 10
    assert len(TABLES["scaling"].cells(scale=REAL)) == 8


def test_a_row_that_pools_no_text_asks_no_study_of_texts():
    asked = {"scale": "demo", "seeds": (0,), "finetuning": {"study": "ctrate-zeroshot"}}
    cells = {cell.row: cell for cell in TABLES["III"].cells(**asked)}
    mute = [name for name, cell in cells.items() if cell.why == NO_POOL]
    assert mute
    assert all("CML" in name for name in mute)
    assert all(not cells[name].jobs for name in mute)
    assert any(cell.jobs for cell in cells.values())


def test_nothing_is_done_and_every_cell_says_what_to_run():
    frame = TABLES["II"].frame(scale="demo", seeds=(0,))
    assert frame["ours"].isna().all()
    empty = frame[frame["missing"] == ""]
    assert set(empty["difference"]) == {NO_TEXT}
    assert len(empty) == 13  # retrieval; what fine-tunes by prompts trains projections of its own
    first = frame["missing"].iloc[0]
    assert first == "python -m mg3d.train method=mae3d encoder=vit_b  # and 1 more"
    assert set(TABLES["VIII"].frame(scale=REAL)["difference"]) == {OFFICIAL, ""}
    claims = TABLES["III"].contrasts(scale="demo", seeds=(0,))
    assert claims["says"].iloc[0] == "missing: python -m mg3d.tune study=msd06 encoder=swin_b"
    assert claims["paper"].round(2).tolist() == [2.67, 1.57, 1.51, 0.57, 0.36, 0.93]


def test_a_command_says_what_differs_from_the_defaults():
    assert command(Recipe(variant="word", steps=5)) == "python -m mg3d.train variant=word steps=5"
    words = command(Transfer(init="run:x-1", data="a folder")).split(maxsplit=3)
    assert words == ["python", "-m", "mg3d.tune", "init=run:x-1 'data=a folder'"]


def test_what_is_done_is_shown_with_its_interval_and_no_difference_on_the_phantom():
    rng, table = np.random.default_rng(1), TABLES["IV"]
    for job in table.jobs(**HOW):
        finish(job, rng)
    frame = table.frame(**HOW)
    assert set(frame["runs"]) == {"3 of 3"}
    assert set(frame["missing"]) == {""}
    assert frame["paper"].tolist() == [61.54, 62.11, 62.22, 63.40]
    assert set(frame["difference"]) == {ANOTHER}
    assert frame["column"].iloc[0].endswith("; in the paper MSD Task 06 Dice")
    assert frame["ours"].tolist() == pytest.approx([75.0] * 4)
    assert (frame["low"] < 75).all()
    assert (frame["high"] > 75).all()
    assert wide(frame).loc["all"].iloc[0].startswith("75.0 (")
    claims = table.contrasts(**HOW)
    assert set(claims["says"]) == {"no difference"}


def test_orderings_are_told_from_noise():
    rng, table = np.random.default_rng(2), TABLES["IV"]
    how = HOW | {"finetuning": {}, "pretraining": {"steps": 7}}
    signal = {"no-sfr": 0.2, "no-dfa": 8.0, "no-ssm": 1.0, "paper": 1.0}
    values = {}
    for job in table.jobs(**how):
        if isinstance(job, Recipe):
            done(job)
            values[job.id] = signal[job.variant]
        else:
            dice = np.clip(0.5 + values[job.run] / 20 + 0.01 * rng.normal(size=(40, 1)), 0, 1)
            mean = float(dice.mean())
            done(job, test={"dice": (mean, mean - 0.01, mean + 0.01)}, ids=IDS, patients=IDS, classes=["t"], dice=dice)
    claims = table.contrasts(**how).set_index("against")
    assert claims.loc["no SFR", "says"] == "as in the paper"
    assert claims.loc["no DFA", "says"] == "against the paper"
    assert claims.loc["no SSM", "says"] == "no difference"
    assert set(table.frame(**how)["difference"]) == {SYNTHETIC}


def test_real_numbers_stand_beside_the_printed_ones():
    rng, table = np.random.default_rng(3), TABLES["IV"]
    for job, value in zip(
        [j for j in table.jobs(scale=REAL) if isinstance(j, Transfer)],
        np.repeat([0.3, 0.62, 0.62, 0.9], 3),
        strict=True,
    ):
        finish(job, rng, test={"dice": (float(value), float(value) - 0.02, float(value) + 0.02)})
    said = table.frame(scale=REAL).set_index("row")["difference"]
    assert said["no SFR"] == "-31.5 (-33.5 to -29.5)"
    assert said["no DFA"] == "no difference"
    assert said["all"].startswith("+26.6")
    spread = TABLES["I"].cells(scale=REAL)[0]
    finish(spread.jobs[0][1], rng, test={"accuracy": (0.95, 0.93, 0.97)})
    assert TABLES["I"].frame(scale=REAL)["difference"].iloc[0] == "no difference"  # 89.05 ± 2.80 of three divisions


def test_an_undefined_score_is_said():
    job = TABLES["III"].jobs(**HOW)[0]
    finish(job, np.random.default_rng(4), test={})
    frame = TABLES["III"].frame(**HOW)
    assert "gives no 'auroc'; it gives nothing" in frame["difference"].iloc[0]
    assert frame["missing"].iloc[0].endswith("# and 1 more")


def test_a_recipe_of_a_notebook_is_a_setting():
    demo = setting(Recipe(batch=4), steps=2)
    assert demo["seeds"] == (0,)
    assert demo["pretraining"] == {"steps": 2, "batch": 4}
    jobs = TABLES["III"].only("scratch", "word").jobs(**demo)
    assert [type(job) for job in jobs] == [Transfer, Recipe, Transfer]
    assert jobs[1] == Recipe(variant="word", batch=4, steps=2)
    assert setting(Recipe(steps=7), steps=2)["pretraining"] == {"steps": 7}
    real = setting(Recipe(scale="47k", gpus=4, seed=5), steps=2)
    assert real == {"scale": REAL, "seeds": (5, 6, 7), "pretraining": {"gpus": 4}, "finetuning": {}}
    with pytest.raises(ValueError, match=r"unknown scale of a table 'phantom-100'.*valid: demo, phantom"):
        setting(Recipe(scale="phantom-100"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"scale": "ctrg"}, ["scale of a table 'ctrg'", "demo, phantom, real"]),
        ({"pretraining": {"stesp": 3}}, ["stesp", "did you mean steps"]),
        ({"finetuning": {"studies": "x"}}, ["did you mean study"]),
        ({"finetuning": {"study": "msd60"}}, ["did you mean msd06"]),
    ],
)
def test_refusals(how, words):
    with pytest.raises(ValueError, match="unknown") as caught:
        TABLES["III"].jobs(**how)
    assert all(word in str(caught.value) for word in words)
