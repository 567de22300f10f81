"""Matrices between Gaussians and cells: against resizing whole images, and against the reference.

The bilinear weights here come from float64, torch's from the images' dtype: in float32 a weight of
an image of a hundred pixels differs by some 1e-5 at most, its share in a sum by less.
"""

import pytest
import torch
import torch.nn.functional as F

from pyext import runtime
from pyext.ops import splat
from pyext.reference import splat as reference
from tests.ops.splat_scenes import cast, near_cuts, random_scene, random_weights

small = pytest.mark.numerics_small
modes = pytest.mark.parametrize("mode", ["weight", "count"])

# (width, height) of the image, of the grid: divisors, none, one axis only, finer than the image.
GRIDS = [
    ((48, 32), (3, 2)),
    ((48, 32), (12, 8)),
    ((40, 33), (7, 5)),
    ((37, 21), (1, 1)),
    ((17, 23), (17, 23)),
    ((17, 19), (40, 3)),
    ((20, 18), (60, 50)),
]
grids = pytest.mark.parametrize("size, grid", GRIDS, ids=str)


def resize(images, height, width):
    """[V, h, w, D] to [V, height, width, D], by torch's bilinear rule."""
    resized = F.interpolate(
        images.movedim(-1, 1), (height, width), mode="bilinear", align_corners=False
    )
    return resized.movedim(1, -1)


def drawn(image, n=40, cameras=2, dtype=torch.float32, **options):
    scene = random_scene(n, *image, cameras=cameras, dtype=dtype, backgrounds=False, **options)
    return scene, splat.rasterization(**scene)[2]


def assert_near(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def assert_sorted_rows(matrix):
    crow, col = matrix.crow_indices(), matrix.col_indices()
    assert crow.dtype == torch.int64 and crow[0] == 0 and crow[-1] == len(col)
    row = torch.repeat_interleave(torch.arange(matrix.shape[0]), crow.diff())
    assert ((row.diff() > 0) | (col.diff() > 0)).all()
    assert (matrix.values() != 0).all()


both = pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=small), torch.float64], ids=["float32", "float64"]
)


@both
@grids
@modes
@pytest.mark.parametrize("normalize", ["mass", "count", None])
def test_lifting_cells_is_lifting_resized_maps(size, grid, mode, normalize, dtype):
    (width, height), (w, h) = size, grid
    _, meta = drawn(size, dtype=dtype)
    maps = random_weights(torch.empty(2, h, w, 3)).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for mask in (None, torch.rand(2, height, width, generator=generator) < 0.7):
        options = {"mode": mode, "normalize": normalize, "mask": mask}
        cells = splat.unproject_cells(meta, h, w, **options)
        dense = splat.unproject(resize(maps, height, width), meta, **options)
        assert_sorted_rows(cells.lift_matrix)
        assert_near(cells.lift(maps), dense.values, 1e-5 if dtype == torch.float32 else 1e-12)
        # Without channels the sums run over vectors of pixels in the same order.
        assert_near(cells.mass, dense.mass, 1e-6)
        assert torch.equal(cells.count, dense.count)


@both
@grids
def test_rendering_cells_is_resizing_the_rendering(size, grid, dtype):
    w, h = grid
    scene, meta = drawn(size, dtype=dtype)
    cells = splat.unproject_cells(meta, h, w)
    assert_sorted_rows(cells.render_matrix)
    colors, _, _ = splat.rasterization(**scene)
    expected = resize(colors, h, w)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert_near(cells.render(scene["colors"]), expected, tolerance)


@small
def test_rendering_ones_gives_alpha():
    scene, meta = drawn((40, 33))
    _, alphas, _ = splat.rasterization(**scene)
    cells = splat.unproject_cells(meta, 7, 5)
    assert_near(cells.render(torch.ones(40, 1)), resize(alphas, 7, 5))


