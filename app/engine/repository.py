"""The model repository: every NAME/VERSION folder, loaded or with the reason why not, and its changes while serving.

A new or changed version is loaded and warmed up beside those that serve, and takes their place only when it is ready.
What fails to load leaves everything as it was. A version that is gone, or not wanted any more, leaves once every wanted
one serves; what it had accepted is still answered.

Changes are made from one thread at a time; reading is cheap and safe from any.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from app.engine import bundle_folders
from app.engine.bundle_folders import Fingerprint, Found
from app.engine.device import Device
from app.engine.runtime import BEING_LOADED, Model
from app.engine.version_policy import VersionPolicy
from app.errors import LoadFailed, Unavailable, UnknownModel
from app.integrity import BrokenBundle
from app.settings import Settings

logger = logging.getLogger(__name__)


class Line(Protocol):
    """Who must know which models are served (`app.engine.scheduler.Scheduler`)."""

    def register(self, model: Model) -> None: ...

    def retire(self, model: Model) -> None:
        """Forget the model as soon as what it has accepted is answered."""


@dataclass(frozen=True)
class NotServing:
    """A version that is broken, unloaded, or still being loaded."""

    name: str
    version: str
    reason: str
    state: Literal["LOADING", "UNAVAILABLE"] = "UNAVAILABLE"
    serves: ClassVar[bool] = False


Entry = Model | NotServing


@dataclass(frozen=True)
class IndexRow:
    """One version as the repository extension lists it."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE", "LOADING"]
    reason: str = ""


