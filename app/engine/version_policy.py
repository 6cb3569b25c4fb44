"""Which versions of a model are served: all, the latest few, or those listed.

A policy is written as `latest:2`, `1,3` or `all`; several are joined by `;`, and one that begins with `NAME=` holds for
that model alone: `latest:1;hot-etth1=1,3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_RULE = re.compile(
    r"""(?:(?P<name>[^=;]+)=)?
    (?:(?P<all>all)|latest:(?P<latest>[1-9][0-9]*)|(?P<listed>[0-9]+(?:,[0-9]+)*))""",
    re.VERBOSE,
)


class VersionPolicy:
    """The policy of every model of a repository."""

    def __init__(self, text: str) -> None:
        """Read the policy from its written form. Raises ValueError."""
        self._rules: dict[str | None, re.Match[str]] = {}
        for part in filter(None, (piece.strip() for piece in text.split(";"))):
            rule = _RULE.fullmatch(part)
            if rule is None:
                raise ValueError(f"version policy {part!r} is none of: all, latest:N, 1,3, each after NAME= or not")
            self._rules[rule["name"]] = rule

    def choose(self, name: str, versions: Iterable[str]) -> list[str]:
        """Those of the model's versions that are to be served, lowest first."""
        present = sorted(versions, key=int)
        rule = self._rules.get(name) or self._rules.get(None)
        if rule is None or rule["all"]:
            return present
        if rule["latest"]:
            return present[-int(rule["latest"]) :]
        listed = {int(version) for version in rule["listed"].split(",")}
        return [version for version in present if int(version) in listed]
