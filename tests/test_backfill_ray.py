"""moodbox backfill with a real Ray: what the daemon would say, going on, failing in words, and machines that die."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest

import bundles
import drawings
import pictures
from daemon.events import parse
from daemon_parts import lay, wait_for
from machine import skip
from trainer import bundle

pytestmark = pytest.mark.timeout(400)
HERE = Path(__file__).parent
SECONDS = 200.0
COUNT = 300
SAME = (
    "label",
    "score",
    "scores",
    "threshold",
    "views",
    "faces",
    "model",
    "bytes",
    "width",
    "height",
    "format",
    "sha256",
)


def environment(**more):
    """Return an environment in which other processes find what this one imports."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MOODBOX_")}
    return clean | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | more


def command(*arguments):
    return [sys.executable, "-m", "daemon", *map(str, arguments)]


def moodbox(root, *arguments, **more):
    return subprocess.run(
        command(*arguments), cwd=root, env=environment(**more), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip


def result_rows(dest):
    return [
        parse(raw)
        for path in sorted(dest.glob("results/*.jsonl"))
        for raw in path.read_bytes().splitlines(keepends=True)
    ]


def paths_of(dest):
    listed = [
        orjson.loads(raw) for path in sorted(dest.glob("paths/*.jsonl")) for raw in path.read_bytes().splitlines()
    ]
    return [line["file"] for line in listed]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model, champion."""
    folder = tmp_path_factory.mktemp("tiny")
    bundles.publish(folder / "models", folder / "staged")
    bundle.promote(folder / "models", 1)
    return folder / "models"


@pytest.fixture
def here(tmp_path, models):
    """A working directory with a model, and photos that take long enough to be killed in the middle of."""
    shutil.copytree(models, tmp_path / "models", symlinks=True)
    (tmp_path / "photos/deep").mkdir(parents=True)
    for number in range(COUNT):
        label = ("happy", "sad")[number % 2]
        name = f"{'deep/' if number % 3 else ''}{number:03}.png"
        drawings.photo(label, number, (32, 24)).save(tmp_path / "photos" / name)
    return tmp_path


@pytest.mark.tf
def test_a_backfill_says_what_the_daemon_says(tmp_path):
    """The model that ships, both ways, on every format and on what is no photo."""
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for suffix in ("jpg", "png", "gif", "bmp", "webp", "tiff", "avif", "heic"):
        pictures.write_picture(photos / f"a.{suffix}", width=400, height=300)
        pictures.write_picture(photos / "deep" / f"b.{suffix}", width=60, height=50)
    torn, odd = pictures.picture("JPEG")[:300], os.fsdecode(b"\xff.jpg")
    lay(photos, {"torn.jpg": torn, "text.jpg": b"no", "empty.png": b"", odd: pictures.picture(), "big": b"x" * 400_001})
    (photos / "link.jpg").symlink_to("/etc/passwd")
    os.mkfifo(photos / "pipe.jpg")
    for path in photos.rglob("*.*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)  # nobody writes there any more
    limit = "--set=tray.max_file_bytes=400000"
    done = moodbox(tmp_path, "backfill", "photos", "d", "--format", "jsonl", "--shard-files", 7, limit)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "23 of 23 files done, 23 of them now, 6 of these rejected\n"
    found = {line.file: line for line in result_rows(tmp_path / "d")}
    shutil.copytree(photos, tmp_path / "tray/inbox", symlinks=True, copy_function=_copied)
    (tmp_path / "tray/.moodbox").touch()
    done = moodbox(tmp_path, "once", limit)
    assert done.returncode == 0, done.stderr
    journal = [
        parse(raw) for path in (tmp_path / "log").glob("*.jsonl") for raw in path.read_bytes().splitlines(keepends=True)
    ]
    lines = {line.file: line for line in journal if line.event in ("sorted", "rejected")}
    assert lines.keys() == found.keys() and len(found) == 23
    for file, line in lines.items():
        for name in ("event", "error_code", "error", *SAME):
            assert getattr(found[file], name) == getattr(line, name), (file, name)
    assert Counter(line.error_code for line in found.values()) == Counter(
        [None] * 17 + ["truncated", "not_an_image", "empty", "too_large", "symlink", "fifo"]
    )


def _copied(source, target, **_):
    return os.mkfifo(target) if not os.path.isfile(source) else shutil.copy2(source, target, follow_symlinks=False)


def test_it_goes_on_where_it_was_and_says_what_does_not_fit(here):
    begin = ("backfill", "photos", "d", "--format", "jsonl", "--shard-files", 50, "--workers", 1)
    done = moodbox(here, *begin)
    assert (done.returncode, done.stdout) == (0, "300 of 300 files done, 300 of them now, 0 of these rejected\n")
    assert "Traceback" not in done.stderr and "INFO" not in done.stderr
    assert sorted(line.file for line in result_rows(here / "d")) == sorted(paths_of(here / "d"))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (here / "d/results").iterdir()}
    for name in ("000001.jsonl", "000005.jsonl"):
        (here / "d/results" / name).unlink()
    (here / "d/results/.000001.jsonl.aa.tmp").write_bytes(before["000001.jsonl"][0][:100])
    bundles.publish(here / "models", here / "staged", steep=0.02)
    bundle.promote(here / "models", 2)  # the champion changes: what was begun is finished with the old one
    done = moodbox(here, "backfill", "photos", "d")
    assert (done.returncode, done.stdout) == (0, "300 of 300 files done, 100 of them now, 0 of these rejected\n")
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (here / "d/results").iterdir()}
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert {name for name in before if before[name] != after[name]} == {"000001.jsonl", "000005.jsonl"}
    (here / "other").mkdir()
    for options, said in (
        (("photos", "d", "--model", "2"), "DEST was begun with model 1, not 2: --restart removes"),
        (("other", "d"), f"DEST was begun with source {here}/photos, not {here}/other: "),
        (("photos", "d", "--format", "parquet"), "DEST was begun with format jsonl, not parquet: "),
        (("photos", "d", "--model", "9"), "there is no such bundle"),
        (("none", "e"), f"SOURCE {here}/none: No such file or directory"),
        (("s3://bucket/photos", "e"), "s3fs"),
        (("odd://photos", "e"), "Protocol not known: odd"),
    ):
        done = moodbox(here, "backfill", *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    done = moodbox(here, "backfill", "photos", "d")
    assert done.stdout == "300 of 300 files done, 0 of them now, 0 of these rejected\n"
    done = moodbox(here, "backfill", "photos", "d", "--model", "2", "--restart", "--format", "parquet")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (here / "d/results").iterdir()] == ["000000.parquet"]


def test_a_shard_that_kills_its_worker_is_named_and_the_others_are_done(here):
    """A decoder that hangs is ended by the kernel, as one that crashes."""
    pictures.write_picture(here / "photos/deep/100.png", width=9000, height=9000)
    options = ("--workers", 2, "--shard-files", 50, "--format", "jsonl", "--set=daemon.decode_seconds=0.4")
    done = moodbox(here, "backfill", "photos", "d", *options)
    assert done.returncode == 1, done.stderr
    assert "250 of 300 files done" in done.stdout
    [shard] = [n for n in range(6) if not (here / f"d/results/{n:06}.jsonl").exists()]
    said = f"shard {shard:06} failed: deep/100.png: its worker died 3 times (daemon.decode_seconds is 0.4)"
    assert said in done.stderr
    assert "1 of 6 shards have no result" in done.stderr
    assert "deep/100.png" in (here / f"d/paths/{shard:06}.jsonl").read_text()


def test_it_listens_to_this_machine_alone_and_stops_in_seconds(here):
    arguments = command("backfill", "photos", "d", "--shard-files", 2, "--workers", 1)
    with subprocess.Popen(arguments, cwd=here, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: len(list(here.glob("d/results/0*.parquet"))) > 3, SECONDS)
            family = descendants(process.pid)
            listening = set()
            for pid in family:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                    listening |= set(listening_addresses(pid))
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            took = time.monotonic() - begun
        finally:
            process.kill()
    assert len(family) > 3 and listening
    assert listening <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}, listening
    assert (process.returncode, said.splitlines()[-1]) == (143, "moodbox: stopped; the same command goes on from here")
    assert took < 20
    wait_for(lambda: not [pid for pid in family if is_alive(pid)], 20)
    assert len(list(here.glob("d/results/0*.parquet"))) < 150, "it was over before it was stopped"


def descendants(pid):
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                found += map(int, task.read_text().split())
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def listening_addresses(pid):
    """Return the addresses, as /proc/net has them, on which a process listens."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            sockets.add(os.readlink(fd).removeprefix("socket:[").rstrip("]"))
        except FileNotFoundError:
            continue
    for kind in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in sockets:
                yield fields[1].split(":")[0]


def test_without_ray_there_is_one_line(tmp_path):
    code = "import sys; sys.modules['ray'] = None; from daemon.__main__ import command; command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "backfill", "photos", "d"], cwd=tmp_path, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    said = "moodbox: backfill needs Ray, which is not installed: pip install 'moodbox[ray]'\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not list(tmp_path.iterdir())


def test_a_ray_that_is_not_whole_is_told_of(here):
    lay(here, {"stub/ray/__init__.py": b"", "stub/ray/data.py": b'raise ImportError("No module named pyarrow")'})
    path = os.pathsep.join([str(here / "stub"), *filter(None, sys.path)])
    done = moodbox(here, "backfill", "photos", "d", PYTHONPATH=path)
    said = "moodbox: Ray is not whole (No module named pyarrow): pip install 'moodbox[ray]'\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.parametrize("arguments", [["status"], ["--help"], ["backfill", "--help"], ["undo", "--help"]])
def test_no_other_command_imports_ray(tmp_path, arguments):
    code = (
        f"import sys\nfrom daemon.command_line import main\ntry:\n main({arguments!r})\nexcept SystemExit:\n pass\n"
        "sys.exit(str([m for m in ('ray', 'pyarrow', 'fsspec') if m in sys.modules] or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, check=False
    )
    assert done.stderr == b"\n" and done.returncode == 1


def test_a_cluster_that_is_not_there_is_told_of_at_once(here):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and listens not
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        done = moodbox(here, "backfill", "photos", "d", "--address", address)
    said = f"moodbox: no Ray cluster at {address}: [Errno 111] Connection refused; the same command goes on from here\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_cluster_that_does_not_answer_is_given_up(here):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        begun = time.monotonic()
        done = moodbox(here, "backfill", "photos", "d", "--address", address, "--start-seconds", 2)
    assert time.monotonic() - begun < 30
    assert done.returncode == 1
    assert f"moodbox: no Ray cluster at {address} within 2 s: look at `ray status`" in done.stderr


def test_a_worker_never_loads_tensorflow(here):
    code = """
import sys
from pathlib import Path
from daemon import ray_job, shards, storage
from daemon.classifier import Classifier
from daemon.station import Job, Station, version
c = Classifier.load(Path("models"))
m = shards.Manifest(version=version(), source=str(Path("photos").resolve()), model=1, bundle={}, format="parquet",
    preprocessing_version=1, max_file_bytes=10**6, max_pixels=10**6, shard_files=10)
Path("d").mkdir()
m = shards.make(storage.at("d"), m, ["000.png"])
print(Station(Job(version(), m, "d", c.packed(), 60.0)).sort(0).files, "tensorflow" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout == "1 False\n", done.stderr


def nodes(root, *stories):
    """Run stories of ray_nodes.py in a network of their own."""
    script = [sys.executable, HERE / "ray_nodes.py", root, "3", *stories]
    if (why := no_namespaces()) is not None:
        skip(f"no network namespace to test with: {why}")
    done = subprocess.run(
        ["unshare", "--net", *script],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def no_namespaces():
    try:
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return tried.stderr.strip() if tried.returncode else None


def check_all(root):
    """Each path has one row, with the hash of what is there."""
    found = result_rows(root / "d")
    assert Counter(line.file for line in found) == Counter(dict.fromkeys(paths_of(root / "d"), 1))
    assert len(found) == COUNT
    assert not list((root / "d").rglob(".*.tmp"))


def test_a_cluster_that_loses_a_machine_loses_and_doubles_nothing(here):
    [[late], [told, done]] = nodes(here, "nobody_works", "a_node_dies")
    said = "moodbox: no worker was ready within 2 s on 0 CPUs (--start-seconds): look at `ray status`"
    assert late["status"] == 1 and late["stderr"].splitlines()[-1].startswith(said), late["stderr"]
    assert told["when"] < COUNT / 3, "it was over before the machine was killed"
    assert done["status"] == 0, done["stderr"]
    check_all(here)


def test_a_driver_that_is_killed_is_followed_by_one_that_goes_on(here):
    [[told, done]] = nodes(here, "the_driver_dies")
    assert 10 <= told["when"] < COUNT / 3, "it was over before the driver was killed"
    assert done["status"] == 0, done["stderr"]
    assert "300 of 300 files done" in done["stdout"]
    assert f"{COUNT} of them now" not in done["stdout"]
    check_all(here)
