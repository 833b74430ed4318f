"""Whether a published model is whole, and answers as it did when it was published."""

from pathlib import Path

from huggingface_hub import snapshot_download

from ..errors import ModelError
from ..models.registration import register
from .push import hub_errors
from .repository.check_unimol2 import CheckError
from .repository.check_unimol2 import check as check_folder


def check(model: str | Path, revision: str | None = None) -> dict[str, float]:
    """Compare a published model's files with their SHA-256, then recompute the outputs of ten molecules.

    The model is loaded by this package; code in the repository is not run.

    Args:
        model: folder, or Hub id.
        revision: of a Hub id: tag, branch or commit.

    Returns:
        Of each output the largest difference, relative to its largest value.

    Raises:
        ModelError: a file is missing or differs (a download that was broken off, a truncated cache), or the model
            answers otherwise: another version of Transformers, torch or RDKit does something else.
        HubError: it cannot be fetched.
    """
    register()  # the command line does not by itself
    folder = Path(model)
    if not folder.is_dir():
        with hub_errors(str(model), "nothing was fetched"):
            folder = Path(snapshot_download(str(model), revision=revision))
    try:
        return check_folder(folder)
    except CheckError as error:
        raise ModelError(str(error)) from error
