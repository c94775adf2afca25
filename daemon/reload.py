"""Reloading: what SIGHUP asks for. The settings are read again, flags and environment over the file as at the start.

Invariant: the settings that serve are always valid and consistent. What cannot be read is refused as a whole; what
cannot change while photos are in work keeps its old value, and is named until the daemon is restarted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from trainer.settings import Loaded, Settings, SettingsError

# Places that are open and locked, and threads that run.
AT_START = frozenset({"tray.root", "journal.root", "models.root", "daemon.name", "daemon.threads"})
log = structlog.get_logger()


@dataclass
class Reloader:
    """Holds what was loaded last. `ask` is safe in a signal handler, as `wake` has to be; `take` is for the loop."""

    loaded: Loaded
    load: Callable[[], Loaded]
    needs_restart: tuple[str, ...] = ()
    problem: str = ""
    wake: Callable[[], object] = lambda: None
    _asked: bool = False

    def ask(self) -> None:
        """Have the settings read again, soon."""
        self._asked = True
        self.wake()

    @property
    def is_asked(self) -> bool:
        """Whether `take` has something to do."""
        return self._asked

    def take(self, serving: Settings) -> Settings:
        """Read the settings again and return those that serve from now on: `serving` itself where that fails."""
        self._asked = False
        try:
            found = self._read()
        except SettingsError as error:
            self.problem = f"the settings could not be reloaded: {error}"
            log.warning("the settings are not reloaded: the old ones go on", error=str(error))
            return serving
        self.loaded, self.problem = found, ""
        served, changed, self.needs_restart = merge(serving, found.settings)
        tell = log.warning if self.needs_restart else log.info
        tell("settings reloaded", settings=str(found.file), changed=changed, needs_restart=list(self.needs_restart))
        return served

    @property
    def status(self) -> str:
        """What is to be said of it in the status line; empty where there is nothing to say."""
        waits = f"changed, needs a restart: {', '.join(self.needs_restart)}" if self.needs_restart else ""
        return "; ".join(filter(None, (self.problem, waits)))

    def _read(self) -> Loaded:
        was = self.loaded.file
        if was is not None and not was.is_file():  # else the defaults would hold, and the tray be another one
            raise SettingsError(f"settings file {str(was)!r} is gone: bring it back")
        return self.load()


def merge(serving: Settings, wanted: Settings) -> tuple[Settings, list[str], tuple[str, ...]]:
    """Return the settings that can serve now, what of them changed, and what has to wait for a restart."""
    old, new = _flat(serving), _flat(wanted)
    differ = sorted(key for key in new if new[key] != old[key])
    waits = tuple(key for key in differ if key in AT_START)
    kept: dict[str, dict[str, Any]] = {}
    for key in waits:
        table, _, name = key.partition(".")
        kept.setdefault(table, {})[name] = old[key]
    tables = {table: getattr(wanted, table).model_copy(update=values) for table, values in kept.items()}
    return wanted.model_copy(update=tables), [key for key in differ if key not in AT_START], waits


def _flat(settings: Settings) -> dict[str, Any]:
    return {f"{name}.{key}": value for name, table in settings for key, value in table}
