"""Do the printed pictures put the right pixels in the right places?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from convscope.core.errors import UsageError
from convscope.drawing.tiles import (
    DISTINCT,
    block,
    enlarged,
    feature_figure,
    grid,
    heat,
    kind_map,
    kinds,
    network_figure,
    reach,
    seen_through,
    signed,
    sprite,
    stored_side,
    stretch,
)
from convscope.records.features import LayerFeatures
from convscope.records.maps import Occlusion, OcclusionExample, Projection, lowest
from convscope.studies.occlusion.figure import occlusion_figure


def flat(values: list[int], side: int) -> np.ndarray:
    """One even tile of `side` for each grey value."""
    return np.stack([np.full((side, side, 3), v, np.uint8) for v in values])


def layer(maps: int = 3, side: int = 48) -> LayerFeatures:
    """Map m's patch number j is grey 10·m + j, its projection that much below white."""
    grey = [[10 * m + j for j in range(9)] for m in range(maps)]
    patches = np.stack([flat(row, side) for row in grey])
    none = np.zeros((maps, 9), np.int32)
    return LayerFeatures(
        layer="conv5",
        kind="Conv2d",
        shape=(maps, 5, 7),
        field=(side, side),
        stride=(2, 2),
        value=none.astype(np.float32),
        image=none.astype(np.int64),
        row=none,
        column=none,
        box=np.zeros((maps, 9, 4), np.int32),
        active=np.ones(maps, np.int64),
        invalid=np.zeros(maps, np.int64),
        seen=12,
        patches=patches,
        projections=255 - patches,
        low=np.zeros(maps, np.float32),
        high=np.ones(maps, np.float32),
        rewritten=3,
        rectifiers=3,
    )


def paper() -> OcclusionExample:
    """The paper's geometry: 50 px square on 224 × 224 px, moved by 6 px."""
    places = np.arange(0, 175, 6, dtype=np.int32)
    rows, columns = np.indices((30, 30))
    likeliest = np.where((rows < 20) & (columns < 20), 4, 2)
    likeliest[29, 29] = 7
    result = Occlusion(
        probability=(0.9 - 0.001 * (rows == 14) * (columns == 3)).astype(np.float32),
        likeliest=likeliest.astype(np.int32),
        activity=(rows + columns).astype(np.float32),
        tops=places,
        lefts=places,
        patch=50,
        target=4,
        base_probability=0.95,
        base_activity=99.0,
        layer="conv5",
        channel=1,
    )
    pixels = np.zeros((3, 224, 224), np.float32)
    pixels[0, 0, 0], pixels[2, 9, 9] = 3.0, -1.0
    projection = Projection(pixels=pixels, unit="conv5:1@0,0", value=1.0)
    picture = np.zeros((224, 224, 3), np.uint8)
    return OcclusionExample(picture, "a.jpg", 4, (), result, projection)


def test_nine_tiles_stand_row_by_row_strongest_first() -> None:
    drawn = block(flat(list(range(9)), 4), gap=1)
    assert drawn.shape == (14, 14, 3)
    assert [int(drawn[5 * r, 5 * c, 0]) for r in range(3) for c in range(3)] == list(range(9))
    assert set(drawn[4, :, 0].tolist()) == {255}


@pytest.mark.parametrize(("k", "shape"), [(1, (1, 1)), (4, (2, 2)), (5, (2, 3)), (9, (3, 3))])
def test_blocks_are_as_square_as_they_can_be(k: int, shape: tuple[int, int]) -> None:
    assert grid(k) == shape


def test_a_sprite_has_patches_on_the_left_and_projections_on_the_right() -> None:
    pixels = np.asarray(sprite(layer(), 2))
    assert pixels.shape == (3 * 48, 6 * 48, 3)
    assert pixels[0, 0, 0] == 20
    assert pixels[-1, 3 * 48 - 1, 0] == 28
    assert pixels[0, 3 * 48, 0] == 235
    assert pixels[-1, -1, 0] == 227


@pytest.mark.parametrize(("side", "stored"), [(7, 49), (11, 55), (27, 54), (48, 48), (96, 96)])
def test_small_tiles_are_stored_at_a_whole_multiple(side: int, stored: int) -> None:
    assert stored_side(side) == stored


def test_few_pixels_stay_hard_when_enlarged() -> None:
    random = np.random.default_rng(0).integers(0, 256, (2, 7, 7, 3), dtype=np.uint8)
    assert (enlarged(random, 49) == random.repeat(7, axis=1).repeat(7, axis=2)).all()


def test_the_figure_puts_projections_beside_patches_for_each_chosen_map() -> None:
    figure = np.asarray(feature_figure(layer(), [2, 0], columns=2, tile=32, captions=False))
    gap, tile, between = 8, 32, 3
    block_side = 3 * tile + 2
    pair = 2 * block_side + between
    assert figure.shape == (block_side + 2 * gap, 2 * pair + 3 * gap, 3)
    for left, first in ((gap, 20), (gap + pair + gap, 0)):
        assert figure[gap, left, 0] == 255 - first
        assert figure[gap, left + block_side + between, 0] == first
        assert figure[gap + block_side - 1, left + pair - 1, 0] == first + 8


