"""Loading with checks: is it a Uni-Mol2 model, can it be loaded, are all of its weights there."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    get_verbosity,
    is_progress_bar_enabled,
    set_verbosity,
    set_verbosity_error,
)

from ..configuration_unimol2 import UniMol2Config
from ..errors import ModelError
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2PreTrainedModel
from .packaged import resolve_model

PREPROCESSOR_FILE = "preprocessor_config.json"
TASK_HEAD = "classifier."
# Fields of the config that decide an encoder's answers, and that its weights' shapes do not tell.
_BESIDE_WEIGHTS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "gaussian_max_angstrom", "length_normalizer")
# What `from_pretrained` raises for a folder, a config or weights that cannot be used.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError)

Loaded = TypeVar("Loaded", bound=UniMol2PreTrainedModel)


def load_config(model: str, **changes: Any) -> UniMol2Config:
    """The config of "unimol2-nano", a folder or a Hub id, single fields changed.

    Raises:
        ModelError: it cannot be read, is no Uni-Mol2 model's, or has no such field.
    """
    folder = resolve_model(model)
    try:
        found = UniMol2Config.get_config_dict(folder)[0].get("model_type")
        if found != UniMol2Config.model_type:
            raise ModelError(f"{model} holds no Uni-Mol2 model (its model_type is {found!r})")
        config, unknown = UniMol2Config.from_pretrained(folder, return_unused_kwargs=True, **changes)
    # AttributeError: the file is JSON, but holds no names with values.
    except (*LOAD_ERRORS, AttributeError) as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{model} cannot be loaded: {error}") from error
    if unknown:
        raise ModelError(f"{model}: UniMol2Config has no field {next(iter(unknown))!r}")
    made: UniMol2Config = config
    return made


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without Transformers' bars and report of each file that is loaded or saved; what matters is told by name."""
    shown, verbosity = is_progress_bar_enabled(), get_verbosity()
    disable_progress_bar()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)
        if shown:
            enable_progress_bar()


def load_model(
    model_class: type[Loaded],
    model: str,
    config: UniMol2Config | None = None,
    dtype: torch.dtype | None = None,
    begins_anew: tuple[str, ...] = (),
) -> Loaded:
    """A model with every one of its weights: random ones would be taken for pretrained ones.

    Args:
        model_class: what to load it as.
        model: "unimol2-nano", a folder or a Hub id.
        config: from `load_config`; by default the model's own.
        dtype: of the weights; by default the folder's.
        begins_anew: prefixes of weights that may be missing or of another shape, such as a task head's.

    Raises:
        ModelError: it cannot be loaded, is no Uni-Mol2 model, or weights are missing.
    """
    config = config or load_config(model)
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        with quiet_transformers():
            loaded, found = model_class.from_pretrained(
                resolve_model(model), config=config, ignore_mismatched_sizes=True, output_loading_info=True, **options
            )
    except LOAD_ERRORS as error:
        raise ModelError(f"{model} cannot be loaded: {error}") from error
    lacking = {*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])}
    names = sorted(name for name in lacking if not name.startswith(begins_anew or ("\0",)))
    if names:
        what = "is not fine-tuned" if all(name.startswith(TASK_HEAD) for name in names) else "is incomplete"
        raise ModelError(f"{model} {what}: no usable weights for {', '.join(names[:3])} ({len(names)} in all)")
    made: Loaded = loaded
    return made


def encoder_fingerprint(model: UniMol2PreTrainedModel) -> str:
    """Hash of an encoder's weights, and of what else decides its answers; the head and the task do not count."""
    config = model.config
    digest = hashlib.blake2b(json.dumps({name: getattr(config, name) for name in _BESIDE_WEIGHTS}).encode())
    add_weights(digest, model.base_model)
    return digest.hexdigest()[:32]


def add_weights(digest: Any, model: torch.nn.Module) -> None:
    """Put names and bytes of a model's weights into a hash."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def load_feature_extractor(model: str, optional: bool = False, **changes: Any) -> UniMol2FeatureExtractor:
    """The feature extractor of a model's folder, single settings changed.

    Args:
        model: "unimol2-nano", a folder or a Hub id.
        optional: a folder without one gets the default one.
        **changes: see `FeaturizerSettings`.

    Raises:
        ModelError: there is none.
        SettingsError: a setting is not known or out of range.
    """
    folder = resolve_model(model)
    if optional and Path(folder).is_dir() and not (Path(folder) / PREPROCESSOR_FILE).is_file():
        return UniMol2FeatureExtractor(**changes)
    try:
        extractor: UniMol2FeatureExtractor = UniMol2FeatureExtractor.from_pretrained(folder, **changes)
    except OSError as error:
        raise ModelError(f"{model} has no feature extractor: {error}") from error
    return extractor
