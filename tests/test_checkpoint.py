"""Files of campaigns: one call at a time, damage, full disks."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sbi_boed_plugin._checkpoint import load_checkpoint
from tests.oracles import LinearGaussian as Model
from tests.test_sequence import assert_same, make, measure, run

SCRIPT = """
import sys, time
from tests.test_sequence import measure, run
calls = []
def slow(design):
    calls.append(design)
    if len(calls) == 2:
        print("in the middle", flush=True)
        time.sleep(60)
    return measure(design)
run(sys.argv[1], observe=slow)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_needs(path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "in the middle"
    # As long as that process measures, nobody else does.
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="in use by another.*Wait until"):
        run(path, observe=never)
    assert path.read_bytes() == before
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What it may have been writing when it was killed is written over.
    path.with_name(".campaign.pt.tmp").write_text("half of a checkpoint")
    assert_same(run(path), run())
    names = {p.name for p in path.parent.iterdir()}
    assert names == {"campaign.pt", ".campaign.pt.lock"}


def never(design):
    raise AssertionError("an experiment was run")


def test_one_call_at_a_time_uses_a_checkpoint(path):
    link = path.with_name("link.pt")
    link.symlink_to(path)

    def measure_meanwhile(design):
        for same in (path, str(path), link):
            with (
                ThreadPoolExecutor() as pool,
                pytest.raises(RuntimeError, match="in use"),
            ):
                pool.submit(run, same, observe=never).result()
            with pytest.raises(RuntimeError, match="in use"):
                run(same, observe=never)
        return measure(design)

    result = run(link, num_rounds=1, observe=measure_meanwhile)
    assert link.is_symlink(), "the link was replaced by a file"
    # Free again, also after an error.
    with pytest.raises(ZeroDivisionError):
        run(path, num_rounds=2, observe=lambda design: 1 / 0)
    assert_same(run(path, num_rounds=1), result)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "campaign.pt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The bytes of the checkpoint of one round."""
    path = tmp_path_factory.mktemp("finished") / "campaign.pt"
    run(path, num_rounds=1)
    return path.read_bytes()


def assert_refused(path, content):
    path.write_bytes(content)
    inference = make()
    with pytest.raises(ValueError, match="checkpoint=.*left as it is. Pass another"):
        run(path, inference=inference, observe=never)
    assert path.read_bytes() == content
    assert inference._neural_net is None and inference.belief is None


def test_a_single_changed_bit_is_noticed(path, finished):
    """In the headers and the directory of the archive, and all over its content."""
    size = len(finished)
    places = {*range(60), *range(0, size, size // 60), *range(size - 120, size)}
    for place in sorted(places):
        changed = bytearray(finished)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged.*checksum.*left as it is"):
            load_checkpoint(path, {})


def test_what_is_no_checkpoint_is_refused_and_kept(path, finished):
    weights = io.BytesIO()
    torch.save({"weights": torch.ones(3)}, weights)
    cut = [finished[:31], finished[: len(finished) // 2], finished[:-1]]
    for content in [b"", b"my notes", *cut, finished + b"0", weights.getvalue()]:
        assert_refused(path, content)


def transposed(weights):
    weights.update({k: v.T.contiguous() for k, v in weights.items() if v.dim() == 2})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state, _: state.update(version=1),
        lambda state, _: state.update(prior=Model),
        lambda state, _: state.update(rounds=3),
        lambda state, _: state["rounds"][0].update(extra=1),
        lambda state, _: state["rng"].update(numpy=[]),
        lambda state, _: state.pop("campaign"),
        lambda _, search: search["measurements"].pop("belief"),
        lambda _, search: search["networks"]["likelihood"].popitem(),
        lambda _, search: transposed(search["networks"]["likelihood"]),
        lambda _, search: transposed(
            search["measurements"]["observations"][0]["likelihood_estimator"][
                "likelihood"
            ]
        ),
        lambda _, search: search.update(policy={}),
        lambda _, search: search.update(rows=()),
        lambda _, search: search["log_prob"].add_(1.0),
        lambda _, search: search["measurements"]["belief"].update(particles=2.0),
        lambda _, search: search["measurements"]["observations"][0].pop("x"),
    ],
)
def test_a_state_that_is_not_of_this_trainer_is_refused(path, finished, spoil):
    state = torch.load(io.BytesIO(finished), weights_only=True)
    spoil(state, state["search"])
    content = io.BytesIO()
    torch.save(state, content)
    data = content.getvalue()
    assert_refused(path, data + hashlib.sha256(data).digest())


@pytest.mark.parametrize("path", [".", ""])
def test_a_directory_is_called_a_directory(path):
    with pytest.raises(ValueError, match="is a directory. Pass the path of a file"):
        run(path, observe=never)


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint(path, monkeypatch, finished, failing):
    path.write_bytes(finished)
    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="could not be written.*No space") as info:
            run(path, num_rounds=2, observe=never)
    assert info.value.errno == errno.ENOSPC
    assert path.read_bytes() == finished
    names = {p.name for p in path.parent.iterdir()}
    assert names == {"campaign.pt", ".campaign.pt.lock"}
    assert_same(run(path, num_rounds=2), run(num_rounds=2))


def test_a_measurement_that_cannot_be_saved_is_told(path, monkeypatch):
    def measure_until_full(design):
        monkeypatch.setattr(os, "fsync", full)
        return torch.tensor([0.25])

    with pytest.raises(OSError, match=r"x=\[0\.25\] at design=.*let observe"):
        run(path, observe=measure_until_full)
    monkeypatch.undo()
    assert run(path, num_rounds=1, observe=lambda _: torch.tensor([0.25])).x == 0.25
