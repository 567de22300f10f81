"""Folders of photographs of a known scene, in the formats that the readers read."""

import json
import math
import struct

import torch
from PIL import Image
from pyext_plugins.picture import save_png, to_bytes
from pyext_plugins.splat_fit.cameras import Camera, intrinsics, look_at, render

from pyext.scene import Scene

WIDTH, HEIGHT = 40, 30
FX, FY, CX, CY = 50.0, 48.0, 19.0, 16.5  # nothing symmetric: a swapped pair would show


def make_scene(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Scene(
        means=torch.rand(n, 3, generator=generator) - 0.5,
        scales=torch.full((n, 3), 0.12).log(),
        quats=torch.randn(n, 4, generator=generator),
        opacities=torch.full((n,), 1.5),
        sh0=torch.randn(n, 1, 3, generator=generator),
        shN=torch.zeros(n, 0, 3),
    )


def make_cameras(views=6):
    cameras = []
    for view in range(views):
        angle = 2 * math.pi * view / views
        eye = torch.tensor([2.4 * math.cos(angle), 2.4 * math.sin(angle), 0.6 + 0.1 * view])
        viewmat = look_at(eye, torch.zeros(3), torch.tensor([0.1, 0.0, 1.0]))
        cameras.append(Camera(viewmat, intrinsics(FX, FY, CX, CY), WIDTH, HEIGHT))
    return cameras


def write_pictures(folder, cameras, scene=None, background=(0.0, 0.0, 0.0)):
    """view_0.png and so on; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"view_{number}.png" for number in range(len(cameras))]
    for name, camera in zip(names, cameras, strict=True):
        picture, _ = render(scene or make_scene(), camera, torch.tensor(background))
        save_png(folder / name, to_bytes(picture))
    return names


def opengl_pose(camera):
    """Camera to world with y up and z backward, as lists."""
    pose = torch.linalg.inv(camera.viewmat.double())
    return (pose * torch.tensor([1.0, -1.0, -1.0, 1.0])).tolist()


def frames(cameras, names, folder="images"):
    return [
        {"file_path": f"./{folder}/{name}", "transform_matrix": opengl_pose(camera)}
        for name, camera in zip(names, cameras, strict=True)
    ]


def write_transforms(folder, cameras, **changes):
    """transforms.json with pictures in images/."""
    names = write_pictures(folder / "images", cameras)
    content = {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": WIDTH, "h": HEIGHT}
    content["frames"] = frames(cameras, names)
    (folder / "transforms.json").write_text(json.dumps({**content, **changes}))


def quaternion(viewmat):
    """(w, x, y, z) of a rotation whose angle is not near half a turn."""
    r = viewmat[:3, :3].double()
    values, vectors = torch.linalg.eigh(_davenport(r))
    q = vectors[:, values.argmax()]
    return (q if q[0] >= 0 else -q).tolist()


def _davenport(r):
    """The matrix whose main eigenvector is the quaternion of the rotation r."""
    k = torch.empty(4, 4, dtype=torch.float64)
    k[0, 0] = r.trace()
    k[0, 1:] = k[1:, 0] = torch.stack([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    k[1:, 1:] = r + r.T - r.trace() * torch.eye(3, dtype=torch.float64)
    return k


POINTS = [((0.25, -0.5, 1.0), (255, 0, 51)), ((0.0, 1.5, -2.0), (0, 102, 255))]
MODEL_NUMBERS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4}


def write_colmap(folder, cameras, model="PINHOLE", parameters=(FX, FY, CX, CY), binary=False):
    """A reconstruction in sparse/0 with pictures in images/."""
    names = write_pictures(folder / "images", cameras)
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    images = [
        (number + 1, quaternion(camera.viewmat), camera.viewmat[:3, 3].tolist(), name)
        for number, (name, camera) in enumerate(zip(names, cameras, strict=True))
    ][::-1]  # the order of the file is not that of the names
    (_write_binary if binary else _write_text)(sparse, model, parameters, images)


def _write_text(sparse, model, parameters, images):
    def row(*values):
        return " ".join(map(str, values)) + "\n"

    (sparse / "cameras.txt").write_text("# a comment\n" + row(7, model, WIDTH, HEIGHT, *parameters))
    (sparse / "images.txt").write_text(
        "# a comment\n"
        + "".join(
            row(number, *q, *t, 7, name) + ("\n" if number % 2 else "1.0 2.0 -1 3.5 4.5 1\n")
            for number, q, t, name in images
        )
    )
    (sparse / "points3D.txt").write_text(
        "# a comment\n"
        + "".join(row(i, *xyz, *rgb, 0.5, 1, 0, 2, 0) for i, (xyz, rgb) in enumerate(POINTS))
    )


def _write_binary(sparse, model, parameters, images):
    pack = struct.pack
    camera = pack("<iiQQ", 7, MODEL_NUMBERS[model], WIDTH, HEIGHT)
    (sparse / "cameras.bin").write_bytes(
        pack("<Q", 1) + camera + pack(f"<{len(parameters)}d", *parameters)
    )
    (sparse / "images.bin").write_bytes(
        pack("<Q", len(images))
        + b"".join(
            pack("<i7di", number, *q, *t, 7)
            + name.encode()
            + b"\0"
            + pack("<Q", number % 3)
            + (number % 3) * pack("<ddq", 1.0, 2.0, -1)
            for number, q, t, name in images
        )
    )
    (sparse / "points3D.bin").write_bytes(
        pack("<Q", len(POINTS))
        + b"".join(
            pack("<Q3d3BdQ", i, *xyz, *rgb, 0.5, i) + i * pack("<ii", 1, 0)
            for i, (xyz, rgb) in enumerate(POINTS)
        )
    )


def pixels_of(path):
    with Image.open(path) as image:
        return torch.tensor(list(image.convert("RGB").getdata())).reshape(
            image.height, image.width, 3
        )
