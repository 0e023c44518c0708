"""Do weights, rates and running means move as the formulas say?"""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from convscope.network.zfnet import zfnet
from convscope.training.recipe import (
    Recipe,
    Schedule,
    clip_filters,
    initialise,
    optimiser,
    plateau_state,
    restore_plateau,
    running_mean,
    schedule,
)


def rms(filters: torch.Tensor) -> list[float]:
    return [
        math.sqrt(sum(float(w) ** 2 for w in f.flatten()) / f.numel()) for f in filters.detach()
    ]


def test_filters_above_the_radius_come_back_to_it_and_no_others_move() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, (5, 3)), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Linear(3, 3))
    with torch.no_grad():
        for number in range(4):
            model[0].weight[number].normal_(0, [0.01, 0.09, 0.2, 3.0][number])
        model[2].weight[0] = 0
        model[3].weight.fill_(7.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clip_filters(model, 0.1)
    was, now = rms(before["0.weight"]), rms(model[0].weight)
    assert sum(value > 0.1 for value in was) == 2
    for old, new, filters, kept in zip(was, now, model[0].weight, before["0.weight"], strict=True):
        assert new == pytest.approx(min(old, 0.1), rel=1e-5)
        torch.testing.assert_close(filters / filters.norm(), kept / kept.norm())
    for name in ("0.bias", "2.bias", "3.weight"):
        assert torch.equal(model.state_dict()[name], before[name])
    assert model[2].weight[0].eq(0).all()


def test_one_cycle_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    recipe = Recipe(schedule="onecycle", learning_rate=1.0, warmup=0.1, final=0.2)
    cycle, rates = schedule(optimiser(nn.Linear(2, 2), recipe), recipe, 1000), []
    for step in range(1000):
        if step == 600:  # as a resumed run begins
            cycle = schedule(optimiser(nn.Linear(2, 2), recipe), recipe, 1000, step)
        rates.append(cycle.get_last_lr()[0])
        cycle.optimizer.step()
        cycle.step()
    assert rates[0] == pytest.approx(0.01)
    assert rates[49] == pytest.approx(0.5)
    assert rates[99] == rates[100] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.6)
    assert rates[999] == pytest.approx(0.2, abs=1e-5)
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_on_a_plateau_the_rate_falls_tenfold_after_as_many_epochs_as_the_recipe_waits() -> None:
    recipe = Recipe(schedule="plateau", learning_rate=0.01, patience=3, factor=0.1)
    plateau, rates = plateau_of(recipe), []
    for loss in (2.0, 1.5, 1.5, 1.6, 1.5, 1.4, 1.5, 1.5, 1.5):
        plateau.step(loss)
        kept = json.loads(json.dumps(plateau_state(plateau)))
        plateau = plateau_of(recipe)
        restore_plateau(plateau, recipe, kept)
        rates.append(plateau.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01] * 4 + [1e-3] * 4 + [1e-4])
    fresh = plateau_state(plateau_of(recipe))
    assert fresh == {"rate": 0.01, "best": None, "waited": 0}
    restore_plateau(plateau, recipe, fresh)
    assert plateau_state(plateau) == fresh


def test_a_plateau_kept_by_the_first_version_is_gone_on_from() -> None:
    recipe = Recipe(schedule="plateau", learning_rate=0.01)
    plateau = plateau_of(recipe)
    restore_plateau(plateau, recipe, {"scale": 0.1, "best": 1.5, "waited": 3})
    assert plateau_state(plateau) == {"rate": 0.001, "best": 1.5, "waited": 3}


def plateau_of(recipe: Recipe) -> Schedule:
    return schedule(optimiser(nn.Linear(2, 2), recipe), recipe, 10)


def test_the_running_mean_is_that_of_a_loop_written_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    average = running_mean(model, 0.6)
    slow = {k: v.double() for k, v in model.state_dict().items()}
    for step in range(1, 8):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
            model(torch.randn(2, 3, 6, 6))
        average.update_parameters(model)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            slow[name] = decay * slow[name] + (1 - decay) * value.double()
    for name, value in average.module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert int(value) == 7
        else:
            torch.testing.assert_close(value.double(), slow[name], rtol=1e-5, atol=1e-6)
    assert not average.module.training


def test_weight_decay_leaves_biases_and_norms_alone_if_the_recipe_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    for everywhere in (True, False):
        recipe = Recipe(weight_decay=0.5, decay_vectors=everywhere)
        groups = optimiser(model, recipe).param_groups
        decays = {p.ndim > 1: group["weight_decay"] for group in groups for p in group["params"]}
        assert decays == {True: 0.5, False: 0.5 if everywhere else 0.0}
        assert sum(len(group["params"]) for group in groups) == 6


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_optimisers_have_the_recipes_numbers(name: str) -> None:
    recipe = dataclasses.replace(
        Recipe(), optimiser=name, learning_rate=0.3, momentum=0.7, nesterov=True, beta2=0.99
    )
    made = optimiser(nn.Linear(2, 2), recipe)
    assert type(made).__name__.lower() == name
    wanted = {"momentum": 0.7, "nesterov": True} if name == "sgd" else {"betas": (0.9, 0.99)}
    for group in made.param_groups:
        assert {key: group[key] for key in wanted} == wanted
        assert group["lr"] == 0.3


def test_first_weights_have_the_spread_that_the_recipe_names() -> None:
    model = zfnet(5, width=0.5)
    own = model.conv3.weight.clone()
    initialise(model, "model", 1)
    assert torch.equal(model.conv3.weight, own)
    initialise(model, "normal", 1)
    drawn = model.conv3.weight.clone()
    for layer in (model.conv1, model.conv3, model.fc6):
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert layer.bias.eq(0).all()
    initialise(model, "kaiming", 1)
    assert float(model.conv3.weight.detach().std()) == pytest.approx(
        math.sqrt(2 / (192 * 9)), rel=0.02
    )
    assert float(model.fc6.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    initialise(model, "normal", 1)
    assert torch.equal(model.conv3.weight, drawn)
