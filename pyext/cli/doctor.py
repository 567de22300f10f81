"""`pyext doctor`: what this machine and this build are."""

from __future__ import annotations

import sys


def doctor() -> None:
    """Versions, build, instruction set, threads, CUDA: what is there, and why not."""
    from pyext import environment
    from pyext.show import show_rows

    facts = environment.describe()
    rows = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [{"": f"{key}: {name}", "here": str(x) or "none"} for name, x in value.items()]
        else:
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            rows.append({"": key, "here": shown})
    show_rows(rows)
    if facts["threads running"] < facts["threads"]:
        print("fewer threads run than torch.set_num_threads asks for", file=sys.stderr)
