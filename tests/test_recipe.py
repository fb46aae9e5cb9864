"""Recipes: strict names, coerced values, an identity that depends on the outcome alone."""

import dataclasses

import pytest

from mg3d.recipe import SCALES, Recipe


def notebook(*cells: str) -> dict:
    """A namespace as IPython leaves it after running the cells."""
    space: dict = {"In": ["", *cells]}
    for cell in cells:
        exec(cell, space)
    return space


def test_defaults_are_those_of_the_paper():
    recipe = Recipe(scale="47k")
    assert (recipe.filled.lr, recipe.filled.lr_fusion, recipe.weight_decay) == (2e-5, 1e-4, 0.01)
    assert recipe.size.shape == (128, 96, 128)
    assert (recipe.filled.batch, recipe.filled.steps) == (16, 100_000)
    assert Recipe(scale="ctrg").filled.steps == 300_000
    assert (recipe.method, recipe.variant) == ("mg3d", "paper")


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_makes_a_recipe(scale):
    recipe = Recipe(scale=scale)
    assert recipe.filled.steps > 0
    assert recipe.filled.batch > 0
    assert scale in recipe.id


def test_injected_cell_wins_and_values_take_the_type_of_their_field():
    space = notebook(
        '# Parameters\nscale: str = "demo"  # demo | phantom\nresume: bool = True\nlr: float = 0.0\nsteps: int = 0',
        '# Parameters\nscale = "1.4k"\nresume = "false"\nlr = "1e-4"\nsteps = "2e3"',
    )
    recipe = Recipe.from_notebook(space)
    assert (recipe.scale, recipe.resume, recipe.lr, recipe.steps) == ("1.4k", False, 1e-4, 2000)


def test_other_variables_of_the_notebook_are_not_parameters():
    space = notebook('# Parameters\nscale: str = "demo"', "text = 5\nbatch = object()")
    assert Recipe.from_notebook(space) == Recipe()


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ('scael = "demo"', ["scael", "did you mean scale", "variant", "seed"]),
        ('scale = "48k"', ["48k", "did you mean 47k", "demo", "ctrg"]),
        ('precision = "fp16"', ["fp16", "bf16"]),
        ('steps = "many"', ["steps", "many", "int"]),
        ("steps = 2.5", ["steps", "2.5", "int"]),
        ('resume = "perhaps"', ["resume", "perhaps", "bool"]),
        ("lr = -1.0", ["lr", "negative"]),
        ("batch = 5\naccumulate = 2", ["batch=5", "accumulate=2"]),
        ("warmup = 1.5", ["warmup"]),
        ("gpus = 0", ["gpus", "at least 1"]),
    ],
)
def test_a_wrong_parameter_stops_with_the_mend(cell, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the words are checked below)
        Recipe.from_notebook(notebook("# Parameters\n" + cell))
    for word in words:
        assert word in str(error.value)


def test_id_is_the_outcome_alone():
    recipe = Recipe()
    same = [
        Recipe(gpus=2),
        Recipe(checkpoint=3),
        Recipe(recompute=True),
        Recipe(resume=False),
        Recipe(steps=recipe.size.steps),
    ]
    assert {r.id for r in same} == {recipe.id}
    other = [
        dataclasses.replace(recipe, **{name: value})
        for name, value in {"seed": 1, "lr": 1.0, "variant": "released", "steps": 3, "text": "tiny"}.items()
    ]
    assert len({r.id for r in [*other, recipe]}) == len(other) + 1
