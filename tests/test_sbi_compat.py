"""Only the sbi that this package was written for is accepted."""

import pytest

from sbi_boed_plugin._sbi_compat import check_sbi_version


@pytest.mark.parametrize("version", ["0.27.0", "0.27.3", "0.27.1.dev4"])
def test_a_supported_version_passes(version):
    check_sbi_version(version)


@pytest.mark.parametrize("version", ["0.26.1", "0.28.0", "0.28.0a1", "0.2.7", "1.27.0"])
def test_any_other_version_is_refused_with_the_remedy(version):
    with pytest.raises(ImportError, match=rf"{version} is.*pip install"):
        check_sbi_version(version)
