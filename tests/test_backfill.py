"""moodbox backfill without Ray: the list of files, its shards, the rows, and what one process makes of a shard."""

import contextlib
import errno
import io
import os
import re
import tempfile
from pathlib import Path

import duckdb
import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bundles
import pictures
from daemon import endpoints, rows, shards, storage
from daemon.batch import Claimed
from daemon.classifier import Classifier
from daemon.delivery import Review, decision
from daemon.events import parse
from daemon.inspection import Outcome, inspect, judged
from daemon.shards import Manifest, ManifestError
from daemon.station import Job, RefusalError, Station, version
from daemon.watcher import ignored_names
from daemon_parts import NOBODY, as_user, lay, needs_root
from trainer import durable
from trainer.errors import InputError
from trainer.tables import IGNORE

NOTHING = re.compile("(?!)")
ODD = os.fsdecode(b"\xff\n\xc3.png")
NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda name: b"/" not in name and b"\0" not in name and name[:1] != b"."
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: os.fsdecode(b"/".join(parts)))


def draft(**fields):
    known = {
        "version": "1", "source": "/photos", "model": 1, "bundle": {}, "preprocessing_version": 1,
        "max_file_bytes": 50_000, "max_pixels": 1_000_000, "format": "jsonl", "shard_files": 2,
    }  # fmt: skip
    return Manifest(**(known | fields))


def local(folder):
    folder.mkdir(exist_ok=True)
    return storage.Local(str(folder))


@given(paths=st.sets(PATHS, max_size=12))
def test_the_walk_finds_every_file_in_the_order_of_its_bytes(paths):
    with tempfile.TemporaryDirectory() as root:
        made = set()
        for path in sorted(paths):
            with contextlib.suppress(FileExistsError, NotADirectoryError):  # one's folder is another one's name
                lay(root, {path: b""})
                made.add(path)
        assert list(shards.walk(storage.Local(root), NOTHING)) == sorted(made, key=os.fsencode)


def test_folders_are_closed_with_the_last_that_uses_them(tmp_path):
    """A worker of Ray's serves one job after the other, and a process has a thousand files at most."""
    lay(tmp_path, {"a/b.png": b"", "a/c/d.png": b""})
    before = os.listdir("/proc/self/fd")
    photos = storage.Local(str(tmp_path))
    walk = shards.walk(photos, NOTHING)
    assert next(walk) == "a/b.png"
    assert len(os.listdir("/proc/self/fd")) > len(before)
    del photos
    assert list(walk) == ["a/c/d.png"], "the walk uses them"
    del walk
    assert os.listdir("/proc/self/fd") == before


@given(files=st.lists(PATHS, max_size=12))
def test_a_list_holds_names_of_any_bytes(files):
    class Memory(dict):
        read = dict.__getitem__

    raw = shards.encode(files)
    assert shards.paths(Memory({"paths/000000.jsonl": raw}), 0) == files
    assert raw.count(b"\n") == len(files)


def test_what_is_hidden_or_ignored_is_left_out_and_links_are_not_followed(tmp_path):
    lay(
        tmp_path,
        {"a/b.png": b"", ".hidden/c.png": b"", "a/.d": b"", "a/e.part": b"", "Thumbs.db": b"", "@eaDir/x": b""},
    )
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert list(shards.walk(storage.Local(str(tmp_path)), ignored_names(IGNORE))) == ["a/b.png", "loop", "pipe"]
    assert ".hidden/c.png" not in shards.walk(storage.Local(str(tmp_path)), NOTHING), "whatever tray.ignore says"


@needs_root
def test_a_folder_that_may_not_be_read_ends_the_listing(tmp_path):
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        folder.chmod(folder.stat().st_mode | 0o5)
    (tmp_path / "shut").mkdir(mode=0o700)

    def walk():
        with pytest.raises(OSError, match="Permission denied"):
            list(shards.walk(storage.Local(str(tmp_path)), NOTHING))

    as_user(NOBODY, walk)


