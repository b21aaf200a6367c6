"""The only place that looks at sbi's version or touches sbi's private names."""

import sbi

SUPPORTED_SBI = "0.27"


def check_sbi_version(version: str) -> None:
    """Refuse an sbi that this package was not written for.

    An error rather than a warning: the trainers subclass private parts of sbi, which
    another minor version may move, rename or, worse, give another meaning.

    Args:
        version: The version of the installed sbi, such as `"0.27.0"`.

    Raises:
        ImportError: If it is not a release of the supported minor version.
    """
    if version.split(".")[:2] != SUPPORTED_SBI.split("."):
        raise ImportError(
            f"sbi_boed_plugin needs sbi {SUPPORTED_SBI}.x, but sbi {version} is "
            'installed. Run `pip install "sbi>=0.27,<0.28"`, or look for a newer '
            "sbi_boed_plugin."
        )


check_sbi_version(sbi.__version__)

# Private names of sbi, imported after the check so that its message comes first.
from sbi.inference.trainers.nle.nle_base import (  # noqa: E402
    LikelihoodEstimatorTrainer as LikelihoodEstimatorTrainer,
)
from sbi.neural_nets.estimators.base import (  # noqa: E402
    ConditionalEstimatorBuilder as ConditionalEstimatorBuilder,
)
