"""Prints what the build must know about the installed torch, as CMake list items."""

import os

import torch
from torch.utils import cpp_extension

print(
    ";".join(
        [
            torch.__version__,
            torch.version.cuda or "none",
            str(int(torch.compiled_with_cxx11_abi())),
            os.path.join(os.path.dirname(torch.__file__), "lib"),
            *cpp_extension.include_paths(),
        ]
    )
)
