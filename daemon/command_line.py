"""The `moodbox` command: run | once | status | accounts | learn | undo | doctor | backfill.

Invariant: bad input gives one line on stderr and exit status 2, what the environment refuses one line and 1; only a
defect of Moodbox gives a traceback. Only `run`, `once` and `doctor` load TensorFlow, so imports stand inside commands.
"""

# ruff: noqa: PLC0415, T201

import argparse
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from daemon import journald, options
from daemon.logs import failed
from trainer import ending
from trainer import settings as settings_file
from trainer.settings import Loaded, Settings, SettingsError

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show
    args = _parser().parse_args(argv)
    try:
        return int(args.command(args, _load(args)))
    except SettingsError as error:
        return failed(error, BAD_INPUT)
    except PermissionError as error:
        return failed(f"{error.filename}: {error.strerror}: run this as the daemon's user, or as root", FAILED)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return failed(f"{error.filename or 'system'}: {error.strerror or error}", FAILED)


def _load(args: argparse.Namespace) -> Loaded:
    """Load settings; a reload does it again, with the same flags."""
    return settings_file.load(args.settings, args.set, _options(args.tray))


def _version() -> str:
    try:
        return metadata.version("moodbox")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _options(tray: Path | None) -> dict[str, Any] | None:
    """Give another tray a log of its own: what is counted and undone must be of one tray."""
    if tray is None:
        return None
    return {"tray": {"root": str(tray)}, "journal": {"root": f"{tray}-log"}}


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="settings file (default: $MOODBOX_SETTINGS, ./settings.toml, /etc/moodbox/settings.toml)",
    )
    common.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="override one setting, as in --set tray.settle_seconds=2",
    )
    common.add_argument("--tray", type=Path, metavar="DIR", help="another tray, with its log in DIR-log")
    parser = argparse.ArgumentParser(prog="moodbox", description="Sorts the photos that are dropped into a folder.")
    parser.add_argument("--version", action="version", version=f"moodbox {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("run", _run, "watch the inbox and sort what arrives, until stopped"),
        ("once", _once, "sort what is in the inbox, then exit"),
        ("status", _status, "say what serves, what waits and what went wrong"),
        ("accounts", _accounts, "find every file that the journal ever saw"),
        ("learn", _learn, "learn from the photos that people moved to another class folder"),
        ("doctor", _doctor, "check everything that Moodbox needs, and say what to do"),
        ("undo", _undo, "take delivered files back to undone/; lists them, and moves them with --yes"),
        (
            "backfill",
            _backfill,
            "classify every photo below a folder or URL where it is, on all cores or a Ray cluster",
        ),
    ):
        command = commands.add_parser(name, parents=[common], help=text, description=text)
        command.set_defaults(command=function)
        options.add(name, command)
    return parser


def _run(args: argparse.Namespace, loaded: Loaded) -> int:
    from daemon import run

    return run.forever(loaded, lambda: _load(args))


def _once(_args: argparse.Namespace, loaded: Loaded) -> int:
    from daemon import run

    return run.once(loaded)


def _status(args: argparse.Namespace, loaded: Loaded) -> int:
    from daemon import status

    if args.check:
        health, text = status.check(loaded.settings)
        return 0 if health == "ok" else failed(text, FAILED)
    found = status.gather(loaded.settings)
    if args.json:
        import orjson

        sys.stdout.buffer.write(
            orjson.dumps(status.as_json(found), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
    else:
        print("\n".join(status.describe(found)))
    return 0


def _accounts(args: argparse.Namespace, loaded: Loaded) -> int:
    from daemon import accounts

    return accounts.run(loaded.settings, deep=args.deep, json=args.json)


def _learn(args: argparse.Namespace, loaded: Loaded) -> int:
    from daemon import learn

    return learn.run(loaded.settings, by_hand=args.by_hand)


def _undo(args: argparse.Namespace, loaded: Loaded) -> int:
    from datetime import UTC, datetime

    from daemon import selection, undo

    try:
        since = selection.moment(args.since, datetime.now(UTC)) if args.since is not None else None
    except selection.SelectionError as error:
        return failed(error, BAD_INPUT)
    asked = selection.Selection(args.batch, since, args.model, tuple(args.files), Path.cwd())
    return undo.run(loaded.settings, asked, resort=args.resort, yes=args.yes)


def _doctor(args: argparse.Namespace, loaded: Loaded) -> int:
    from daemon import doctor

    def fly(settings: Settings) -> str:
        from daemon import canary

        return canary.fly(settings)

    return doctor.run(loaded, None if args.no_canary else fly)


def _backfill(args: argparse.Namespace, loaded: Loaded) -> int:
    if args.apply:
        from daemon import apply

        return apply.run(loaded.settings, args.source, args.dest, args.apply, yes=args.yes)
    from daemon import backfill

    asked = backfill.Asked(
        args.source, args.dest, args.model, args.format, args.shard_files, args.address, args.workers, args.restart,
        args.start_seconds,
    )  # fmt: skip
    return backfill.run(loaded.settings, asked)


def command() -> NoReturn:
    """Run one command and end the process at once: all is on disk, and TensorFlow's teardown would take a second."""
    interrupted = ending.by_exception(signal.SIGINT)
    try:
        for name in ("stdout", "stderr"):  # started with one of them closed
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        status = main()
    except SystemExit as error:  # argparse has said what was wrong
        status = error.code if isinstance(error.code, int) else BAD_INPUT
    except BaseException:  # noqa: BLE001  # a defect of Moodbox: shown whole, as the interpreter would
        status = FAILED
        if not interrupted:
            text = traceback.format_exc()
            print(journald.prefixed("error", text) if journald.is_stderr() else text, end="", file=sys.stderr)
    ending.at_once(INTERRUPTED if interrupted else status)
