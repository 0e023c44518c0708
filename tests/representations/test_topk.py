"""Does one pass find the strongest pictures, exactly, however the work is cut?"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError, DataError, ModelError
from convscope.core.run import Run
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Picture, Pictures
from convscope.records.topk import TopK
from convscope.records.topk import strongest as merged_tables
from convscope.representations import topk as ranking
from convscope.representations.topk import topk
from tests.nets import Residual, sequential, state_of
from tests.oracles.topk import strongest

HEIGHT, WIDTH = 11, 8
AS_THEY_ARE = Preprocess(Framing(None, (HEIGHT, WIDTH)), (0, 0, 0), (1, 1, 1), scale=1.0)


class Held:
    """Pictures in memory that behave as Pictures; None is one that cannot be used."""

    def __init__(self, pixels: Sequence[np.ndarray | None]) -> None:
        self.pixels = list(pixels)
        self.root, self.place, self.sha256 = Path("held"), "held", "0" * 64

    def __len__(self) -> int:
        return len(self.pixels)

    def digest(self, number: int) -> bytes:
        return hashlib.sha256(self.pixels[number].tobytes()).digest()

    def read(
        self,
        framing: object,
        numbers: Sequence[int] | None = None,
        *,
        workers: int | None = None,
    ) -> Iterator[Picture]:
        for number in range(len(self)) if numbers is None else numbers:
            if self.pixels[number] is not None:
                yield Picture(number, f"{number}.png", None, self.pixels[number])

    def check_bad(self) -> None:
        pass

    batches, require_usable = Pictures.batches, Pictures.require_usable


class Exact(nn.Module):
    """Maps in small whole numbers: red − 100, minus blue's positive part (so that −0 appears),
    NaN where green is 255, always 0, and the position's number."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.fully = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        red, green, blue = x.unbind(1)
        place = torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).expand_as(red)
        broken = green * torch.where(green == 255, torch.nan, 1.0)
        maps = [red - 100, -blue.relu(), broken, 0 * red, place - 50 + 0 * red]
        return self.fully(self.maps(torch.stack(maps, 1)).amax((2, 3)))