def test_captions_name_the_map_without_covering_it() -> None:
    bare = feature_figure(layer(), [1], tile=32, captions=False)
    named = feature_figure(layer(), [1], tile=32)
    assert named.height > bare.height
    assert named.width == bare.width
    below = np.asarray(named)[-bare.height + 8 :]
    assert (below == np.asarray(bare)[8:]).all()


def test_layers_of_different_width_share_one_figure() -> None:
    one = feature_figure(layer(), [0, 1], columns=2, tile=24)
    both = network_figure([(layer(), [0, 1]), (layer(), [2])], columns=2, tile=24)
    assert both.width == one.width
    assert both.height > one.height


def test_a_map_that_is_not_there_is_refused_with_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"conv5:3: no such feature map; the layer has 3") as fault:
        feature_figure(layer(), [0, 3])
    assert fault.value.code == "U204"


def test_heat_runs_from_the_ends_of_viridis_and_gets_lighter_all_the_way() -> None:
    colours = heat(np.linspace(-2.0, 6.0, 50)[None], -2.0, 6.0)[0].astype(int)
    assert colours[0].tolist() == [68, 1, 84]
    assert colours[-1].tolist() == [253, 231, 37]
    light = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()


def test_what_is_no_number_is_grey() -> None:
    drawn = heat(np.array([[np.nan, 1.0]]), 0.0, 1.0)
    assert drawn[0, 0].tolist() == [128, 128, 128]
    assert drawn[0, 1].tolist() == [253, 231, 37]


def test_zero_is_grey_in_a_signed_map_however_lopsided() -> None:
    drawn = signed(np.array([[0.0, 1.0, -8.0]])).astype(int)
    assert np.ptp(drawn[0, 0]) <= 2
    assert drawn[0, 2, 2] > drawn[0, 2, 0] + 50
    assert drawn[0, 1, 0] > drawn[0, 1, 2]


def test_one_scale_for_all_keeps_weak_values_faint() -> None:
    assert stretch(np.array([-1.0, 0.0, 1.0, 3.0, 9.0]), -1.0, 3.0).tolist() == [
        0,
        64,
        128,
        255,
        255,
    ]


def test_the_paper_s_raster_starts_at_the_first_square_s_centre() -> None:
    assert reach(paper().occlusion) == (22.0, 22.0, 180.0, 180.0)


def test_the_worst_place_is_the_lowest_value() -> None:
    assert lowest(paper().occlusion.probability) == (14, 3)


def test_classes_that_won_are_listed_by_how_often_and_lettered_inside_their_area() -> None:
    found = kinds(paper().occlusion.likeliest)
    assert [(kind.index, kind.count) for kind in found] == [(2, 499), (4, 400), (7, 1)]
    for kind in found:
        assert paper().occlusion.likeliest[kind.place] == kind.index
    assert 8 <= found[1].place[0] <= 11
    assert 8 <= found[1].place[1] <= 11


def test_more_classes_than_colours_end_in_one_grey_rest() -> None:
    likeliest = np.repeat(np.arange(12), np.arange(12, 0, -1))[:77].reshape(7, 11)
    found = kinds(likeliest.astype(np.int32))
    assert len(found) == len(DISTINCT)
    assert found[-1].index == -1
    assert sum(kind.count for kind in found) == 77
    colours = kind_map(likeliest.astype(np.int32), found)
    assert tuple(colours[0, 0]) == DISTINCT[0]
    assert tuple(colours[-1, -1]) == DISTINCT[-1]


def test_a_projection_is_scaled_jointly_over_its_colours() -> None:
    example = paper()
    assert example.projection is not None
    drawn = seen_through(example.projection)
    assert drawn[0, 0].tolist() == [255, 64, 64]
    assert drawn[9, 9].tolist() == [64, 64, 0]


@pytest.mark.parametrize("projected", [True, False])
def test_the_occlusion_figure_has_five_panels_side_by_side(projected: bool) -> None:
    example = paper() if projected else dataclasses.replace(paper(), projection=None)
    figure = occlusion_figure(example)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title.startswith("(c)")] == ["(c) its projection"]
    panels = [axes for axes in figure.axes if axes.images]
    edges = [axes.get_position().x0 for axes in panels]
    assert len(panels) == 4 + projected
    assert edges == sorted(edges)
    square, activity, *_ = panels
    covered = np.argwhere(np.asarray(square.images[0].get_array())[..., 0] == 128)
    assert (covered.min(axis=0).tolist(), len(covered)) == ([84, 18], 2500)
    left, right, bottom, top = activity.images[1].get_extent()
    assert (left, right, bottom, top) == (21.5, 201.5, 201.5, 21.5)
