"""Checks of what a folder or Hub id holds, for the commands that load a model."""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .configuration_unimol2 import UniMol2Config
from .errors import ModelError

# What `from_pretrained` raises for a folder, a config or weights that cannot be used.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError)


def check_model_type(model: str) -> None:
    """Raise `ModelError` unless a folder or Hub id says that it holds a Uni-Mol2 model."""
    try:
        found = UniMol2Config.get_config_dict(model)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise ModelError(f"{model} cannot be loaded: {error}") from error
    if found != UniMol2Config.model_type:
        raise ModelError(f"{model} holds no Uni-Mol2 model (its model_type is {found!r})")


def lacking_weights(loading: Mapping[str, Any]) -> set[str]:
    """Names that were missing or of another shape, from `from_pretrained`'s `output_loading_info`."""
    return {*loading["missing_keys"], *(entry[0] for entry in loading["mismatched_keys"])}


def check_complete(model: str, lacking: Iterable[str], what: str = "is incomplete") -> None:
    """Raise `ModelError` if any weights are lacking: random ones would be taken for pretrained ones."""
    names = sorted(lacking)
    if names:
        raise ModelError(f"{model} {what}: no usable weights for {', '.join(names[:3])} ({len(names)} in all)")
