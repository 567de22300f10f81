"""What an installed distribution still needs, from its own metadata."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution


def has_extra(owner: Distribution, extra: str) -> bool:
    """Whether the distribution declares this extra, however it spells hyphens and capitals."""
    from packaging.utils import canonicalize_name

    declared = owner.metadata.get_all("Provides-Extra") or []
    return canonicalize_name(extra) in map(canonicalize_name, declared)


def missing_requirements(owner: Distribution, extra: str | None) -> list[str]:
    """Requirements of ``owner[extra]`` that are not installed, or in another version.

    An extra of a requirement (``pyext-kernels[cli]``) is followed.

    Raises:
        ValueError: the metadata holds a line that is no requirement.
    """
    # Part of the extra `cli`: the registry itself needs nothing beyond the standard library.
    from packaging.requirements import Requirement

    missing: list[str] = []
    seen: set[tuple[str, str]] = set()
    waiting = [(owner, extra or "")]
    while waiting:
        current, current_extra = waiting.pop(0)
        if (current.name, current_extra) in seen:
            continue
        seen.add((current.name, current_extra))
        for line in current.requires or []:
            requirement = Requirement(line)
            shown = f"{requirement.name}{requirement.specifier}"
            if requirement.marker and not requirement.marker.evaluate({"extra": current_extra}):
                continue
            try:
                found = distribution(requirement.name)
            except PackageNotFoundError:
                missing.append(shown)
                continue
            if not requirement.specifier.contains(found.version, prereleases=True):
                missing.append(f"{shown} (there is {found.version})")
            waiting += [(found, name) for name in sorted(requirement.extras)]
    return missing
