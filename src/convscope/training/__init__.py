"""Training: recipes, a loop of plain torch, checkpoints and the state to go on from."""

from convscope.training.recipe import from_toml, recipe

__all__ = ["from_toml", "recipe"]
