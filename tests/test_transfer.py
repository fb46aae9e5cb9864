"""Transfers: strict names, the study's numbers where they say 0, an identity that depends on the outcome alone."""

import dataclasses

import pytest
from test_recipe import notebook

from mg3d.recipe import SCALES
from mg3d.transfer import BUDGETS, PROBE, STUDIES, Transfer

RUN = "run:mg3d-plus-swin_b-phantom-1234abcd"


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_makes_a_transfer(study):
    for scale in ("demo", "phantom"):
        transfer = Transfer(study=study, scale=scale)
        assert (transfer.filled.steps > 0) == (STUDIES[study].budget.steps > 0)  # two take a run as it is
        assert transfer.id.startswith(f"{study}-scratch-swin_b-full-{scale}-")


def test_numbers_come_from_the_scale_unless_they_are_given():
    budget = BUDGETS["demo", "classify"]
    filled = Transfer().filled
    assert (filled.steps, filled.batch, filled.lr, filled.lr_fusion) == dataclasses.astuple(budget)
    given = Transfer(steps=7, batch=2, lr=0.1, lr_head=0.2, checkpoint=3).filled
    assert dataclasses.astuple(given) == (7, 2, 0.1, 0.2, 3)
    probe = Transfer(probe=True).filled
    assert (probe.steps, probe.lr_fusion) == (PROBE.steps, PROBE.lr_head)


def test_a_notebook_spells_a_transfer_and_a_shell_too():
    space = notebook('# Parameters\nstudy: str = "findings"\nprobe: bool = False', '# Parameters\nprobe = "true"')
    assert Transfer.from_notebook(space) == Transfer(probe=True)
    assert Transfer.from_shell(["share=0.1", "seed=2"]) == Transfer(share=0.1, seed=2)
    with pytest.raises(SystemExit, match=r"expected field=value, got 'probe'; the fields are those of mg3d\.Transfer"):
        Transfer.from_shell(["probe"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"studdy": "findings"}, ["studdy", "did you mean study", "share"]),
        ({"study": "finding"}, ["finding", "did you mean findings"]),
        ({"scale": "demos"}, ["demos", "did you mean demo", "real"]),
        ({"scale": "real"}, ["real", "findings", "SCALES"]),
        ({"init": "pretrained"}, ["init='pretrained'", "scratch", "run:"]),
        ({"init": "run:"}, ["init='run:'"]),
        ({"share": "0"}, ["share=0.0", "above 0"]),
        ({"share": "1.5"}, ["share=1.5"]),
        ({"patience": "-1"}, ["patience=-1", "negative"]),
        ({"batch": "5", "accumulate": "2"}, ["batch=5", "accumulate=2"]),
        ({"precision": "fp16"}, ["fp16", "bf16"]),
        ({"probe": "perhaps"}, ["probe", "perhaps", "bool"]),
        ({"warmup": "1"}, ["warmup"]),
        ({"scale": "phantom-100"}, ["phantom-100", "size of pre-training", "'phantom'"]),
        ({"study": "ctrate-retrieval", "steps": "9"}, ["ctrate-retrieval", "give lr and lr_head"]),
    ],
)
def test_a_wrong_field_stops_with_the_mend(fields, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the words are checked below)
        Transfer.parse(fields)
    for word in words:
        assert word in str(error.value)


def test_id_is_the_outcome_alone():
    transfer = Transfer(init=RUN)
    same = [{"checkpoint": 3}, {"resume": False}, {"steps": transfer.filled.steps}, {"encoder": "swin_b"}]
    assert {dataclasses.replace(transfer, **s).id for s in same} == {transfer.id}
    assert Transfer(encoder="swin_b").id == Transfer().id
    other = {
        "init": "scratch",
        "share": 0.1,
        "probe": True,
        "seed": 1,
        "steps": 3,
        "patience": 2,
        "scale": "phantom",
        "lr_head": 1.0,
    }
    ids = {dataclasses.replace(transfer, **{name: value}).id for name, value in other.items()}
    assert len(ids | {transfer.id}) == len(other) + 1
    assert Transfer(encoder="unet").id != Transfer().id
    assert "-1234abcd-full-demo-" in transfer.id


def test_an_id_changes_with_the_row_of_its_scale(monkeypatch):
    before = Transfer().id
    monkeypatch.setitem(SCALES, "demo", dataclasses.replace(SCALES["demo"], volumes=47))
    assert Transfer().id != before
