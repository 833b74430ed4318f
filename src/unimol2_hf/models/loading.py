"""Loading with checks: is it a Uni-Mol2 model, can it be loaded, are all of its weights there."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..configuration_unimol2 import UniMol2Config
from ..errors import ModelError
from ..modeling_unimol2 import UniMol2ForPropertyRegression

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


PREPROCESSOR_FILE = "preprocessor_config.json"


def _has_extractor(model: str) -> bool:
    return not Path(model).is_dir() or (Path(model) / PREPROCESSOR_FILE).is_file()


def load_regression_model(model: str, new_head: bool = False, **overrides: Any) -> UniMol2ForPropertyRegression:
    """A regression model from a folder or Hub id, with every weight of its encoder.

    Args:
        new_head: whether the task head may be missing, or of another shape.
        **overrides: fields of the config to replace.

    Raises:
        ModelError: it cannot be loaded, is no Uni-Mol2 model, or weights are missing.
    """
    check_model_type(model)
    try:
        config = UniMol2Config.from_pretrained(model, **overrides)
        loaded, loading = UniMol2ForPropertyRegression.from_pretrained(
            model, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except LOAD_ERRORS as error:
        raise ModelError(f"{model} cannot be loaded: {error}") from error
    lacking = {name for name in lacking_weights(loading) if not (new_head and name.startswith("classifier."))}
    only_head = all(name.startswith("classifier.") for name in lacking)
    check_complete(model, lacking, "is not fine-tuned" if only_head else "is incomplete")
    return loaded
