"""The `moodbox-train` command: see `parser` for what it does.

Invariant: a person who gave wrong input, or pressed Ctrl-C, sees one line on stderr and never a traceback. Exit status
0: done; 2: input or settings are wrong; 1: something failed; 130: interrupted.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from trainer import ending
from trainer.errors import FailureError, InputError
from trainer.settings import Settings, SettingsError, load

INTERRUPTED = 130
# command: the module and function that do it, and the options that it takes
COMMANDS = {
    "check": ("trainer.check", "check", ("fix",)),
    "preview": ("trainer.preview", "preview", ()),
    "fit": ("trainer.commands", "fit", ("promote", "resume")),
    "crossvalidate": ("trainer.commands", "crossvalidate", ("groups",)),
    "evaluate": ("trainer.measuring", "evaluate", ("number",)),
    "explain": ("trainer.explain", "explain", ("files", "number")),
    "precisions": ("trainer.measuring", "precisions", ("number",)),
    "retrain": ("trainer.retrain", "retrain", ("data",)),
    "models": ("trainer.commands", "models", ("as_json",)),
    "rollback": ("trainer.commands", "rollback", ("number",)),
    "prune": ("trainer.retrain", "prune", ("dry_run",)),
    "tensorboard": ("trainer.board", "serve", ("port",)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    asked = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name that the terminal cannot show
    stopped = ending.by_exception(signal.SIGINT, signal.SIGTERM)
    try:
        return run(asked)
    except KeyboardInterrupt:
        return interrupted(asked)
    except BrokenPipeError:  # `moodbox-train models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        if not stopped:
            raise
        return interrupted(asked)  # the signal came while a library's native code was at work: it raises what it likes


def interrupted(asked: argparse.Namespace) -> int:
    """Say that a signal ended the command, and how to go on."""
    how = {"fit": ": the same command with --resume goes on", "retrain": ": the next retraining goes on"}
    on = how.get(asked.command, "")
    return complain(f"interrupted{on}", INTERRUPTED)


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
    if getattr(asked, "epochs", None) == 0:
        raise InputError("--epochs 0: train for at least one epoch")
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

    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("--architecture", metavar="NAME", help="efficientnet_lite0, tutorial_cnn or one of Keras's")
    recipe.add_argument("--epochs", type=int, metavar="N", help="train for at most N epochs")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("--model", dest="number", type=int, metavar="N", help="the bundle's number; default: the champion")

    top = argparse.ArgumentParser("moodbox-train", description="Make and manage the models that moodbox sorts with.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    check = _add(commands, "check", "look at the photos: which can be used, doubles, doubtful labels", [common, data])
    check.add_argument(
        "--fix", action="store_true", help="move what looks wrong aside, beside the folder; deletes nothing"
    )

    _add(commands, "preview", "draw one batch of photos, before and after augmentation", [common, data])

    fit = _add(commands, "fit", "train, measure, publish", [common, data, recipe])
    fit.add_argument("--no-promote", dest="promote", action="store_false", help="do not make it the champion")
    fit.add_argument("--resume", action="store_true", help="go on with the last run, which did not end")

    validate = _add(commands, "crossvalidate", "train leaving out a group of photos, and measure on it, for each group",
                    [common, data, recipe])  # fmt: skip
    validate.add_argument("--groups", metavar="REGEX", default="", help="its first (…) in a file's name is the group")

    _add(commands, "evaluate", "measure a bundle on a folder of photos", [common, data, one])

    explain = _add(commands, "explain", "show for a photo what the model saw", [common, one])
    explain.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a photo")

    _add(commands, "precisions", "compare float32, float16 and int8 of a bundle", [common, data, one])

    _add(commands, "retrain", "learn from what is new, and promote the result if it is no worse", [common, data])

    models = _add(commands, "models", "list the bundles: figures, lineage", [common])
    models.add_argument("--json", dest="as_json", action="store_true", help="whole manifests, a line for each")

    rollback = _add(commands, "rollback", "make an earlier bundle the champion", [common])
    rollback.add_argument("number", type=int, nargs="?", metavar="N", help="default: the champion's parent")

    prune = _add(commands, "prune", "remove old bundles, never the champion", [common])
    prune.add_argument("--dry-run", action="store_true", help="say which, and remove nothing")

    board = _add(commands, "tensorboard", "show all runs in TensorBoard", [common])
    board.add_argument("--port", type=int, default=6006, metavar="PORT", help="on this machine alone; default: 6006")
    return top


def _add(commands: Any, name: str, text: str, parents: list[argparse.ArgumentParser]) -> Any:
    command = commands.add_parser(name, help=text, description=text, parents=parents)
    command.set_defaults(command=name)
    return command


def dispatch(asked: argparse.Namespace, settings: Settings) -> None:
    """Call the command's function; its module is imported only now, so that --help answers at once."""
    module, function, options = COMMANDS[asked.command]
    call = getattr(importlib.import_module(module), function)
    call(settings, **{name: getattr(asked, name) for name in options})


def command() -> NoReturn:
    """Run a command and end the process; at once where it was interrupted.

    TensorFlow's threads may be at work then, and the interpreter's teardown under them has ended in SIGSEGV.
    """
    status = main()
    if status == INTERRUPTED:
        ending.at_once(status)
    sys.exit(status)
