"""How is torch made deterministic, and Lightning silent, for as long as a run lasts?"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning says nothing below an error; other people's warnings are left alone."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=".*(treespec|LeafSpec|pytree|TreeSpec|pynvml).*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"tensorboard.*")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def deterministic() -> Iterator[None]:
    """Same numbers, same bits; the caller's random state and settings are given back after.

    An accelerator without a deterministic form of an operation warns, the CPU would refuse.
    """
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    with torch.random.fork_rng():
        try:
            torch.use_deterministic_algorithms(True, warn_only=torch.accelerator.is_available())
            # Filling memory that is written anyway costs time and decides nothing.
            settings.fill_uninitialized_memory = False
            yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=warned)
            settings.fill_uninitialized_memory = filled
