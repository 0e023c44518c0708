"""Do all processes together see what one would see, and does the network get what it expects?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convscope.core.errors import DataError
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.training.data import (
    Batches,
    Mixing,
    PictureCache,
    Shrunk,
    mixing,
    network_input,
    pixel_mean,
    steps,
    targets,
)
from tests.training.conftest import TINY

SIZE = Framing(52, (48, 48))


@pytest.fixture(scope="module")
def stock(training: Pictures) -> PictureCache:
    return PictureCache(training, Shrunk(256), memory=10**9)


def everything(batches: Batches) -> list[tuple[torch.Tensor, ...]]:
    return [(b.pixels, b.colour, b.offset, b.labels) for b in batches]


def test_an_epoch_sees_every_picture_once_and_is_the_same_with_any_number_of_threads(
    stock: PictureCache,
) -> None:
    one = everything(Batches(stock, TINY, 1))
    next(iter(Batches(stock, TINY, 1)))  # an iterator that is left alone does no harm
    many = everything(Batches(stock, TINY, 1, threads=3))
    assert [len(labels) for *_, labels in one] == [12, 12, 12, 3]
    for ours, theirs in zip(one, many, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    labels = torch.cat([labels for *_, labels in one])
    assert labels.bincount().tolist() == [13, 13, 13]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_shares_of_all_processes_are_the_one_process_batch(
    stock: PictureCache, world: int
) -> None:
    """Of four, one has no picture in the last batch of three: what it takes counts nothing."""
    whole = list(Batches(stock, TINY, 2))
    shares = [list(Batches(stock, TINY, 2, rank=r, world=world)) for r in range(world)]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        counting = [part for part in parts if part.weight]
        assert len(parts) - len(counting) == (world == 4 and step == 3)
        mine = sorted(picture.numpy().tobytes() for picture in batch.pixels)
        theirs = sorted(p.numpy().tobytes() for part in counting for p in part.pixels)
        assert mine == theirs
        # The mean over processes of weight × mean is the mean over all pictures.
        value = sum(part.weight * part.labels.double().mean() for part in parts) / world
        assert float(value) == pytest.approx(float(batch.labels.double().mean()), abs=1e-12)


def test_fewer_pictures_than_a_batch_are_a_step_though_unfull_batches_are_dropped() -> None:
    recipe = dataclasses.replace(TINY, batch=12, drop_last=True)
    assert [steps(pictures, recipe) for pictures in (1, 11, 12, 23, 24)] == [1, 1, 1, 1, 2]


def test_a_last_batch_that_is_not_full_is_a_step_unless_it_is_dropped() -> None:
    full = dataclasses.replace(TINY, batch=12, drop_last=True)
    assert [steps(pictures, TINY) for pictures in (36, 37, 39)] == [3, 4, 4]
    assert steps(39, full) == 3


def test_pictures_that_do_not_fit_into_memory_are_read_again_and_are_the_same(
    training: Pictures, stock: PictureCache
) -> None:
    none = PictureCache(training, Shrunk(256), memory=0)
    some = PictureCache(training, Shrunk(256), memory=20 * 56 * 70 * 3, workers=2)
    framing = Framing(40, (31, 37))
    for other in (none, some):
        assert np.array_equal(pixel_mean(stock, framing), pixel_mean(other, framing))
        pairs = zip(stock.take([38, 0, 21, 0]), other.take([38, 0, 21, 0]), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    one, two = everything(Batches(stock, TINY, 0)), everything(Batches(some, TINY, 0, threads=2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))


def test_without_augmentation_training_sees_what_the_network_is_used_on(
    stock: PictureCache,
) -> None:
    plain = dataclasses.replace(
        TINY, crop="centre", flip=0.0, jitter=0.0, erase=0.0, size=52, test_size=52
    )
    preprocess = Preprocess(Framing(52, (52, 52)), (90.0, 100.0, 110.0), (60.0, 65.0, 70.0), 1.0)
    batch = next(iter(Batches(stock, plain, 0)))
    seen = network_input(batch, preprocess)
    expected = preprocess.batch([pixels.numpy() for pixels in batch.pixels])
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-4)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_a_mean_picture_is_subtracted_in_training_as_in_use(stock: PictureCache) -> None:
    plain = dataclasses.replace(TINY, crop="centre", flip=0.0, jitter=0.0, erase=0.0)
    mean = np.random.default_rng(0).uniform(60, 160, (3, 48, 48))
    preprocess = Preprocess(SIZE, mean, (1.5, 2.0, 2.5), 1.0)
    batch = next(iter(Batches(stock, plain, 0)))
    expected = preprocess.batch([pixels.numpy() for pixels in batch.pixels])
    torch.testing.assert_close(network_input(batch, preprocess), expected, rtol=0, atol=1e-4)


def test_cutmix_pastes_as_much_as_it_says_and_shares_the_label(stock: PictureCache) -> None:
    recipe = dataclasses.replace(TINY, mix=1.0, mix_cut=1.0)
    found = [mixing(recipe, 0, np.random.default_rng(n)) for n in range(50)]
    batch = next(iter(Batches(stock, recipe, 0)))
    preprocess = Preprocess(SIZE, (0, 0, 0), (1, 1, 1))
    for mix in found:
        assert mix is not None
        assert mix.box is not None
        top, left, bottom, right = mix.box
        assert mix.kept == pytest.approx(1 - (bottom - top) * (right - left) / 48**2)
        plain = network_input(batch._replace(mixing=None), preprocess)
        mixed = network_input(batch._replace(mixing=mix), preprocess)
        inside = torch.zeros(48, 48, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(mixed[:, :, inside], plain.flip(0)[:, :, inside])
        assert torch.equal(mixed[:, :, ~inside], plain[:, :, ~inside])
    assert len({mix.kept for mix in found if mix}) > 40


def test_mixup_is_the_weighted_mean_of_two_pictures_and_of_their_labels(
    stock: PictureCache,
) -> None:
    batch = next(iter(Batches(stock, TINY, 0)))._replace(mixing=Mixing(0.25, None))
    preprocess = Preprocess(SIZE, (0.4, 0.5, 0.6), (0.3, 0.3, 0.3))
    plain = network_input(batch._replace(mixing=None), preprocess)
    mixed = network_input(batch, preprocess)
    torch.testing.assert_close(mixed, plain * 0.25 + plain.flip(0) * 0.75, rtol=0, atol=1e-5)
    wanted = targets(batch, 3)
    assert torch.equal(wanted.sum(1), torch.ones(12))
    first, last = int(batch.labels[0]), int(batch.labels[-1])
    expected = torch.zeros(3)
    expected[first] += 0.25
    expected[last] += 0.75
    assert torch.equal(wanted[0], expected)


def test_mixing_ends_when_the_recipe_says_so() -> None:
    recipe = dataclasses.replace(TINY, epochs=10, mix=1.0, mix_off=0.3)
    mixed = [mixing(recipe, epoch, np.random.default_rng(0)) is not None for epoch in range(10)]
    assert mixed == [True] * 7 + [False] * 3


def test_the_mean_picture_is_the_mean_of_the_pictures(stock: PictureCache) -> None:
    frames = [SIZE(Image.fromarray(stock.take([place])[0])) for place in range(len(stock))]
    expected = np.mean(np.stack(frames).astype(np.float64), axis=0)
    np.testing.assert_allclose(pixel_mean(stock, SIZE), expected.transpose(2, 0, 1), rtol=1e-6)


def test_pictures_without_a_class_teach_nothing(painted: Path) -> None:
    with Pictures(painted / "val" / "red") as flat, pytest.raises(DataError) as caught:
        PictureCache(flat, Shrunk(64), memory=10**9)
    assert caught.value.code == "D151"
