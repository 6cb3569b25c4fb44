"""The model repository: every NAME/VERSION folder, loaded or with the reason why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from app.engine.device import Device
from app.engine.runtime import Model
from app.engine.sessions import BrokenBundle
from app.errors import Unavailable, UnknownModel
from app.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broken:
    """A version that could not be loaded."""

    name: str
    version: str
    reason: str
    serves: ClassVar[bool] = False


class Repository:
    """All versions of all models under one folder. `get` is cheap and safe from any thread."""

    def __init__(self, settings: Settings, device: Device) -> None:
        self.root, self.device, self._settings = settings.repository, device, settings
        self._versions: dict[str, dict[str, Model | Broken]] = {}
        self.loaded = False

    def load(self, register: Callable[[Model], None]) -> None:
        """Load and warm up every version; one that fails is kept with its reason, and the others serve."""
        for folder in self._folders():
            entry: Model | Broken
            try:
                entry = Model(folder, self.device, self._settings)
                register(entry)
                logger.info("loaded %s/%s on %s", entry.name, entry.version, entry.providers[0])
            except Exception as error:
                reason = str(error) if isinstance(error, BrokenBundle) else f"{type(error).__name__}: {error}"
                logger.error("cannot load %s/%s: %s", folder.parent.name, folder.name, reason)
                entry = Broken(folder.parent.name, folder.name, reason)
            self._versions.setdefault(folder.parent.name, {})[folder.name] = entry
        self.loaded = True

    def get(self, name: str, version: str | None = None) -> Model:
        """The model asked for; without a version, the highest that serves.

        Raises UnknownModel, or Unavailable with the reason.
        """
        versions = self._versions.get(name)
        if versions is None:
            if not self.loaded:
                raise Unavailable("models are still being loaded")
            raise UnknownModel(f"unknown model {name!r}")
        if version is None:
            for candidate in sorted(versions, key=_by_number, reverse=True):
                if isinstance(entry := versions[candidate], Model):
                    return entry
            version = max(versions, key=_by_number)
        found = versions.get(version)
        if found is None:
            raise UnknownModel(f"model {name!r} has no version {version!r}; it has {', '.join(self.versions(name))}")
        if isinstance(found, Broken):
            raise Unavailable(f"model {name!r} version {version} is not available: {found.reason}")
        return found

    def versions(self, name: str) -> list[str]:
        """Versions that serve, lowest first."""
        entries = self._versions.get(name, {})
        return sorted((version for version, entry in entries.items() if isinstance(entry, Model)), key=_by_number)

    def __iter__(self) -> Iterator[Model | Broken]:
        """Every version, by name and number."""
        for name in sorted(self._versions):
            for version in sorted(self._versions[name], key=_by_number):
                yield self._versions[name][version]

    def _folders(self) -> list[Path]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"the model repository {self.root} is not a folder")
        found = [path for path in self.root.glob("*/*") if path.is_dir() and path.name.isdigit()]
        visible = [path for path in found if not path.parent.name.startswith(".")]
        return sorted(visible, key=lambda path: (path.parent.name, int(path.name)))


def _by_number(version: str) -> int:
    return int(version)
