"""Does a recipe say what it means, and refuse what it cannot mean?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convscope.core.errors import UsageError
from convscope.training.recipe import (
    FIELDS,
    Recipe,
    changed,
    differences,
    from_toml,
    names,
    recipe,
    to_json,
    to_toml,
)


def test_the_recipes_that_come_along_can_all_be_read() -> None:
    assert names() == ("best", "demo", "paper", "tutorial")
    for name in names():
        assert recipe(name) == recipe(name)


def test_the_paper_recipe_says_what_the_paper_says() -> None:
    paper = recipe("paper")
    assert (paper.optimiser, paper.batch, paper.momentum) == ("sgd", 128, 0.9)
    assert (paper.learning_rate, paper.schedule, paper.factor) == (0.01, "plateau", 0.1)
    assert (paper.init, paper.filter_rms, paper.input_range) == ("normal", 0.1, 255)
    assert (paper.pixel_mean, paper.views, paper.epochs) == (True, 10, 70)
    assert (paper.crop, paper.size, paper.test_resize) == ("random", 224, 256)


def test_the_tutorial_recipe_says_what_the_tutorials_say() -> None:
    tutorial = recipe("tutorial")
    assert (tutorial.optimiser, tutorial.learning_rate) == ("adam", 2e-4)
    assert (tutorial.batch, tutorial.epochs, tutorial.size) == (32, 10, 224)
    assert (tutorial.crop, tutorial.scale_min, tutorial.flip) == ("resized", 0.08, 0.5)
    assert tutorial.mean == tutorial.std == (0.5, 0.5, 0.5)
    assert tutorial.model == "zfnet:width=0.5"


def test_a_recipe_survives_its_own_text() -> None:
    for name in names():
        assert from_toml(to_toml(recipe(name))) == recipe(name)


def test_every_field_is_written_and_explained_or_plain() -> None:
    assert tuple(to_json(Recipe())) == FIELDS
    assert to_toml(Recipe()).count("\n") == len(dataclasses.fields(Recipe))


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("epoch = 3", "U301", "did you mean epochs?"),
        ("lerning_rate = 0.1", "U301", "did you mean learning_rate?"),
        ("epochs = 2.5", "U302", "epochs: must be a whole number, not 2.5"),
        ("epochs = true", "U302", "epochs: must be a whole number, not true"),
        ('flip = "yes"', "U302", 'flip: must be a number, not "yes"'),
        ("nesterov = 1", "U302", "nesterov: must be true or false, not 1"),
        ("model = 5", "U302", "model: must be a text, not 5"),
        ("mean = [0.5, 0.5]", "U302", "mean: must be three numbers, not [0.5, 0.5]"),
        ('optimiser = "adma"', "U302", '"sgd" or "adam" or "adamw"'),
        ("views = 5", "U302", "views: must be 1 or 10, not 5"),
        ("epochs = 0", "U303", "epochs: must be 1 to 1e+09, not 0"),
        ("flip = nan", "U303", "flip: must be 0 to 1, not nan"),
        ("std = [1.0, 0, 1]", "U303", "std: must be above 0"),
        ("test_resize = 100", "U303", "test_resize: must be 0 or at least test_size"),
        ("pixel_mean = true\nsize = 96", "U303", "pixel_mean"),
        ('crop = "random"\ntest_resize = 0', "U303", "test_resize of at least size"),
        ("epochs 3", "U304", "is not TOML"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused_in_one_line(text: str, code: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_toml(text, "mine.toml")
    assert caught.value.code == code
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_are_changed_from_the_command_line_without_quotes() -> None:
    made = recipe("best", ["epochs=3", "model=zfnet:width=1", "mean=[0.1, 0.2, 0.3]", "flip = 0"])
    assert (made.epochs, made.model, made.mean, made.flip) == (
        3,
        "zfnet:width=1",
        (0.1, 0.2, 0.3),
        0,
    )
    assert differences(to_json(made), to_json(recipe("best")))[0] == "epochs 60 → 3"
    with pytest.raises(UsageError, match="write FIELD=VALUE"):
        changed(Recipe(), ["epochs"])


def test_a_recipe_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean tutorial"):
        recipe("tutorials")
    with pytest.raises(UsageError, match="there are best, demo, paper, tutorial"):
        recipe("x")
    with pytest.raises(UsageError, match="no such file"):
        recipe(tmp_path / "x.toml")
    (tmp_path / "mine.toml").write_text("epochs = 2")
    assert recipe(tmp_path / "mine.toml", ["batch=4"]) == Recipe(epochs=2, batch=4)


def test_best_grows_its_pictures_in_the_steps_that_were_found() -> None:
    best = recipe("best")
    expected = [96] * 11 + [112] * 10 + [128] * 11 + [144] * 10 + [160] * 18
    assert [best.size_at(epoch) for epoch in range(60)] == expected
    assert recipe("tutorial").size_at(0) == 224
