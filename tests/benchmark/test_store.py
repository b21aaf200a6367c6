"""The folder: files are whole or not there, one run has it, nothing stops a report."""

import multiprocessing
import os
import signal
import time

import pytest

from sbi_boed_plugin._atomic import write_bytes
from sbi_boed_plugin.benchmark.store import FolderInUseError, Store, file_name
from tests.benchmark.conftest import make_record

SETTINGS = {"method": "npe", "seed": 0}


def test_what_is_written_is_read(tmp_path):
    store = Store(tmp_path)
    assert store.read(SETTINGS) is None and store.read_all() == []
    record = make_record(SETTINGS, result={"eig": float("nan"), "pair": (1, 2.5)})
    store.write(record)
    expected = record | {"result": {"eig": None, "pair": [1, 2.5]}}
    assert store.read(dict(reversed(SETTINGS.items()))) == expected
    assert store.read_all() == [expected]
    assert os.listdir(store.jobs) == [file_name(SETTINGS)]


def test_every_job_has_a_file_of_its_own():
    values = [1, "1", 1.0, True, "True", None, [1], ["1"], "a:B", "a:b", "x" * 500]
    names = {file_name({"a": value}).lower() for value in values}
    assert len(names) == len(values)
    assert all(len(name) < 200 and ":" not in name for name in names)
    for value in (float("inf"), object()):
        with pytest.raises(ValueError, match="must hold numbers, texts"):
            file_name({"a": value})


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


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", DEEP, b'{"status": "done"}', "copy"],
)
def test_a_file_that_holds_no_record_is_named_and_set_aside(tmp_path, content):
    store = Store(tmp_path)
    store.write(make_record({"method": "nle", "seed": 0}))
    (other,) = store.read_all()
    if content == "copy":
        # It would count as another result.
        content = next(store.jobs.iterdir()).read_bytes()
    path = store.jobs / file_name(SETTINGS)
    write_bytes(path, content)
    with pytest.warns(UserWarning, match=path.name):
        assert store.read_all() == [other]
    assert not path.exists() and list(store.jobs.glob("*.unreadable"))
    store.write(make_record(SETTINGS))
    assert len(store.read_all()) == 2


def hold(folder, pipe):
    with Store(folder).lock():
        pipe.send("locked")
        time.sleep(60.0)


@pytest.mark.slow
def test_one_run_has_the_folder_until_its_process_dies(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "locked"
    with (
        pytest.raises(FolderInUseError, match="another run writes"),
        Store(tmp_path).lock(),
    ):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Store(tmp_path).lock():
        pass
