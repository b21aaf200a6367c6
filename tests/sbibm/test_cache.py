"""A cache makes a value once, also for several processes, and survives their deaths."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from sbi_boed_plugin.sbibm import _cache
from sbi_boed_plugin.sbibm._cache import TrainingCache, cache_key


class Counter:
    """Counts how often it makes something."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return {"value": torch.arange(3.0)}


def test_memory_and_files_return_what_was_made_once(tmp_path):
    make = Counter()
    cache = TrainingCache()
    first, kept = cache.get("key", make, tmp_path)
    assert not kept
    again, kept = cache.get("key", make, tmp_path)
    assert kept
    assert again is first
    loaded, kept = TrainingCache().get("key", make, tmp_path)
    assert kept
    assert torch.equal(loaded["value"], first["value"])
    assert make.count == 1


def test_what_is_in_memory_is_kept_in_a_folder_that_comes_later(tmp_path):
    make = Counter()
    cache = TrainingCache()
    cache.get("key", make, None)
    assert cache.get("key", make, tmp_path)[1]
    assert TrainingCache().get("key", make, tmp_path)[1]
    assert make.count == 1


def test_files_are_as_readable_as_others(tmp_path):
    TrainingCache().get("key", Counter(), tmp_path)
    (tmp_path / "other").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("key.pt", "other")}
    assert len(modes) == 1


def test_memory_is_bounded():
    cache = TrainingCache()
    make = Counter()
    for number in range(20):
        cache.get(str(number), make, None)
    assert cache.get("19", make, None)[1]
    assert not cache.get("0", make, None)[1]


def test_a_damaged_file_is_told_and_made_again(tmp_path):
    make = Counter()
    TrainingCache().get("key", make, tmp_path)
    path = tmp_path / "key.pt"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.warns(UserWarning, match=r"key\.pt cannot be read"):
        TrainingCache().get("key", make, tmp_path)
    assert make.count == 2
    assert TrainingCache().get("key", make, tmp_path)[1]


def test_a_failure_leaves_no_file(tmp_path):
    def fail():
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        TrainingCache().get("key", fail, tmp_path)
    assert not list(tmp_path.glob("*.pt*"))
    assert not TrainingCache().get("key", Counter(), tmp_path)[1]


def test_a_full_disk_costs_no_training(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_cache, "write_bytes", fail)
    cache, make = TrainingCache(), Counter()
    with pytest.warns(UserWarning, match=r"key\.pt cannot be written .*No space"):
        first, kept = cache.get("key", make, tmp_path)
    assert not kept and set(first) == {"value"}
    with pytest.warns(UserWarning, match="in memory only"):
        assert cache.get("key", make, tmp_path)[1]
    assert make.count == 1


def test_a_lock_of_a_killed_process_is_released(tmp_path):
    # Kills itself while it holds the lock.
    code = f"""
        import os, signal
        from pathlib import Path
        from filelock import FileLock
        FileLock(Path({str(tmp_path)!r}) / "key.lock").acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert not TrainingCache().get("key", Counter(), tmp_path)[1]


@pytest.mark.parametrize(
    "one, other",
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(3)}),
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2).double()}),
        ({"a": None}, {"a": "None"}),
        ({"a": np.zeros(2)}, {"a": np.ones(2)}),
        ({"a": {"b": 1}}, {"a": {"b": 2}}),
    ],
)
def test_keys_tell_parts_apart(one, other):
    assert cache_key(one) != cache_key(other)
    assert cache_key(one) == cache_key(dict(one))
