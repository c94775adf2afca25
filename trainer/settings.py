"""Settings: one schema for settings.toml, shared by `moodbox` and `moodbox-train`.

Invariant: a value is either understood or refused by name. A misspelt table or key, in the file, in the environment or
in a flag, is an error for both commands; nothing falls back silently.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as PydanticSettingsError,
)

from trainer.tables import Daemon, Dataset, Journal, Metrics, Models, Trainer, Tray

Nested = dict[str, Any]

ENV_PREFIX = "MOODBOX_"
ENV_FILE = "MOODBOX_SETTINGS"
SYSTEM_FILE = Path("/etc/moodbox/settings.toml")


class SettingsError(Exception):
    """A setting that cannot be used; the message names it and says what to do."""


class Settings(BaseSettings):
    """Every setting of the product; `load` makes its paths absolute."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__"
    )

    tray: Tray = Tray()
    journal: Journal = Journal()
    daemon: Daemon = Daemon()
    models: Models = Models()
    metrics: Metrics = Metrics()
    dataset: Dataset = Dataset()
    trainer: Trainer = Trainer()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` merges the sources itself, since each has its own base for relative paths."""
        return (init_settings,)


@dataclass(frozen=True)
class Loaded:
    """Settings and the file that they came from (None: defaults, no file was found)."""

    settings: Settings
    file: Path | None


def find_file(named: Path | None) -> Path | None:
    """Return the settings file: `--settings`, `MOODBOX_SETTINGS`, `./settings.toml`, `/etc/moodbox/settings.toml`.

    Raises SettingsError where a file that was named does not exist.
    """
    asked = named or (Path(os.environ[ENV_FILE]) if os.environ.get(ENV_FILE) else None)
    if asked is not None:
        if asked.is_dir():
            raise SettingsError(f"settings file {str(asked)!r} is a folder: name the file in it")
        if not asked.is_file():
            raise SettingsError(f"settings file {str(asked)!r} does not exist: check --settings and {ENV_FILE}")
        return asked
    if os.path.isfile(here := Path("settings.toml")):  # a folder that this user may not enter holds none for it
        return here
    return SYSTEM_FILE if SYSTEM_FILE.is_file() else None


def load(named: Path | None = None, flags: Sequence[str] = (), options: Nested | None = None) -> Loaded:
    """Load settings: options and flags over environment over file over defaults.

    `flags` are `table.key=value` texts (`--set`), `options` are values from a command's own options. Relative paths in
    the file and in the defaults are relative to the file's folder (where there is one), all others to the working
    directory. Raises SettingsError.
    """
    file = find_file(named)
    base = file.absolute().parent if file else Path.cwd()
    try:
        merged = _anchor(_defaults(), base)
        if file is not None:
            merged = _merge(merged, _anchor(_tables(TomlConfigSettingsSource(Settings, file)()), base))
        for nearer in (_environment(), _parse(flags), _tables(options or {})):
            merged = _merge(merged, _anchor(nearer, Path.cwd()))
        return Loaded(Settings(**merged), file)
    except ValidationError as error:
        raise SettingsError(_describe(error, file)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None


def _merge(base: Nested, nearer: Nested) -> Nested:
    return {**base, **{k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in nearer.items()}}


def _defaults() -> Nested:
    tables = {name: field.default for name, field in Settings.model_fields.items()}
    return {name: {k: v for k, v in table if isinstance(v, Path)} for name, table in tables.items()}


def _path_keys() -> dict[str, list[str]]:
    tables = {name: type(field.default).model_fields for name, field in Settings.model_fields.items()}
    return {name: [k for k, f in table.items() if _is_path(f.annotation)] for name, table in tables.items()}


def _is_path(annotation: Any) -> bool:
    return annotation is Path or Path in get_args(annotation)


def _keys() -> dict[str, list[str]]:
    return {name: list(type(field.default).model_fields) for name, field in Settings.model_fields.items()}


def _tables(nested: Mapping[str, Any]) -> Nested:
    for name, table in nested.items():
        if name in Settings.model_fields and not isinstance(table, Mapping):
            raise SettingsError(f"{name} = … : {name} is a table; write [{name}] and its keys below it")
    return {name: dict(table) if isinstance(table, Mapping) else table for name, table in nested.items()}


def _environment() -> Nested:
    known = {f"{ENV_PREFIX}{table}__{key}".upper() for table, keys in _keys().items() for key in keys}
    for name in os.environ:
        upper = name.upper()
        if upper.startswith(ENV_PREFIX) and upper not in (known | {ENV_FILE}):
            raise SettingsError(f"environment variable {name}: no such setting{_hint(upper, known)}")
    try:
        return _tables(EnvSettingsSource(Settings)())
    except PydanticSettingsError as error:
        raise SettingsError(f"environment: {error}: lists are written as JSON") from None


def _parse(flags: Sequence[str]) -> Nested:
    nested: Nested = {}
    for flag in flags:
        path, equals, value = flag.partition("=")
        table, dot, key = path.strip().partition(".")
        if not (equals and dot and key):
            raise SettingsError(f"--set {flag}: write --set table.key=value, as in --set tray.settle_seconds=2")
        try:
            nested.setdefault(table, {})[key] = json.loads(value) if value.strip().startswith("[") else value.strip()
        except json.JSONDecodeError as error:
            raise SettingsError(f'--set {flag}: lists are written as JSON, as in ["a", "b"]: {error}') from None
    return nested


def _anchor(nested: Nested, base: Path) -> Nested:
    """Make relative paths absolute, `~` included, so that no later chdir changes what they mean."""
    paths = _path_keys()
    return {
        name: {
            k: _path(base, v) if k in paths.get(name, ()) and isinstance(v, str | Path) and str(v) else v
            for k, v in table.items()
        }
        if isinstance(table, dict)
        else table
        for name, table in nested.items()
    }


def _path(base: Path, value: str | Path) -> Path:
    try:
        path = base / Path(value).expanduser()
    except RuntimeError:
        raise SettingsError(f"{value}: there is no such user") from None
    if "\0" in str(path):
        raise SettingsError(f"{value!r}: a path cannot hold a NUL character")
    return path


def _describe(error: ValidationError, file: Path | None) -> str:
    """One line that names the key: the first error, and how many more there are."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = f"setting {'.'.join(path)}"
    if first["type"] == "extra_forbidden":
        field = Settings.model_fields.get(path[0]) if len(path) > 1 else None
        known = type(field.default).model_fields if field else Settings.model_fields
        text = f"{where}: no such setting{_hint(path[-1], known)}"
    else:
        said = first["msg"].removeprefix("Value error, ").replace("a valid tuple", 'a list, as in ["a", "b"]')
        text = f"{where}: {said[:1].lower()}{said[1:]}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{text}{more}; settings come from {file or 'no file'}, {ENV_PREFIX}… variables and flags"


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""
