"""The options of each `moodbox` command, beside those that all have.

Invariant: what cannot be meant is refused here, by argparse, in the words of the option.
"""

import argparse


def add(name: str, command: argparse.ArgumentParser) -> None:
    """Add the options of the command `name` to its parser."""
    _OPTIONS.get(name, lambda _: None)(command)


def _status(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="for programs")
    text = "say only what is wrong; exit status 1 if no daemon runs, or it is stuck"
    command.add_argument("--check", action="store_true", help=text)


def _accounts(command: argparse.ArgumentParser) -> None:
    command.add_argument("--deep", action="store_true", help="compare every file's hash, not only its name and size")
    command.add_argument("--json", action="store_true", help="for programs")


def _learn(command: argparse.ArgumentParser) -> None:
    text = "people put all those photos into class folders of which the journal knows nothing"
    command.add_argument("--by-hand", action="store_true", help=text)


def _undo(command: argparse.ArgumentParser) -> None:
    command.add_argument("files", nargs="*", metavar="FILE", help="a file in the tray, as it was delivered")
    command.add_argument("--batch", metavar="B", help="what was sorted in this batch (see the journal)")
    command.add_argument("--since", metavar="T", help="what was sorted since: 2026-05-31, 2026-05-31T18:00, 2h, 3d")
    command.add_argument("--model", type=int, metavar="N", help="what this model sorted")
    command.add_argument("--resort", action="store_true", help="back to the inbox, to be sorted again")
    command.add_argument("--yes", action="store_true", help="do it")


def _doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--no-canary", action="store_true", help="do not send a picture through a scratch tray")


def _backfill(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="a folder, or a URL that fsspec reaches: s3://…, gs://…")
    command.add_argument("dest", metavar="DEST", help="the folder or URL where the results go; run again, it goes on")
    command.add_argument("--model", type=_positive, metavar="N", help="this bundle (default: the champion)")
    command.add_argument("--format", choices=("parquet", "jsonl"), help="of the results (default: parquet)")
    command.add_argument("--shard-files", type=_positive, metavar="N", help="photos to a result (default: 500)")
    command.add_argument("--address", metavar="A", help="a Ray cluster, HOST:PORT or auto (default: this machine)")
    command.add_argument(
        "--workers", type=_positive, metavar="N", help="processes (default: daemon.threads, or all cores)"
    )
    command.add_argument("--restart", action="store_true", help="remove what DEST has, and begin anew")
    text = "afterwards: bring what was sorted into the tray's class folders, by renames or hard links; needs no Ray"
    command.add_argument("--apply", choices=("move", "link"), help=text)
    command.add_argument("--yes", action="store_true", help="with --apply: do it")
    text = "give up where no worker is ready by then (default: 120)"
    command.add_argument("--start-seconds", type=float, default=120.0, metavar="S", help=text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


_OPTIONS = {
    "status": _status,
    "accounts": _accounts,
    "learn": _learn,
    "undo": _undo,
    "doctor": _doctor,
    "backfill": _backfill,
}
