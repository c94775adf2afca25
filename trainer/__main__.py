"""The `moodbox-train` command: check | fit | evaluate | models | rollback.

Invariant: a person who gave wrong input, or pressed Ctrl-C, sees one line on stderr and never a traceback. Exit status
0: done; 2: input or settings are wrong; 1: something failed; 130: interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import FailureError, InputError
from trainer.settings import Settings, SettingsError, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    asked = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name that the terminal cannot show
    try:
        return run(asked)
    except KeyboardInterrupt:
        return complain("interrupted: nothing was published", 130)
    except BrokenPipeError:  # `moodbox-train models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(asked: argparse.Namespace) -> int:
    """Load the settings and run the command; errors that were foreseen become one line."""
    from trainer.bundle import BundleError  # noqa: PLC0415  so that --help needs none of this
    from trainer.images import ImageError  # noqa: PLC0415

    try:
        loaded = load(asked.settings, asked.set, options(asked))
        dispatch(asked, loaded.settings)
        sys.stdout.flush()
    except (SettingsError, InputError) as error:
        return complain(str(error), 2)
    except (BundleError, FailureError, ImageError) as error:
        return complain(str(error), 1)
    except BrokenPipeError:
        raise
    except OSError as error:
        return complain(f"{error.filename or 'system'}: {error.strerror or error}", 1)
    return 0


def complain(text: str, status: int) -> int:
    """Write one line to stderr."""
    sys.stderr.write(f"moodbox-train: {' '.join(text.split())}\n")
    return status


def options(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that have options of their own, those that were given."""
    given = {
        "dataset": {"root": getattr(asked, "data", None)},
        "trainer": {"architecture": getattr(asked, "architecture", None), "epochs": getattr(asked, "epochs", None)},
    }
    return {table: {k: v for k, v in values.items() if v is not None} for table, values in given.items()}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--settings", type=Path, metavar="FILE", help="settings.toml to read")
    common.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="change one setting")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data", type=Path, metavar="DIR", help="one folder of photos per class; default: dataset.root")

    top = argparse.ArgumentParser("moodbox-train", description="Make and manage the models that moodbox sorts with.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    fit = _add(commands, "fit", "train, measure, publish", [common, data])
    fit.add_argument("--no-promote", action="store_true", help="do not make the new bundle the champion")
    fit.add_argument("--architecture", metavar="NAME", help="efficientnet_lite0, tutorial_cnn or one of Keras's")
    fit.add_argument("--epochs", type=int, metavar="N", help="train for at most N epochs")

    _add(commands, "check", "list which photos can be used, and why not the others", [common, data])

    evaluate = _add(commands, "evaluate", "measure a bundle on a folder of photos", [common, data])
    evaluate.add_argument("--model", type=int, metavar="N", help="the bundle's number; default: the champion")

    _add(commands, "models", "list the bundles", [common])

    rollback = _add(commands, "rollback", "make an earlier bundle the champion", [common])
    rollback.add_argument("number", type=int, nargs="?", metavar="N", help="default: the champion's parent")
    return top


def _add(commands: Any, name: str, text: str, parents: list[argparse.ArgumentParser]) -> Any:
    command = commands.add_parser(name, help=text, description=text, parents=parents)
    command.set_defaults(command=name)
    return command


def dispatch(asked: argparse.Namespace, settings: Settings) -> None:
    """Call the command's function."""
    from trainer import commands  # noqa: PLC0415  so that --help answers at once

    match asked.command:
        case "fit":
            commands.fit(settings, promote=not asked.no_promote)
        case "check":
            commands.check(settings)
        case "evaluate":
            commands.evaluate(settings, asked.model)
        case "models":
            commands.models(settings)
        case "rollback":
            commands.rollback(settings, asked.number)


if __name__ == "__main__":
    sys.exit(main())
