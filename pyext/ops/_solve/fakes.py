"""Fake kernels of the compiled ops."""

from __future__ import annotations

import torch


@torch.library.register_fake("pyext::solve_gram_acc_")
def _(gram, x, row_weight=None, seg=None, products=torch.float64):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("pyext::solve_gram_proj_acc_")
def _(gram, x, a_stack, row_weight=None, seg=None, products=torch.float64):  # type: ignore[no-untyped-def]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.new_empty(x.shape[:-1], device="meta").numel()
    return x.new_empty((rows, a_stack.shape[0]), dtype=dtype)


@torch.library.register_fake("pyext::solve_cross_acc_")
def _(cross, left, right, row_weight=None, seg=None, products=torch.float64):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("pyext::solve_sumsq_acc_")
def _(out, y, bias=None, row_weight=None, seg=None):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("pyext::solve_gram_combine")
def _(grams, lam, gamma):  # type: ignore[no-untyped-def]
    return grams.new_empty((lam.shape[0], *grams.shape[1:]))


@torch.library.register_fake("pyext::solve_sym_fro_norm")
def _(grams):  # type: ignore[no-untyped-def]
    return grams.new_empty((grams.shape[0],), dtype=torch.float64)


@torch.library.register_fake("pyext::solve_spd_solve")
@torch.library.register_fake("pyext::solve_spd_solve_")
def _(g, p, on_fail="ladder", jitter0=1e-14, max_tries=3, half=False):  # type: ignore[no-untyped-def]
    numbers = [g.new_empty((g.shape[0],), dtype=torch.float64) for _ in range(2)]
    s = p.new_empty(p.shape if half else (0,))
    return p.new_empty(p.shape), s, g.new_empty((g.shape[0],), dtype=torch.int32), *numbers
