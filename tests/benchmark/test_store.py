"""The folder: files are whole or not there, locks exclude, others' files survive."""

import json
import os
import time

import pytest

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin.benchmark.jobs import Job
from sbi_boed_plugin.benchmark.store import (
    DamagedFileError,
    JobLockedError,
    Store,
)
from tests.benchmark.conftest import failed_record

JOB = Job("two_moons", "npe", 1_000, seed=0, num_observation=1)
OTHER = Job("two_moons", "npe", 1_000, seed=0, num_observation=2)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.open()
    return store


def test_what_is_written_is_read(store):
    assert store.read(JOB) is None
    record = failed_record(JOB, "an error", "a trace")
    store.write(JOB, {**record, "load": float("nan")})
    assert store.read(JOB) == {**record, "load": None}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_keeps_the_earlier_file(tmp_path, monkeypatch, step):
    path = tmp_path / "below" / "file"
    write_bytes(path, b"earlier")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"status": "done"}',
        b'{"job": {"task": "sir"}, "status": "done"}',
    ],
)
def test_a_damaged_file_is_named_and_moved_aside(store, content):
    path = store.results / JOB.path("json")
    for number in ("", ".2"):
        write_bytes(path, content)
        with pytest.raises(DamagedFileError, match=path.name):
            store.read(JOB)
        aside = store.move_aside(JOB)
        assert aside.name == f"{path.name}{number}.damaged"
        assert aside.read_bytes() == content
    assert store.read(JOB) is None


def test_a_half_of_a_record_and_the_record_of_another_job_are_damaged(store):
    store.write(JOB, failed_record(JOB, "an error", "a trace"))
    path = store.results / JOB.path("json")
    whole = path.read_bytes()
    write_bytes(path, whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError):
        store.read(JOB)
    write_bytes(path, json.dumps(failed_record(OTHER, "an error", "")).encode())
    with pytest.raises(DamagedFileError, match="another job"):
        store.read(JOB)
    record = failed_record(JOB, "an error", "")
    del record["traceback"]
    write_bytes(path, json.dumps(record).encode())
    with pytest.raises(DamagedFileError, match="traceback"):
        store.read(JOB)


@pytest.mark.parametrize(
    "changed",
    [
        {"metrics": None},
        {"metrics": [0.5]},
        {"metric_errors": "none"},
        {"finished": "yesterday"},
        {"versions": None},
        {"warnings": None},
    ],
)
def test_a_record_with_values_of_other_kinds_is_damaged(store, changed):
    store.write(JOB, {**failed_record(JOB, "an error", ""), **changed})
    with pytest.raises(DamagedFileError, match=next(iter(changed))):
        store.read(JOB)


def test_one_at_a_time_has_a_job(store):
    with store.locked(JOB):
        with pytest.raises(JobLockedError, match="observation 1"), store.locked(JOB):
            pass
        with store.locked(OTHER):
            pass
    with store.locked(JOB):
        pass


def test_old_leftovers_are_removed_and_young_ones_are_not(store):
    folder = (store.results / JOB.path("json")).parent
    folder.mkdir(parents=True)
    old, young, foreign = (folder / name for name in (".a.1.tmp", ".b.2.tmp", "c.tmp"))
    for path in (old, young, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (time.time() - 4_000,) * 2)
    Store(store.folder).open()
    assert set(folder.iterdir()) == {young, foreign}


def test_old_leftovers_of_the_cache_are_removed_too(store):
    store.cache.mkdir()
    leftovers = [".ab.pt.x1y2", ".ab.pt.0f.tmp", ".cd.0f.tmp"]
    kept = ["ab.pt", "ab.lock", ".young.pt.x1", ".young.tmp"]
    for name in [*leftovers, *kept]:
        path = store.cache / name
        path.touch()
        if "young" not in name:
            os.utime(path, (time.time() - 4_000,) * 2)
    Store(store.folder).open()
    assert {path.name for path in store.cache.iterdir()} == set(kept)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        Store(tmp_path / "file").open()
