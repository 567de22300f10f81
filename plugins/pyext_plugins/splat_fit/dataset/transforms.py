"""`transforms.json` as NeRF (Mildenhall et al. 2020) and its successors write it."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyext.errors import UserError
from pyext_plugins.splat_fit.cameras import Camera, intrinsics
from pyext_plugins.splat_fit.dataset.photographs import (
    Dataset,
    Options,
    Photograph,
    load_photograph,
    make_dataset,
    split,
)

WHOLE, TRAIN, TEST = "transforms.json", "transforms_train.json", "transforms_test.json"
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
SUFFIXES = ("", ".png", ".jpg", ".jpeg")  # NeRF's own files leave the suffix out


def found(folder: Path) -> bool:
    """Whether such a file lies there."""
    return any((folder / name).is_file() for name in (WHOLE, TRAIN))


def read(folder: Path, options: Options) -> Dataset:
    """Read the photographs; files for training and test are taken as the split.

    Raises:
        UserError: a file is no such JSON, a camera is not a pinhole, a picture is missing.
    """
    if (folder / TRAIN).is_file():
        train = _photographs(folder / TRAIN, options)
        if (folder / TEST).is_file():
            return make_dataset(train, _photographs(folder / TEST, options), options)
    else:
        train = _photographs(folder / WHOLE, options)
    return make_dataset(*split(sorted(train, key=lambda photo: photo.name), options), options)


def _photographs(path: Path, options: Options) -> list[Photograph]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"DATA: {path} cannot be read: {error}") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"DATA: {path} has no list of frames")
    return [
        _photograph(path, number, {**content, **frame}, options)  # a frame goes before the whole
        for number, frame in enumerate(frames)
    ]


def _photograph(path: Path, number: int, facts: dict[str, Any], options: Options) -> Photograph:
    try:
        name = str(facts["file_path"]).removeprefix("./")
        camera_of = partial(_camera, facts)
        return load_photograph(_picture_path(path.parent / name), name, camera_of, options)
    except KeyError as error:
        raise UserError(f"DATA: {path}: frame {number} has no {error.args[0]}") from error
    except UserError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"DATA: {path}: frame {number}: {error}") from error


def _picture_path(path: Path) -> Path:
    for suffix in SUFFIXES:
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return candidate
    raise ValueError(f"there is no picture {path}")


def _camera(facts: dict[str, Any], width: int, height: int) -> Camera:
    """The camera of a frame whose file has this size."""
    bent = [name for name in DISTORTION if float(facts.get(name, 0)) != 0]
    if bent:
        raise ValueError(f"its camera distorts ({bent[0]} = {facts[bent[0]]}); undistort it first")
    if "FISHEYE" in str(facts.get("camera_model", "")):
        raise ValueError("its camera is a fisheye; only pinholes are supported")
    width, height = int(facts.get("w", width)), int(facts.get("h", height))
    if "fl_x" in facts:
        fx = float(facts["fl_x"])
    else:
        fx = width / 2 / math.tan(float(facts["camera_angle_x"]) / 2)
    if "camera_angle_y" in facts and "fl_y" not in facts:
        fy = height / 2 / math.tan(float(facts["camera_angle_y"]) / 2)
    else:
        fy = float(facts.get("fl_y", fx))
    if not (fx > 0 and fy > 0 and math.isfinite(fx * fy)):
        raise ValueError(f"expected focal lengths above zero, got {fx} and {fy}")
    cx, cy = float(facts.get("cx", width / 2)), float(facts.get("cy", height / 2))
    viewmat = from_opengl(torch.tensor(facts["transform_matrix"], dtype=torch.float64))
    return Camera(viewmat, intrinsics(fx, fy, cx, cy), width, height)


def from_opengl(pose: Tensor) -> Tensor:
    """World to camera from camera to world [4, 4] with y up and z backward; float32.

    Raises:
        ValueError: not the matrix of a rotation and a place.
    """
    if pose.shape == (3, 4):
        pose = torch.cat([pose, pose.new_tensor([[0, 0, 0, 1]])])
    rotation = pose[:3, :3] if pose.shape == (4, 4) else pose.new_zeros(3, 3)
    unit = torch.eye(3, dtype=pose.dtype)
    # Written with six digits, a rotation is orthonormal to some 1e-5.
    if not (rotation @ rotation.T - unit).abs().max() < 1e-3 or torch.linalg.det(rotation) < 0:
        raise ValueError("transform_matrix: expected a rotation and a place, [4, 4]")
    return torch.linalg.inv(pose * pose.new_tensor([1, -1, -1, 1])).float()