def planted(count: int, seed: int, *, copies: bool = True) -> list[np.ndarray | None]:
    """Few different values, so that ties abound; copies, and pictures that cannot be used."""
    rng = np.random.default_rng(seed)
    pixels: list[np.ndarray | None] = []
    for number in range(count):
        picture = rng.integers(95, 100, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        picture[..., 0] += rng.integers(0, 4, dtype=np.uint8)
        picture[..., 1] += np.uint8(0)
        picture[..., 2] = rng.integers(0, 2)
        if rng.random() < 0.2:
            picture[rng.integers(HEIGHT), rng.integers(WIDTH), 1] = 255
        if copies and number and rng.random() < 0.3 and pixels[number // 2] is not None:
            picture = pixels[number // 2].copy()
        pixels.append(None if rng.random() < 0.1 and number else picture)
    return pixels


def entries(found: TopK, layer: str) -> list[list[tuple[float, int, int, int]]]:
    rows = found.rows(layer)
    table = np.stack([found.value, found.image, found.row, found.column], axis=-1)[rows]
    return [[tuple(e) for e in row if e[1] >= 0] for row in table.tolist()]


def same(a: TopK, b: TopK) -> bool:
    names = ("value", "image", "row", "column", "content", "active", "invalid", "starts")
    return all(getattr(a, n).tobytes() == getattr(b, n).tobytes() for n in names) and (
        a.layers,
        a.seen,
        dict(a.origin),
    ) == (b.layers, b.seen, dict(b.origin))


@pytest.mark.parametrize("batch", [1, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_ties_nan_copies_and_unusable_pictures_are_ranked_as_by_brute_force(
    seed: int, batch: int
) -> None:
    pixels = planted(41, seed)
    model = Exact()
    found = topk(model, Held(pixels), ["maps"], preprocess=AS_THEY_ARE, k=4, batch=batch)

    def maps_of(number: int) -> Tensor:
        seen: list[Tensor] = []
        handle = model.maps.register_forward_hook(lambda m, i, out: seen.append(out[0]))
        model(AS_THEY_ARE.batch([pixels[number]]))
        handle.remove()
        return seen[0]

    contents = [None if p is None else p.tobytes() for p in pixels]
    expected, active, invalid = strongest(maps_of, contents, 4)
    assert entries(found, "maps") == expected
    assert found.active.tolist() == active
    assert found.invalid.tolist() == invalid
    assert found.seen == sum(p is not None for p in pixels) < 41
    assert invalid[2] > 0
    assert active[1] == active[3] == 0
    values = [value for value, *_ in expected[0]]
    assert len(set(values)) < len(values)
    assert not np.signbit(found.value[found.value == 0]).any()


def test_fewer_pictures_than_k_leave_empty_places() -> None:
    found = topk(Exact(), Held(planted(1, 0)), ["maps"], preprocess=AS_THEY_ARE, k=3)
    assert found.image.tolist()[0] == [0, -1, -1]
    assert found.value[0, 1:].tolist() == [-np.inf, -np.inf]
    assert len(list(found.units("maps", 0))) == 1


def test_any_way_of_splitting_the_work_gives_the_same_bytes() -> None:
    folder = Held(planted(47, 5))
    model = sequential().eval()
    way = Preprocess(Framing(None, (33, 29)), (97, 97, 50), (2, 2, 60), scale=1.0)
    folder.pixels = [
        None if p is None else np.tile(p, (3, 4, 1))[:33, :29] + np.uint8(n % 7)
        for n, p in enumerate(folder.pixels)
    ]
    layers = ["conv1", "conv3", "fc"]

    def part(index: int, of: int) -> TopK:
        return topk(model, folder, layers, preprocess=way, k=3, batch=4, part=(index, of))

    whole = part(0, 1)
    assert whole.value[:, -1].min() > -np.inf
    for of in (2, 3, 5, 12):
        parts = [part(index, of) for index in range(of)]
        random.Random(of).shuffle(parts)
        while len(parts) > 1:
            a, b = parts.pop(), parts.pop()
            parts.insert(0, a.merge(b))
        assert same(parts[0], whole)


def test_merge_is_associative_commutative_and_idempotent() -> None:
    folder = Held(planted(50, 7))
    a, b, c = (
        topk(Exact(), folder, ["maps"], preprocess=AS_THEY_ARE, k=4, batch=2, part=(i, 3))
        for i in range(3)
    )
    wholes = [x.merge(y).merge(z) for x, y, z in itertools.permutations((a, b, c))]
    wholes += [x.merge(y.merge(z)) for x, y, z in itertools.permutations((a, b, c))]
    assert all(same(whole, wholes[0]) for whole in wholes)
    assert same(a.merge(a), a)
    assert same(a.merge(b).merge(b), a.merge(b))
    assert same(wholes[0].merge(c), wholes[0])


def table(entries: dict[int, tuple[np.float32, int]], k: int) -> dict[str, np.ndarray]:
    """The k strongest of pictures with these values and contents, by sorting, as one map's row."""
    order = sorted(entries, key=lambda number: (-entries[number][0], number))
    kept, met = list[int](), set[int]()
    for number in order:
        if entries[number][1] not in met and len(kept) < k:
            kept.append(number)
            met.add(entries[number][1])
    rest = k - len(kept)
    columns = {
        "value": ([entries[n][0] for n in kept] + [-np.inf] * rest, np.float32),
        "image": (kept + [-1] * rest, np.int64),
        "row": ([n % 7 for n in kept] + [0] * rest, np.int32),
        "column": ([n % 5 for n in kept] + [0] * rest, np.int32),
        "content": ([entries[n][1] for n in kept] + [0] * rest, np.int64),
    }
    return {name: np.array([values], kind) for name, (values, kind) in columns.items()}


def test_tables_are_merged_as_by_sorting_all() -> None:
    """Whichever entries two tables share: so merging is associative, commutative, idempotent."""
    dice = random.Random(0)
    values = [np.float32(v) for v in (np.inf, 3.5, 1, 1e-45, 0.0, -0.0, -1e-45, -2, -np.inf)]
    for _ in range(1_500):
        k, count = dice.randint(1, 5), dice.randint(0, 12)
        whole = {n: (dice.choice(values), dice.randint(1, 8)) for n in range(count)}
        one, other = (
            {n: entry for n, entry in whole.items() if dice.random() < 0.6} for _ in range(2)
        )
        merged = merged_tables(table(one, k), table(other, k), k)
        for name, expected in table({**one, **other}, k).items():
            np.testing.assert_array_equal(merged[name], expected, strict=True)


def test_parts_of_different_searches_or_that_overlap_are_not_merged() -> None:
    folder = Held(planted(30, 7))

    def search(**settings: object) -> TopK:
        return topk(Exact(), folder, ["maps"], preprocess=AS_THEY_ARE, **{"batch": 2, **settings})  # type: ignore[arg-type]

    half = search(part=(0, 2))
    for other in (
        search(part=(1, 2), batch=3),
        search(part=(1, 2), k=8),
        search(part=(2, 3)),
        topk(Exact(), folder, ["fully"], preprocess=AS_THEY_ARE, batch=2, part=(1, 2)),
    ):
        with pytest.raises(ConvscopeError, match=r"not parts of one pass|overlap"):
            half.merge(other)


def test_the_value_is_that_of_the_place_bit_for_bit() -> None:
    model = Residual().eval()
    way = Preprocess(Framing(None, (19, 24)), (97, 97, 50), (2, 2, 60), scale=1.0)
    rng = np.random.default_rng(3)
    folder = Held([rng.integers(0, 255, (19, 24, 3)).astype(np.uint8) for _ in range(12)])
    found = topk(model, folder, ["bn3", "relu#2"], preprocess=way, k=2, batch=4)
    seen: list[Tensor] = []
    model.bn3.register_forward_hook(lambda m, i, out: seen.append(out.clone()))
    with torch.no_grad():
        for start in (0, 4, 8):
            batch = way.batch(folder.pixels[start : start + 4])
            model(batch.contiguous(memory_format=torch.channels_last))
    maps = torch.cat(seen)
    for channel in range(8):
        for unit, image, value in found.units("bn3", channel):
            assert maps[image, channel][unit.at].item() == value == maps[image, channel].max()
    assert found.rows("relu#2") == slice(8, 16)


def test_a_fully_connected_unit_is_a_map_of_one_place() -> None:
    found = topk(
        Exact(), Held(planted(20, 1, copies=False)), ["fully"], preprocess=AS_THEY_ARE, k=3
    )
    assert found.value.shape == (5, 3)
    assert not found.row.any()
    assert not found.column.any()


def test_the_model_is_left_as_found_and_runs_in_evaluation_mode() -> None:
    model = sequential()  # in train mode, with dropout
    way = Preprocess(Framing(None, (33, 29)), (97, 97, 50), (2, 2, 60), scale=1.0)
    rng = np.random.default_rng(0)
    folder = Held([rng.integers(0, 255, (33, 29, 3)).astype(np.uint8) for _ in range(6)])
    before = state_of(model)
    once, again = (topk(model, folder, ["fc"], preprocess=way, k=2) for _ in range(2))
    assert state_of(model) == before
    assert same(once, again)


def test_progress_is_told_in_pictures_up_to_the_last() -> None:
    told: list[tuple[int, int]] = []
    pixels = planted(11, 2)
    pixels[-1] = None
    topk(
        Exact(),
        Held(pixels),
        ["maps"],
        preprocess=AS_THEY_ARE,
        batch=4,
        run=Run(progress=lambda done, total: told.append((done, total))),
    )
    assert told == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"k": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"part": (3, 3)}, "part"),
        ({"layers": ["map"]}, "did you mean maps"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ConvscopeError, match=fault):
        topk(
            Exact(), Held(planted(5, 0)), preprocess=AS_THEY_ARE, **{"layers": ["maps"], **settings}
        )  # type: ignore[arg-type]


def test_a_layer_that_does_not_run_on_every_picture_is_an_error() -> None:
    class Sometimes(Exact):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() == 0 else x.sum((2, 3))

    with pytest.raises(ModelError, match="maps: did not run on every picture"):
        topk(Sometimes(), Held(planted(5, 0)), ["maps"], preprocess=AS_THEY_ARE)


def test_a_folder_without_one_usable_picture_is_an_error() -> None:
    with pytest.raises(DataError, match="holds no usable picture"):
        topk(Exact(), Held([None, None]), ["maps"], preprocess=AS_THEY_ARE)


def test_a_part_without_pictures_is_empty_and_can_be_joined() -> None:
    pixels = planted(5, 3)
    whole = topk(Exact(), Held(pixels), ["maps"], preprocess=AS_THEY_ARE, k=3, batch=4)
    parts = [
        topk(Exact(), Held(pixels), ["maps"], preprocess=AS_THEY_ARE, k=3, batch=4, part=(i, 4))
        for i in range(4)
    ]
    assert [part.seen for part in parts][2:] == [0, 0]
    joined = parts[3].merge(parts[0]).merge(parts[2]).merge(parts[1])
    assert np.array_equal(joined.value, whole.value)
    assert np.array_equal(joined.image, whole.image)


def test_no_layers_are_a_line() -> None:
    with pytest.raises(ModelError, match="has no convolution to watch"):
        topk(Exact(), Held(planted(5, 3)), preprocess=AS_THEY_ARE)


def test_a_real_folder_is_mined_as_well(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "5.png").write_bytes((tmp_path / "1.png").read_bytes())
    with Pictures(tmp_path) as folder:
        found = topk(Exact(), folder, ["maps"], preprocess=AS_THEY_ARE, k=6)
    assert sorted(found.image[0].tolist()) == [-1, 0, 1, 2, 3, 4]
    assert found.seen == 6


def test_infinity_ranks_first_and_minus_infinity_last() -> None:
    class Far(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.maps(torch.log(x[:, :1] - 99) / torch.where(x[:, 1:2] == 9, 0.0, 1.0))

    pixels = [np.full((HEIGHT, WIDTH, 3), value, np.uint8) for value in (99, 104, 101, 103)]
    pixels[2][3, 4, 1] = 9
    found = topk(Far(), Held(pixels), ["maps"], preprocess=AS_THEY_ARE, k=5)
    assert found.image.tolist() == [[2, 1, 3, 0, -1]]
    assert found.value[0, [0, 3]].tolist() == [np.inf, -np.inf]
    assert (found.row[0, 0], found.column[0, 0]) == (3, 4)


def test_a_network_in_half_precision_is_mined_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).bfloat16()
    found = topk(model, Held(planted(9, 3)), ["0"], preprocess=AS_THEY_ARE, k=2)
    assert np.isfinite(found.value).all()
    assert (found.value == found.value.view(np.int32).__and__(-65536).view(np.float32)).all()


@pytest.mark.parametrize("waiting", [1, 7, 41, 64])
def test_how_many_pictures_are_taken_in_together_changes_nothing(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = topk(Exact(), Held(planted(41, 3)), ["maps"], preprocess=AS_THEY_ARE, k=4, batch=3)
    monkeypatch.setattr(ranking, "WAITING", waiting)
    late = topk(Exact(), Held(planted(41, 3)), ["maps"], preprocess=AS_THEY_ARE, k=4, batch=3)
    assert same(late, whole)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 5, 7, 4), (12, 3, 1, 9), (4, 1, 6, 5), (3, 8, 1, 1)])
def test_peaks_and_places_are_those_of_a_plain_search(
    shape: tuple[int, ...], kind: torch.dtype
) -> None:
    torch.manual_seed(0)
    maps = torch.randint(-3, 3, shape).to(kind)  # ties abound
    maps[0, 0] = -torch.inf
    maps[-1, -1, 0, 0] = torch.inf
    flat = maps.flatten(2).double().numpy()
    for layout in (torch.contiguous_format, torch.channels_last):
        peak, place = ranking.peaks(maps.contiguous(memory_format=layout))
        assert peak.flatten(1).tolist() == flat.max(2).tolist()
        assert place.flatten(1).tolist() == flat.argmax(2).tolist()


def test_a_map_with_a_nan_anywhere_has_no_peak() -> None:
    for row in range(3):
        maps = torch.zeros(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
        maps[1, 2, row, 4 - row] = torch.nan
        assert ranking.peaks(maps)[0].isnan().nonzero().tolist() == [[1, 2, 0, 0]]
