"""What a disk holds after a power cut: mounts copies of an image where the original was, recovers, and checks.

Run in a mount namespace of its own (`unshare --mount`), since recovery must find the journal where it was. Reads lines
`IMAGE` from stdin; prints a JSON list of what is wrong, for each.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson

import stand_in
from daemon import logs


def recover(root: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            stand_in.make_service(stand_in.settings_for(root, tray={"poll": "always"})).run()
            os._exit(0)
        except BaseException as error:
            print(f"recovery failed: {error!r}", file=sys.stderr)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def lines(root: Path) -> list[dict]:
    paths = sorted((root / "log").glob("*.jsonl"))
    return [orjson.loads(raw) for path in paths for raw in path.read_bytes().split(b"\n") if raw]


def places(journal: list[dict]) -> dict[str, str]:
    found = {}
    for line in journal:
        if line["event"] in ("sorted", "review", "rejected", "redirected"):
            found[line["id"]] = line["destination"]
    return found


def wrong(root: Path, promised: dict) -> list[str]:
    """Compare with what was promised before the cut: delivered ids, and the sha256 of what its producer had synced."""
    journal = lines(root)
    decisions = {line["id"]: line for line in journal if line["event"] in ("sorted", "review", "rejected")}
    found = []
    count = Counter(line["id"] for line in journal if line["event"] in ("sorted", "review", "rejected"))
    found += [f"two decisions for {ident}" for ident, n in count.items() if n > 1]
    for ident, place in places(journal).items():
        path = root / "tray" / place
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "nothing"
        if digest != decisions[ident]["sha256"]:
            found.append(f"{place}: {digest[:8]} where the line says {decisions[ident]['sha256'][:8]}")
    found += [f"delivered, but without a line: {ident}" for ident in promised["delivered"] if ident not in decisions]
    there = Counter(
        hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (root / "tray").rglob("*")
        if p.is_file() and p.name not in ("lock", ".moodbox")
    )
    found += [
        f"synced by its producer, and now {there[d]} times there: {d[:8]}" for d in promised["synced"] if there[d] != 1
    ]
    return found


def main() -> None:
    root = Path(sys.argv[1])
    logs.configure(quiet=True)
    for text in sys.stdin:
        order = json.loads(text)
        options = "loop,nouuid" if order["kind"] == "xfs" else "loop"  # the original is mounted, too
        subprocess.run(["mount", "-o", options, order["image"], str(root)], check=True)
        try:
            recover(root)
            print(json.dumps(wrong(root, order)), flush=True)
        finally:
            subprocess.run(["umount", str(root)], check=True)


if __name__ == "__main__":
    main()
