"""The pretrained model that comes with the package."""

from pathlib import Path

from ..settings_unimol2 import NANO_NAME

# A folder as `from_pretrained` takes it; its README.md is the model's card.
NANO = str(Path(__file__).parents[1] / "nano")


def resolve_model(name: str) -> str:
    """The packaged model's folder for "unimol2-nano"; any other name, folder or Hub id as it is."""
    return NANO if name.lower() == NANO_NAME else name