class Repository:
    """All versions of all models under one folder."""

    def __init__(self, settings: Settings, device: Device, line: Line) -> None:
        """Nothing is loaded yet. Raises ValueError for a version policy that cannot be read."""
        self.root, self.device, self._settings, self._line = settings.repository, device, settings, line
        self._policy = VersionPolicy(settings.version_policy)
        # Replaced as a whole at every change, so that readers in other threads never meet one in the middle of it; of
        # each model the highest version is first.
        self._versions: dict[str, dict[str, Entry]] = {}
        self._serving: dict[tuple[str, str], Fingerprint] = {}
        self._tried: dict[tuple[str, str], Fingerprint] = {}
        self._seen: dict[tuple[str, str], Fingerprint] = {}
        self._missing: set[tuple[str, str]] = set()
        """Versions that serve and that the last look did not find."""
        self._unloaded: set[str] = set()
        self._stopping = False
        self._readable = True
        self.loaded = False

    # -- reading -----------------------------------------------------------------------------------------------------

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
            for entry in versions.values():
                if isinstance(entry, Model):
                    return entry
            version = next(iter(versions))
        found = versions.get(version)
        if found is None:
            raise UnknownModel(f"model {name!r} has no version {version!r}; it has {', '.join(self.versions(name))}")
        if isinstance(found, NotServing):
            raise Unavailable(f"model {name!r} version {version} is not available: {found.reason}")
        return found

    def known(self, name: str | None) -> str | None:
        """The name again if it is a model's, else None."""
        return name if name in self._versions else None

    def broken(self, entry: NotServing) -> bool:
        """Whether a version should serve and cannot: it is not being loaded, and nobody unloaded it."""
        return entry.state == "UNAVAILABLE" and entry.name not in self._unloaded

    def versions(self, name: str) -> list[str]:
        """Versions that serve, lowest first."""
        entries = self._versions.get(name, {})
        return sorted((version for version, entry in entries.items() if isinstance(entry, Model)), key=int)

    def __iter__(self) -> Iterator[Entry]:
        """Every known version, by name and number."""
        known = self._versions
        for name in sorted(known):
            for version in sorted(known[name], key=int):
                yield known[name][version]

    @property
    def all_broken(self) -> bool:
        """Whether there are versions that nobody unloaded, and none of them serves."""
        kept = [versions for name, versions in self._versions.items() if name not in self._unloaded]
        entries = [entry for versions in kept for entry in versions.values()]
        return bool(entries) and not any(isinstance(entry, Model) for entry in entries)

    def index(self) -> list[IndexRow]:
        """Every known version and every other one in the folder. Reads the folder."""
        rows = [
            IndexRow(entry.name, entry.version, "READY")
            if isinstance(entry, Model)
            else IndexRow(entry.name, entry.version, entry.state, entry.reason)
            for entry in self
        ]
        known = {(row.name, row.version) for row in rows}
        try:
            folders = bundle_folders.scan(self.root).versions
        except OSError:
            folders = {}
        rows += [
            IndexRow(name, version, "UNAVAILABLE", "not loaded")
            for name, versions in folders.items()
            for version in versions
            if (name, version) not in known
        ]
        return sorted(rows, key=lambda row: (row.name, int(row.version)))

    # -- changing ----------------------------------------------------------------------------------------------------

    def load_all(self) -> None:
        """Load every wanted version; one that fails is kept with its reason, and the others serve."""
        folders, unreadable = bundle_folders.scan(self.root)
        for name in sorted(unreadable):
            logger.warning("%s cannot be read; it is left out", self.root / name)
        for name, versions in folders.items():
            waiting = {
                version: NotServing(name, version, BEING_LOADED, "LOADING")
                for version in self._policy.choose(name, versions)
            }
            self._put(name, waiting)
        for name, versions in folders.items():
            self._bring_up(name, versions)
        self.loaded = True

    def stop(self) -> None:
        """Load nothing further: a change that is under way ends after the version it is at."""
        self._stopping = True

    def load(self, name: str) -> None:
        """Bring a model to what is in its folder now: new and changed versions loaded, those that are gone retired.

        Raises UnknownModel if the folder has no version of it that is wanted, LoadFailed with the reasons; then
        everything that served before still does.
        """
        found = self._scan()
        if name in found.unreadable:
            raise LoadFailed(f"the folder of model {name!r} cannot be read")
        versions = found.versions.get(name, {})
        if not self._policy.choose(name, versions):
            raise UnknownModel(f"the repository has no version of a model {name!r} to load")
        self._unloaded.discard(name)
        failed = self._bring_up(name, versions)
        if failed:
            raise LoadFailed("; ".join(f"{name}/{entry.version}: {entry.reason}" for entry in failed))

    def unload(self, name: str) -> None:
        """Stop serving every version of a model; what it accepted is answered. It stays so until `load`.

        Raises UnknownModel.
        """
        if name not in self._versions:
            raise UnknownModel(f"unknown model {name!r}")
        self._unloaded.add(name)
        for version in self._versions[name]:
            self._replace(name, version, NotServing(name, version, "it was unloaded"))

    def look(self) -> None:
        """One look of the watch: load what is new or has changed, retire what is gone.

        A version is loaded once two looks in a row find it the same, so one that is being copied is left alone, and it
        is gone when two do not find it. One that failed is tried again when its files change.
        """
        folders, unreadable = self._scan()
        prints = {
            (name, version): bundle_folders.fingerprint(folder)
            for name, versions in folders.items()
            for version, folder in versions.items()
        }
        settled = {key for key, value in prints.items() if value and self._seen.get(key) == value}
        missing = {key for key in self._serving if key not in prints and key[0] not in unreadable}
        missed, self._missing = missing - self._missing, missing
        self._seen = prints
        fresh = {key for key in settled if self._tried.get(key) != prints[key]}
        for name in sorted({*folders, *self._versions} - self._unloaded - unreadable):
            self._bring_up(name, folders.get(name, {}), only=fresh, keep=missed)

    def _bring_up(
        self,
        name: str,
        versions: dict[str, Path],
        only: Set[tuple[str, str]] | None = None,
        keep: Set[tuple[str, str]] = frozenset(),
    ) -> list[NotServing]:
        """Load the wanted versions (of them `only` these) that do not serve as they are now, then retire the others.

        keep: versions that are not retired yet. Returns those that failed.
        """
        wanted = self._policy.choose(name, versions)
        failed = []
        for version in wanted:
            key = name, version
            if self._stopping:
                break
            if only is not None and key not in only:
                continue
            if key in self._serving and self._serving[key] == bundle_folders.fingerprint(versions[version]):
                continue
            entry = self._load_version(versions[version])
            if isinstance(entry, Model) or key not in self._serving:
                self._replace(name, version, entry)
            if isinstance(entry, NotServing):
                failed.append(entry)
        if not failed and set(wanted) <= set(self.versions(name)):
            for version in set(self._versions.get(name, {})) - set(wanted):
                if (name, version) not in keep:
                    self._replace(name, version, None)
        return failed

    def _load_version(self, folder: Path) -> Entry:
        """Load one version and make it known to the line; what fails is told by its reason."""
        name, version = folder.parent.name, folder.name
        before = bundle_folders.fingerprint(folder)
        self._tried[name, version] = before
        try:
            model = Model(folder, self.device, self._settings, lambda doing: self._note(name, version, doing))
            if bundle_folders.fingerprint(folder) != before:
                raise BrokenBundle("its files changed while it was loaded")
        except Exception as error:
            if self._stopping:  # a process that ends starts no threads to measure with
                return NotServing(name, version, "the server was leaving")
            known = isinstance(error, BrokenBundle)
            logger.error("cannot load %s/%s: %s", name, version, error, exc_info=None if known else error)
            reason = str(error) if known else f"{type(error).__name__}, see the log"
            return NotServing(name, version, reason)
        self._line.register(model)
        logger.info("loaded %s/%s on %s", name, version, model.providers[0])
        return model

    def _note(self, name: str, version: str, doing: str) -> None:
        """Say what is done to load a version, unless another state of it serves meanwhile."""
        logger.info("%s/%s: %s", name, version, doing)
        entries = self._versions.get(name, {})
        if not isinstance(entries.get(version), Model):
            self._put(name, entries | {version: NotServing(name, version, doing, "LOADING")})

    def _replace(self, name: str, version: str, entry: Entry | None) -> None:
        """Put `entry` in a version's place, or nothing; what served there leaves."""
        entries = dict(self._versions.get(name, {}))
        before = entries.pop(version, None)
        if entry is not None:
            entries[version] = entry
        self._put(name, entries)
        if isinstance(entry, Model):
            self._serving[name, version] = self._tried[name, version]
        else:
            self._serving.pop((name, version), None)
        if entry is None:  # when it comes back, it is new
            self._tried.pop((name, version), None)
        if isinstance(before, Model):
            self._line.retire(before)
            logger.info("%s/%s leaves", name, version)

    def _put(self, name: str, entries: Mapping[str, Entry]) -> None:
        others = {other: versions for other, versions in self._versions.items() if other != name}
        ordered = {version: entries[version] for version in sorted(entries, key=int, reverse=True)}
        self._versions = others | ({name: ordered} if ordered else {})

    def _scan(self) -> Found:
        """The folder now; when it cannot be read, a failure that changes nothing."""
        try:
            found = bundle_folders.scan(self.root)
        except OSError as error:
            if self._readable:
                logger.error("the model repository cannot be read: %s", error)
            self._readable = False
            raise LoadFailed("the model repository cannot be read") from error
        self._readable = True
        return found
