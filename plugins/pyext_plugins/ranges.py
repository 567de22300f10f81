"""Settings within their ranges."""

from __future__ import annotations

from collections.abc import Mapping

from pyext.errors import UserError


def check_ranges(settings: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse settings outside their ranges, ends included, by the names of their options.

    Raises:
        UserError: the first that is outside.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: expected {low} to {high}, got {value}")