@pytest.mark.parametrize("grid", [(3, 2), (7, 5), (50, 3)], ids=str)
@modes
def test_agreement_with_the_reference(grid, mode):
    w, h = grid
    scene, meta = drawn((40, 33), dtype=torch.float64)
    mask = ~near_cuts(meta)
    _, _, exact = reference.rasterization(**cast(scene, torch.float64))
    got = splat.unproject_cells(meta, h, w, mode=mode, mask=mask)
    want = reference.unproject_cells(exact, h, w, mode=mode, mask=mask)
    assert got.lift_matrix._nnz() > 100 and got.render_matrix._nnz() > 20
    assert_near(got.lift_matrix.to_dense(), want.lift_matrix.to_dense(), 1e-12)
    assert_near(got.render_matrix.to_dense(), want.render_matrix.to_dense(), 1e-12)
    assert_near(got.mass, want.mass, 1e-12)
    assert torch.equal(got.count, want.count)


@small
def test_a_gaussian_over_many_tiles_has_each_cell_once():
    scene, meta = drawn((48, 48), n=5, cameras=1, size=(0.5, 1.0))
    cells = splat.unproject_cells(meta, 5, 5, normalize=None)
    assert len(meta["flatten_ids"]) > 3 * 5
    assert_sorted_rows(cells.lift_matrix)
    # Rows of the bilinear rule sum to one.
    assert_near(cells.lift_matrix.to_dense().sum(1), cells.mass)


@pytest.mark.parametrize("isa", runtime.isas())
@modes
def test_threads_give_the_same_bits(mode, isa):
    _, meta = drawn((70, 50), n=1200, size=(0.01, 0.3))
    results = []
    with runtime.use_isa(isa):
        for count in (1, 2, 4, 4):
            with runtime.use_threads(count):
                cells = splat.unproject_cells(meta, 9, 11, mode=mode)
                results.append([
                    part(matrix)
                    for matrix in (cells.lift_matrix, cells.render_matrix)
                    for part in (torch.Tensor.crow_indices, torch.Tensor.col_indices,
                                 torch.Tensor.values)
                ])  # fmt: skip
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


def test_products_carry_gradients_to_maps_and_values():
    _, meta = drawn((40, 33), dtype=torch.float64)
    cells = splat.unproject_cells(meta, 5, 4)
    maps = random_weights(torch.empty(2, 5, 4, 3)).requires_grad_()
    values = random_weights(torch.empty(40, 3)).requires_grad_()
    assert torch.autograd.gradcheck(cells.lift, maps)
    assert torch.autograd.gradcheck(cells.render, values)


def test_errors():
    _, meta = drawn((40, 33))
    for name in ("height", "width"):
        with pytest.raises(ValueError, match=f"^{name}: expected at least 1 cell, got 0$"):
            splat.unproject_cells(meta, **{"height": 3, "width": 3, name: 0})
    with pytest.raises(ValueError, match="^cell_width: expected 1 to 16384 cells, got 20000"):
        splat.unproject_cells(meta, 1, 20000)
    with pytest.raises(ValueError, match="^mode: expected one of"):
        splat.unproject_cells(meta, 3, 3, mode="mean")
    with pytest.raises(ValueError, match=r"^mask: expected shape \[2, 33, 40\]"):
        splat.unproject_cells(meta, 3, 3, mask=torch.ones(2, 3, 3, dtype=torch.bool))
    cells = splat.unproject_cells(meta, 3, 4)
    with pytest.raises(ValueError, match=r"^maps: expected shape \[2, 3, 4, 'D'\], got \[2, 4, 3"):
        cells.lift(torch.zeros(2, 4, 3, 1))
    with pytest.raises(ValueError, match=r"^values: expected shape \[40, 'D'\], got \[41, 1\]"):
        cells.render(torch.zeros(41, 1))
    batched = splat.rasterization(**random_scene(5, 20, 18, batch=(2,)))[2]
    with pytest.raises(ValueError, match=r"^meta: expected one scene, got batch dimensions \[2\]"):
        splat.unproject_cells(batched, 3, 3)