def test_the_manifest_is_written_last_and_counts(tmp_path, monkeypatch):
    dest, written, real = local(tmp_path / "d"), [], durable.replace
    monkeypatch.setattr(durable, "replace", lambda path, data: (written.append(path.name), real(path, data)))
    manifest = shards.make(dest, draft(), iter("abcde"))
    assert (manifest.files, manifest.shards) == (5, 3)
    assert written == ["000000.jsonl", "000001.jsonl", "000002.jsonl", "manifest.json"]
    assert [shards.paths(dest, n) for n in range(3)] == [["a", "b"], ["c", "d"], ["e"]]
    assert [manifest.files_of(n) for n in range(3)] == [2, 2, 1]
    assert shards.read_manifest(dest) == manifest


def test_a_manifest_keeps_a_source_of_any_bytes(tmp_path):
    dest = local(tmp_path)
    made = shards.make(dest, draft(source=f"/photos/{ODD}"), [])
    assert shards.read_manifest(dest) == made
    assert b"\xff" not in (tmp_path / "manifest.json").read_bytes()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"schema":2}'])
def test_a_damaged_manifest_is_told_of(tmp_path, damage):
    (tmp_path / "manifest.json").write_bytes(damage)
    with pytest.raises(ManifestError, match="--restart"):
        shards.read_manifest(local(tmp_path))


def test_a_shard_is_done_when_its_result_has_its_final_name(tmp_path):
    dest = local(tmp_path)
    manifest = shards.make(dest, draft(), "abcde")
    lay(tmp_path, {"results/000001.jsonl": b"", "results/.000002.jsonl.0f.tmp": b"torn", "results/000000.parquet": b""})
    assert shards.unfinished(dest, manifest) == [0, 2]
    shards.sweep(dest)
    assert storage.names(dest, "results") == {"000001.jsonl", "000000.parquet"}


