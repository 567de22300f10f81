"""Scene files: what is written is read again, and what is no scene is one clear error."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyext import scene
from pyext.errors import UserError
from pyext.scene.gaussians import SH_C0, Scene

FIELDS = ("means", "scales", "quats", "opacities", "sh0", "shN")
BASE = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def make(n=7, degree=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    others = (degree + 1) ** 2 - 1
    return Scene(
        normal(n, 3), normal(n, 3), normal(n, 4), normal(n), normal(n, 1, 3), normal(n, others, 3)
    )


def assert_same(one, other):
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def write_ply(path, names, rows, form="binary_little_endian", kind="float", before="", skip=b""):
    """A file by its definition, not by the code under test."""
    properties = "".join(f"property {kind} {name}\n" for name in names)
    header = f"ply\nformat {form} 1.0\n{before}element vertex {len(rows)}\n{properties}end_header\n"
    if form == "ascii":
        body = "".join(" ".join(map(repr, map(float, row))) + "\n" for row in rows).encode()
    else:
        order = ">" if form == "binary_big_endian" else "<"
        body = np.asarray(rows).astype(order + ("f8" if kind == "double" else "f4")).tobytes()
    path.write_bytes(header.encode() + skip + body)


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("n", [0, 1, 7, 40_000])  # the last is more than one block of rows
def test_a_ply_is_read_as_it_was_written(tmp_path, degree, n):
    written = make(n, degree)
    scene.save(written, tmp_path / "a.ply")
    found = scene.load(tmp_path / "a.ply")
    assert len(found) == n and found.sh_degree == degree
    assert_same(found, written)


def test_the_layout_is_that_of_viewers(tmp_path):
    written = make(3, 1)
    scene.save(written, str(tmp_path / "a.PLY"))
    header, _, body = (tmp_path / "a.PLY").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    names = [line.removeprefix("property float ") for line in lines[3:]]
    assert names == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(9)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    table = dict(zip(names, np.frombuffer(body, "<f4").reshape(3, -1).T, strict=True))
    # Channel by channel: f_rest_1 is the second coefficient of red, f_rest_3 the first of green.
    assert np.array_equal(table["f_rest_1"], written.shN[:, 1, 0])
    assert np.array_equal(table["f_rest_3"], written.shN[:, 0, 1])
    assert np.array_equal(table["rot_0"], written.quats[:, 0])
    assert not table["ny"].any()


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("kind", ["float", "double", "float32"])
def test_other_flavours_orders_and_properties(tmp_path, form, kind):
    generator = np.random.default_rng(0)
    names = ["confidence", *generator.permutation(BASE), "label"]
    rows = generator.standard_normal((5, len(names))).astype(np.float32)
    path = tmp_path / "a.ply"
    write_ply(path, names, rows, form, kind, before="comment by hand\nobj_info none\n")
    found = scene.load(path)
    column = dict(zip(names, rows.T, strict=True))
    assert np.array_equal(found.means[:, 1], column["y"])
    assert np.array_equal(found.quats[:, 3], column["rot_3"])
    assert np.array_equal(found.opacities, column["opacity"])
    assert found.sh_degree == 0 and found.shN.shape == (5, 0, 3)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_elements_before_and_after_the_vertices_are_passed_over(tmp_path, form):
    rows = np.arange(2 * len(BASE), dtype=np.float32).reshape(2, -1)
    path = tmp_path / "a.ply"
    before = "element camera 2\nproperty float f\nproperty uchar id\n"
    skip = b"1.5 3\n\n2.5 4\n" if form == "ascii" else bytes(10)
    write_ply(path, BASE, rows, form, before=before, skip=skip)
    content = path.read_bytes()
    face = b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    path.write_bytes(content.replace(b"end_header\n", face) + b"3 0 1 1\n")
    assert np.array_equal(scene.load(path).means, rows[:, :3])


def test_windows_line_ends(tmp_path):
    rows = np.ones((2, len(BASE)), np.float32)
    write_ply(tmp_path / "a.ply", BASE, rows)
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    text = (header + b"end_header\n").replace(b"\n", b"\r\n")
    (tmp_path / "a.ply").write_bytes(text + body)
    assert scene.load(tmp_path / "a.ply").means.eq(1).all()


@pytest.mark.parametrize("name", BASE)
def test_a_missing_property_is_named(tmp_path, name):
    rest = [other for other in BASE if other != name]
    write_ply(tmp_path / "a.ply", rest, np.zeros((1, len(rest))))
    with pytest.raises(UserError, match=f"a.ply: its vertices have no property {name}: "):
        scene.load(tmp_path / "a.ply")


@pytest.mark.parametrize("count", [1, 3, 12, 75])
def test_a_count_of_coefficients_that_is_no_degree(tmp_path, count):
    names = [*BASE, *(f"f_rest_{i}" for i in range(count))]
    write_ply(tmp_path / "a.ply", names, np.zeros((1, len(names))))
    with pytest.raises(UserError, match=f"0, 9, 24, 45 or 72 properties .*, got {count}$"):
        scene.load(tmp_path / "a.ply")


def test_a_gap_in_the_coefficients_is_named(tmp_path):
    names = [*BASE, *(f"f_rest_{i}" for i in range(10) if i != 4)]
    write_ply(tmp_path / "a.ply", names, np.zeros((1, len(names))))
    with pytest.raises(UserError, match="no property f_rest_4"):
        scene.load(tmp_path / "a.ply")


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_every_truncation_is_one_clear_error(tmp_path, form):
    path = tmp_path / "whole.ply"
    write_ply(path, BASE, np.full((2, len(BASE)), 1.25), form)
    content = path.read_bytes()
    # In ascii, a number that lost its last digits is still a number: the cut is found where a
    # value is gone.
    end = len(content) - (len("1.25\n") if form == "ascii" else 0)
    for length in range(end):
        (tmp_path / "cut.ply").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.ply: ") as error:
            scene.load(tmp_path / "cut.ply")
        assert "\n" not in str(error.value)


def test_headers_with_damaged_bytes_are_errors_or_scenes(tmp_path):
    path = tmp_path / "a.ply"
    write_ply(path, BASE, np.ones((2, len(BASE))))
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in generator.integers(0, content.index(b"end_header") + 11, 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert isinstance(scene.load(path), Scene)
        except UserError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("plx\n", "expected a .ply file, which begins with a line 'ply'"),
        ("ply\nend_header\n", "its header names no format"),
        ("ply\nformat ascii 1.0\nend_header\n", "it has no vertices"),
        ("ply\nformat binary 1.0\nend_header\n", "a line of its header is not understood: 'format"),
        (
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty quad x\nend_header\n",
            "a line of its header is not understood: 'property quad x'",
        ),
        (
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty int x\nproperty int x\nend_header\n",
            "a line of its header is not understood: 'property int x'",
        ),
        (
            "ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int a\nend_header\n",
            "element 'vertex' has lists",
        ),
        ("ply\n" + "comment\n" * 10_001, "its header has no end"),
    ],
)
def test_bad_headers(tmp_path, header, message):
    (tmp_path / "a.ply").write_text(header)
    with pytest.raises(UserError, match=message):
        scene.load(tmp_path / "a.ply")


def test_a_word_in_an_ascii_table(tmp_path):
    write_ply(tmp_path / "a.ply", BASE, np.full((2, len(BASE)), 1.25), "ascii")
    text = (tmp_path / "a.ply").read_text().replace("1.25 1.25", "1.25 red", 1)
    (tmp_path / "a.ply").write_text(text)
    with pytest.raises(UserError, match="a line is no Gaussian: .*red"):
        scene.load(tmp_path / "a.ply")


def splat_bytes(n=64, seed=0):
    generator = np.random.default_rng(seed)
    table = np.zeros(n, [("p", "<f4", 3), ("s", "<f4", 3), ("c", "u1", 4), ("q", "u1", 4)])
    table["p"] = generator.standard_normal((n, 3))
    table["s"] = np.exp(generator.standard_normal((n, 3)))
    table["c"] = generator.integers(0, 256, (n, 4))
    table["c"][:4, 3] = [0, 1, 254, 255]
    quats = generator.standard_normal((n, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    table["q"] = np.clip(np.round(quats * 128 + 128), 0, 255)
    return table


def test_a_splat_file_is_what_its_bytes_say(tmp_path):
    table = splat_bytes()
    table.tofile(tmp_path / "a.splat")
    arguments = scene.load(tmp_path / "a.splat").arguments()
    assert np.array_equal(arguments["means"], table["p"])
    assert np.allclose(arguments["scales"], table["s"], rtol=1e-6)
    # Full and no opacity are moved by a quarter of a step to have finite logits.
    assert np.abs(arguments["opacities"].numpy() * 255 - table["c"][:, 3]).max() < 0.2501
    colors = 0.5 + SH_C0 * arguments["colors"][:, 0].numpy()
    assert np.allclose(colors * 255, table["c"][:, :3], atol=1e-4)
    assert np.array_equal(arguments["quats"], table["q"] / np.float32(128) - 1)
    assert arguments["sh_degree"] == 0


def test_a_splat_file_is_written_back(tmp_path):
    table = splat_bytes()
    table.tofile(tmp_path / "a.splat")
    scene.save(scene.load(tmp_path / "a.splat"), tmp_path / "b.splat")
    again = np.fromfile(tmp_path / "b.splat", table.dtype)
    assert np.array_equal(again["p"], table["p"]) and np.array_equal(again["c"], table["c"])
    assert np.allclose(again["s"], table["s"], rtol=1e-6)
    # Rounded to eight bits and normalised, a component moves by less than a step.
    assert np.abs(again["q"].astype(int) - table["q"]).max() <= 1


def test_splat_files_without_gaussians_and_of_size_zero(tmp_path):
    (tmp_path / "a.splat").write_bytes(b"")
    assert len(scene.load(tmp_path / "a.splat")) == 0
    table = splat_bytes()[:1]
    table["s"][0, 2] = 0
    table.tofile(tmp_path / "a.splat")
    assert scene.load(tmp_path / "a.splat").arguments()["scales"][0, 2] == 0


def test_splat_files_that_are_none(tmp_path):
    table = splat_bytes()
    (tmp_path / "a.splat").write_bytes(table.tobytes()[:-1])
    with pytest.raises(UserError, match="expected 32 bytes per Gaussian, got 2047 bytes: cut off"):
        scene.load(tmp_path / "a.splat")
    table["s"][3, 1] = -1
    table.tofile(tmp_path / "a.splat")
    with pytest.raises(UserError, match="negative or infinite size: not a .splat file"):
        scene.load(tmp_path / "a.splat")


def test_paths_that_are_no_scene(tmp_path):
    with pytest.raises(UserError, match=r"a\.obj: expected a scene file, \.ply or \.splat"):
        scene.load(tmp_path / "a.obj")
    with pytest.raises(UserError, match=r"a\.ply: expected a scene file, there is none"):
        scene.load(tmp_path / "a.ply")
    with pytest.raises(UserError, match=r"a\.obj: expected a name that ends in \.ply or \.splat"):
        scene.save(make(), tmp_path / "a.obj")
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("scales", (6, 3), r"scales: expected shape \[7, 3\], got \[6, 3\]"),
        ("opacities", (7, 1), r"opacities: expected shape \[7\], got \[7, 1\]"),
        ("sh0", (7, 3), r"sh0: expected shape \[7, 1, 3\], got \[7, 3\]"),
        ("shN", (7, 5, 3), "shN: expected 0, 3, 8, 15 or 24 coefficients, got 5"),
    ],
)
def test_wrong_shapes(name, shape, message):
    values = {field: getattr(make(), field) for field in FIELDS}
    with pytest.raises(ValueError, match=message):
        Scene(**{**values, name: torch.zeros(shape)})


def test_gradients_flow_through_the_arguments():
    values = {name: getattr(make(), name).requires_grad_() for name in FIELDS}
    arguments = Scene(**values).arguments()
    assert arguments["colors"].shape == (7, 16, 3) and arguments["sh_degree"] == 3
    sum(value.sum() for name, value in arguments.items() if name != "sh_degree").backward()
    for name, value in values.items():
        assert value.grad is not None, name
