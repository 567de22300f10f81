"""Hand-written CPU and CUDA kernels as torch ops, and a registry of research methods built on them.

``import pyext.ops`` registers the ops; ``pyext.methods`` finds the installed plugins.
"""

from importlib.metadata import version as _version

__version__ = _version("pyext-kernels")