def test_a_restart_removes_results_first_and_what_is_not_ours_never(tmp_path, monkeypatch):
    dest = local(tmp_path)
    shards.make(dest, draft(), "abc")
    lay(tmp_path, {"results/000001.jsonl": b"", "results/mine.parquet": b"", "notes.txt": b""})
    removed, real = [], os.unlink
    monkeypatch.setattr(os, "unlink", lambda path: (removed.append(Path(path).name), real(path)))
    shards.clear(dest)
    assert removed[:2] == ["000001.jsonl", "manifest.json"]
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["mine.parquet", "notes.txt"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    bundles.publish(folder / "models", folder / "staged")
    return Classifier.load(folder / "models", 1)


@pytest.fixture
def photos(tmp_path):
    """Good pictures, and everything that is none."""
    root = tmp_path / "photos"
    lay(root, {
        "a.png": bundles.png((200, 60, 40)), f"trip/{ODD}": bundles.png((60, 200, 40)), "empty.jpg": b"",
        "text.jpg": b"no picture", "torn.png": pictures.picture("PNG")[:100], "large.bin": b"x" * 50_001,
        "many.png": bundles.png((1, 2, 3), 1001),
    })  # fmt: skip
    (root / "link.png").symlink_to("a.png")
    os.mkfifo(root / "pipe.png")
    return root


def job_for(classifier, source, dest, **fields):
    """Make the list, and the job."""
    manifest = draft(source=str(source), bundle=classifier.manifest.files, **fields)
    listed = shards.walk(storage.at(str(source)), ignored_names(IGNORE))
    return Job(version(), shards.make(storage.at(str(dest)), manifest, listed), str(dest), classifier.packed(), 60.0)


def sorted_rows(job):
    done = [Station(job).sort(n) for n in range(job.manifest.shards)]
    assert not [one.problem for one in done if one.problem]
    dest = storage.at(job.dest)
    return [parse(raw) for one in done for raw in dest.read(job.manifest.result(one.shard)).splitlines(keepends=True)]


def test_a_row_is_what_the_daemon_would_have_journalled(classifier, photos, tmp_path):
    (tmp_path / "d").mkdir()
    found = sorted_rows(job_for(classifier, photos, tmp_path / "d"))
    predict, limits = classifier.make_predictor(), draft().limits
    for line in found:
        report, picture = inspect(os.fsencode(photos / line.file), classifier.eye, limits)
        outcome = Outcome(report) if picture is None else judged(report, predict(picture))
        claimed, batch = Claimed("", line.file), rows.NOBODY
        told = decision(claimed, batch, outcome, classifier, Review())
        assert line == told.model_copy(update=dict.fromkeys(rows.OWN))
    assert {line.file: line.error_code or line.label for line in found} == {
        "a.png": "happy", f"trip/{ODD}": "sad", "empty.jpg": "empty", "text.jpg": "not_an_image",
        "torn.png": "truncated", "large.bin": "too_large", "many.png": "too_many_pixels",
        "link.png": "symlink", "pipe.png": "fifo",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_shard_that_is_sorted_twice_has_the_same_bytes(classifier, photos, tmp_path, form):
    (tmp_path / "d").mkdir()
    job = job_for(classifier, photos, tmp_path / "d", format=form, shard_files=20)
    first, second = ((Station(job).sort(0), (tmp_path / "d" / job.manifest.result(0)).read_bytes()) for _ in range(2))
    assert first == second
    assert (first[0].files, first[0].rejected) == (9, 7)


def test_parquet_is_easy_in_duckdb_and_pandas(classifier, photos, tmp_path):
    (tmp_path / "d").mkdir()
    job = job_for(classifier, photos, tmp_path / "d", format="parquet", shard_files=20)
    Station(job).sort(0)
    result = str(tmp_path / "d" / job.manifest.result(0))
    lines = sorted_rows(job_for(classifier, photos, tmp_path / "d", format="jsonl"))
    asked = f"SELECT file, scores.happy FROM '{result}' WHERE event = 'sorted' ORDER BY file"
    [(name, score), _] = duckdb.sql(asked).fetchall()
    expected = {line.file: line.scores for line in lines if line.scores}
    assert (name, score) == ("a.png", expected["a.png"]["happy"])
    frame = pd.read_parquet(result)
    assert list(frame.columns) == rows.schema(("happy", "sad")).names
    good = frame[frame.event == "sorted"]
    assert list(good.scores.str["sad"]) == [scores["sad"] for scores in expected.values()]
    assert list(frame.file_b64.dropna()) == ["dHJpcC//CsMucG5n"]


def test_faces_have_a_place_in_parquet():
    line = parse(
        b'{"schema":1,"event":"sorted","file":"a","label":"happy","score":0.9,"scores":{"happy":0.9,"sad":0.1},'
        b'"views":{"faces":{"happy":0.9,"sad":0.1}},"faces":{"count":1,"boxes":[[1,2,3,4]],"whole":false}}\n'
    )
    assert line is not None
    [row] = pd.read_parquet(io.BytesIO(rows.as_parquet([line], ("happy", "sad")))).to_dict("records")
    assert row["faces"]["count"] == 1
    assert [list(box) for box in row["faces"]["boxes"]] == [[1, 2, 3, 4]]
    assert row["views"]["faces"] == {"happy": 0.9, "sad": 0.1}


def test_a_decoder_that_fails_is_the_problem_of_its_file(classifier, photos):
    def eye(_data, _pixels):
        raise KeyError("a defect")

    judge = rows.Judge(storage.Local(str(photos)), classifier, eye, classifier.make_predictor(), draft().limits)
    line = judge.row("a.png")
    assert (line.event, line.error_code, line.bytes) == ("rejected", "corrupt", (photos / "a.png").stat().st_size)
    assert "KeyError" in line.error and line.sha256


def test_a_file_that_is_gone_is_a_row_but_an_empty_folder_is_a_missing_disk(classifier, photos, tmp_path):
    (tmp_path / "d").mkdir()
    job = job_for(classifier, photos, tmp_path / "d", shard_files=20)
    (photos / "a.png").unlink()
    assert {line.file: line.error_code for line in sorted_rows(job)}["a.png"] == "vanished"
    (tmp_path / "d" / job.manifest.result(0)).unlink()
    photos.rename(tmp_path / "unmounted")
    photos.mkdir()
    done = Station(job).sort(0)
    assert "is its disk mounted?" in done.problem
    assert shards.unfinished(storage.at(job.dest), job.manifest) == [0], "nothing may be written then"


def test_a_disk_that_fails_costs_the_shard_and_no_row_tells_a_lie(classifier, photos, tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    job = job_for(classifier, photos, tmp_path / "d", shard_files=20)
    station = Station(job)

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "lstat", fail)
    done = station.sort(0)
    assert done.problem.startswith("a.png: Input/output error")
    assert shards.unfinished(storage.at(job.dest), job.manifest) == [0]


@needs_root
def test_a_file_that_may_not_be_read_is_a_row(classifier, photos, tmp_path):
    for folder in (tmp_path, *tmp_path.parents, photos):
        folder.chmod(folder.stat().st_mode | 0o5)
    (photos / "a.png").chmod(0o600)

    def row():
        judge = rows.Judge(
            storage.Local(str(photos)), classifier, classifier.eye, classifier.make_predictor(), draft().limits
        )
        return judge.row("a.png").model_dump()

    line = as_user(NOBODY, row)
    assert (line["event"], line["error_code"]) == ("rejected", "unreadable")


def test_another_version_on_another_machine_is_refused(classifier, photos, tmp_path):
    (tmp_path / "d").mkdir()
    job = job_for(classifier, photos, tmp_path / "d")
    with pytest.raises(RefusalError, match=r"it has moodbox .*, not 99: install the same"):
        Station(Job("99", job.manifest, job.dest, job.packed, 60.0))
    with pytest.raises(RefusalError, match=r"model\.tflite"):
        Station(Job(job.version, job.manifest, job.dest, job.packed | {"model.tflite": b"torn"}, 60.0))


def test_what_fsspec_reaches_gives_the_same_rows_as_a_folder(classifier, photos, tmp_path):
    """local:// is fsspec's own name for this machine's files."""
    for name in ("link.png", "pipe.png"):  # where there are no such things
        (photos / name).unlink()
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    here = sorted_rows(job_for(classifier, photos, tmp_path / "here"))
    there = sorted_rows(job_for(classifier, f"local://{photos}", f"local://{tmp_path}/there"))
    assert here == there
    assert len(here) == 7


@pytest.mark.parametrize(
    ("source", "dest", "said"),
    [
        ("/p", "/p", "DEST is in SOURCE"), ("/p", "/p/results", "DEST is in SOURCE"),
        ("memory://p", "/d", "one process's own"), ("{tray}/inbox", "/d", "whose daemon moves"),
        ("{tray}/inbox/trip", "/d", "whose daemon moves"), ("{tray}/.work", "/d", "whose daemon moves"),
        ("/p", "{tray}/happy", "is in the tray"),
    ],
)  # fmt: skip
def test_places_that_would_do_harm_are_refused(tmp_path, source, dest, said):
    lay(tmp_path, {"tray/.moodbox": b"", "tray/inbox/trip/a.jpg": b"", "tray/happy/b.jpg": b""})
    source, dest = (text.format(tray=tmp_path / "tray") for text in (source, dest))
    with pytest.raises(InputError, match=said):
        endpoints.check(source, dest)


def test_what_was_sorted_before_may_be_classified_again(tmp_path):
    lay(tmp_path, {"tray/.moodbox": b"", "tray/happy/b.jpg": b""})
    endpoints.check(str(tmp_path / "tray/happy"), str(tmp_path / "results"))


def test_two_backfills_do_not_work_in_one_folder(tmp_path):
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        endpoints.open_dest(str(tmp_path / "d"), first)
        with pytest.raises(InputError, match="another backfill is at work there"):
            endpoints.open_dest(str(tmp_path / "d"), second)
        first.close()
        endpoints.open_dest(str(tmp_path / "d"), second)


def test_what_is_no_place_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with contextlib.ExitStack() as opened:
        for place, said in (("file", "there is a file of this name"), ("file/below", "there is a file of this name")):
            with pytest.raises(InputError, match=said):
                endpoints.open_dest(str(tmp_path / place), opened)
    for place, said in (("none", "No such file"), ("file", "Not a directory")):
        with pytest.raises(InputError, match=said):
            endpoints.open_source(str(tmp_path / place))


@pytest.mark.parametrize(
    ("typed", "meant"), [("file:///a/b/", "/a/b"), ("/a/../b", "/b"), ("s3://bucket/a/", "s3://bucket/a")]
)
def test_a_place_means_the_same_everywhere(typed, meant):
    assert storage.located(typed) == meant


def test_a_row_says_nothing_of_time(classifier, photos):
    judge = rows.Judge(
        storage.Local(str(photos)), classifier, classifier.eye, classifier.make_predictor(), draft().limits
    )
    fields = orjson.loads(rows.as_jsonl([judge.row("a.png")]))
    assert fields.keys() == {
        "schema", "event", "file", "label", "score", "scores", "threshold", "model", "bytes", "width", "height",
        "format", "sha256",
    }  # fmt: skip
