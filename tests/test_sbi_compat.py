"""Which sbi is accepted, and what of its private parts is changed."""

import copy
import pickle

import pytest
from sbi.utils.tracking import TensorBoardTracker

from sbi_boed_plugin import NLE_INCE, NPE_GKL, NRE_GKL
from sbi_boed_plugin._sbi_compat import check_sbi_version
from tests.conftest import NoOpTracker


@pytest.mark.parametrize("version", ["0.27.0", "0.27.3", "0.27.1.dev4"])
def test_a_supported_version_passes(version):
    check_sbi_version(version)


@pytest.mark.parametrize("version", ["0.26.1", "0.28.0", "0.28.0a1", "0.2.7", "1.27.0"])
def test_any_other_version_is_refused_with_the_remedy(version):
    with pytest.raises(ImportError, match=rf"{version} is.*pip install"):
        check_sbi_version(version)


class DoesNotPickle(NoOpTracker):
    def __reduce__(self):
        raise TypeError("a connection cannot be pickled")


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
@pytest.mark.parametrize("trainer", [NLE_INCE, NPE_GKL, NRE_GKL])
def test_a_tracker_that_pickles_is_kept_and_no_folder_written(
    trainer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for again in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        assert type(again(trainer(tracker=NoOpTracker()))._tracker) is NoOpTracker
        assert not any(tmp_path.iterdir())
    loaded = pickle.loads(pickle.dumps(trainer(tracker=DoesNotPickle())))
    assert type(loaded._tracker) is TensorBoardTracker  # as with sbi
