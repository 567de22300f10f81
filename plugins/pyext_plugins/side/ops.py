"""Which implementation of the ops the side networks run on: the one place that says so."""

from pyext.reference import side as ops

__all__ = ["ops"]
