"""Doctor: is everything as Moodbox needs it, and what is to be done where it is not? One line for each check.

Invariant: nothing in the real tray, journal or models is changed; a check that cannot be made is a failure, not a
traceback.
"""

# ruff: noqa: T201

from collections.abc import Callable, Iterator

from daemon import host_checks, tray_checks
from daemon.finding import Finding, fail, ok, warn
from daemon.logs import printable, refusal
from trainer import bundle
from trainer.bundle import BundleError
from trainer.settings import Loaded, Settings

FAILED = 1
Canary = Callable[[Settings], str]


def run(loaded: Loaded, canary: Canary | None) -> int:
    """Make all checks, print a line for each, and return 1 where any failed, else 0.

    `canary` sends a picture through the real thing and says where it came out; it raises what goes wrong.
    """
    failed = False
    for finding in examine(loaded, canary):
        print(f"{finding.level:<4}  {finding.name:<8}  {finding.text}", flush=True)
        failed |= finding.level == "FAIL"
    return FAILED if failed else 0


def examine(loaded: Loaded, canary: Canary | None) -> Iterator[Finding]:
    """Yield the findings, the quick ones first."""
    settings = loaded.settings
    if loaded.file is not None:
        yield ok("settings", printable(loaded.file.absolute()))
    else:
        yield warn("settings", "no settings.toml was found: all is default, below the working directory")
    for check in (
        _check_tray,
        host_checks.check_space,
        host_checks.check_file_system,
        host_checks.check_journal,
        host_checks.check_versions,
        host_checks.check_bundle,
    ):
        try:
            yield from check(settings)
        except OSError as error:
            name = check.__name__.removeprefix("_").removeprefix("check_").replace("file_system", "watching")
            yield fail(name, printable(f"{refusal(error)}: ask as the daemon's user"))
    if canary is not None:
        yield _fly(canary, settings)


def _check_tray(settings: Settings) -> Iterator[Finding]:
    yield from tray_checks.check_tray(settings, _classes(settings))


def _classes(settings: Settings) -> tuple[str, ...]:
    try:
        number = bundle.champion(settings.models.root)
        return bundle.read_manifest(settings.models.root, number).class_names if number is not None else ()
    except BundleError:  # host_checks tells
        return ()


def _fly(canary: Canary, settings: Settings) -> Finding:
    try:
        return ok("canary", printable(canary(settings)))
    except Exception as error:  # noqa: BLE001  # whatever a broken installation comes up with
        return fail("canary", printable(f"a drawn picture was not sorted: {type(error).__name__}: {error}"))
