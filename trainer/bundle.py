"""Bundles on disk: `models/<number>/`, and the symlink `models/champion` that names the one that serves.

Invariant: a numbered folder is a whole bundle that loaded and replayed its golden images before it got its name; it
never changes afterwards. Importing this module loads neither TensorFlow nor numpy.
"""

import contextlib
import hashlib
import importlib.resources
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from trainer import durable
from trainer.bundle_check import (
    ADVICE,
    DETECTOR,
    EXPECTED,
    FACE_MODEL,
    GOLDEN,
    MANIFEST,
    MODEL,
    Bundle,
    Expected,
    open_bundle,
    open_manifest,
)
from trainer.manifest import (
    FORMAT_VERSION,
    THRESHOLD,
    BundleError,
    DatasetSummary,
    Decision,
    FaceRules,
    Manifest,
    check_class_name,
    check_class_names,
    decide,
)

__all__ = [
    "DETECTOR", "EXPECTED", "FACE_MODEL", "FORMAT_VERSION", "GOLDEN", "MANIFEST", "MODEL", "THRESHOLD", "Bundle",
    "BundleError", "DatasetSummary", "Decision", "Expected", "FaceRules", "Manifest", "champion", "check_class_name",
    "check_class_names", "decide", "hashes", "install_shipped", "load", "numbers", "promote", "publish",
    "read_manifest",
]  # fmt: skip

CHAMPION, STAGING = "champion", ".staging-"
STALE_SECONDS = 24 * 3600
NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def numbers(models: Path) -> list[int]:
    """Return the numbers of the published bundles, in order; none where `models` does not exist."""
    try:
        return sorted(int(e.name) for e in os.scandir(models) if NUMBER.fullmatch(e.name) and e.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BundleError(f"{models}: the folder of bundles cannot be read: {error.strerror}") from None


def champion(models: Path) -> int | None:
    """Return the number that models/champion names; None where there is no such link."""
    link = models / CHAMPION
    try:
        target = os.readlink(link)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{link}: not a symlink to a bundle ({error.strerror}): remove it; {ADVICE}") from None
    if not NUMBER.fullmatch(target):
        raise BundleError(f"{link}: it names {target!r}, which is no bundle's number: remove it; {ADVICE}")
    return int(target)


def read_manifest(models: Path, number: int) -> Manifest:
    """Read a bundle's manifest and nothing else: quick, for lists and status. Raises BundleError."""
    return open_manifest(models / str(number), number)


def load(models: Path, number: int | None = None) -> Bundle:
    """Load a bundle, the champion by default: check versions and hashes, then replay its golden images.

    Raises BundleError where anything is missing, damaged, of another version, or scores differently here.
    """
    chosen = champion(models) if number is None else number
    if chosen is None:
        raise BundleError(f"{models}: no bundle is champion: `moodbox-train rollback N` chooses one, `fit` makes one")
    return open_bundle(models / str(chosen), chosen)


def publish(models: Path, staged: Path, draft: Manifest) -> int:
    """Publish the files in `staged` as the next bundle and return its number; `draft`'s number and files are replaced.

    `staged` is left as it is. Several publishers at once get different numbers. Raises BundleError where the bundle
    does not pass its own test, OSError where the disk refuses; nothing is published then.
    """
    with _staging(models) as hidden:
        hashes = _copy(staged, hidden)
        for number in range(max(numbers(models), default=0) + 1, 2**31):
            manifest = draft.model_copy(update={"number": number, "files": hashes})
            durable.replace(hidden / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
            _self_test(hidden, number)
            if _rename_into_place(hidden, models / str(number)):
                return number
    raise BundleError(f"{models}: no free bundle number")


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a bundle's folder, but the manifest's."""
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names if name != MANIFEST}


def promote(models: Path, number: int) -> None:
    """Make a published bundle the champion, atomically. Raises BundleError where there is no such bundle."""
    read_manifest(models, number)
    link = models / f".{CHAMPION}-{uuid.uuid4().hex}"
    os.symlink(str(number), link)
    try:
        os.rename(link, models / CHAMPION)
    except OSError as error:
        os.unlink(link)
        raise BundleError(f"{models / CHAMPION}: cannot be replaced: {error.strerror}") from None
    durable.sync_directory(models)


def install_shipped(models: Path) -> int | None:
    """Where `models` has no bundle, install the one that ships with the package as champion; return its number.

    Returns None where there was a bundle already. A crash or a second process between install and promote is made good.
    """
    shipped = importlib.resources.files("trainer.pretrained") / "bundle"
    with importlib.resources.as_file(shipped) as packaged:
        if not numbers(models):
            _install(models, packaged)
        elif champion(models) is not None or not _is_copy(models / "1", packaged):
            return None
    promote(models, 1)
    return 1


def _install(models: Path, packaged: Path) -> None:
    if not (packaged / MANIFEST).is_file():
        raise BundleError(
            f"{models}: no bundle there, and none came with this installation: `moodbox-train fit` makes one"
        )
    with _staging(models) as hidden:
        _copy(packaged, hidden)
        durable.write_new(hidden / MANIFEST, (packaged / MANIFEST).read_bytes())
        _self_test(hidden, 1)
        _rename_into_place(hidden, models / "1")


def _is_copy(path: Path, packaged: Path) -> bool:
    try:
        return (path / MANIFEST).read_bytes() == (packaged / MANIFEST).read_bytes()
    except OSError:
        return False


@contextlib.contextmanager
def _staging(models: Path) -> Iterator[Path]:
    """Make a hidden directory in `models`, so that the last step is a rename in one file system."""
    models.mkdir(parents=True, exist_ok=True)
    for stale in models.glob(f"{STAGING}*"):
        with contextlib.suppress(FileNotFoundError):  # another publisher's, which has just ended
            if time.time() - stale.lstat().st_mtime > STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)
    hidden = models / f"{STAGING}{uuid.uuid4().hex}"
    hidden.mkdir()
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _copy(source: Path, hidden: Path) -> dict[str, str]:
    """Copy every file but the manifest, fsynced; return the sha256 of each."""
    names = sorted(str(f.relative_to(source)) for f in source.rglob("*") if f.is_file())
    (hidden / GOLDEN).mkdir()
    hashes = {}
    for name in (n for n in names if n != MANIFEST):
        data = (source / name).read_bytes()
        durable.write_new(hidden / name, data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    durable.sync_directory(hidden / GOLDEN)
    return hashes


def _rename_into_place(hidden: Path, final: Path) -> bool:
    """Rename; False where another publisher has taken the number (rename never replaces a folder that is not empty)."""
    durable.sync_directory(hidden)
    try:
        os.rename(hidden, final)
    except OSError:
        if not final.exists():
            raise
        return False
    durable.sync_directory(final.parent)
    return True


def _self_test(path: Path, number: int) -> None:
    bundle = open_bundle(path, number)
    for name in bundle.manifest.files:
        bundle.read(name)
