"""Export of a model together with the code that defines it, ready for the Hub."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME

from .. import feature_extraction_unimol2
from ..calibration import CALIBRATION_FILE
from ..configuration_unimol2 import KERNEL, UniMol2Config
from ..errors import ModelError
from ..fingerprints import FINGERPRINTS_FILE
from ..models.registration import AUTO_MAP, CUSTOM_PIPELINES
from ..pipeline_unimol2 import member_folder


def export_with_code(
    model: PreTrainedModel,
    save_directory: str | Path,
    feature_extractor: feature_extraction_unimol2.UniMol2FeatureExtractor | None = None,
    keep_graph_targets: bool = False,
    **save_kwargs: Any,
) -> Path:
    """Write a folder that loads without this package, by `trust_remote_code=True`.

    It holds weights, config, feature extractor and the few source files that define them, ready for the Hub; of a model
    loaded from a fine-tuned folder also the training molecules' fingerprints, the calibration and the other members.

    Args:
        model: any Uni-Mol2 model.
        save_directory: folder to write; created if missing.
        feature_extractor: saved beside the model; a default one if not given.
        keep_graph_targets: also the head of the graph targets that a pretraining model may have.
        **save_kwargs: passed to `model.save_pretrained`, for example `max_shard_size`.
    """
    if hasattr(model, "peft_config"):
        raise ModelError("an adapted model (PEFT) cannot be exported with its code; merge it: model.merge_and_unload()")
    folder = Path(save_directory)
    extractor = feature_extractor or feature_extraction_unimol2.UniMol2FeatureExtractor()
    if not keep_graph_targets:
        weights = model.state_dict().items()
        save_kwargs["state_dict"] = {name: each for name, each in weights if not name.startswith("graph_target_head.")}
    model.save_pretrained(folder, **save_kwargs)
    extractor.save_pretrained(folder)
    if not keep_graph_targets:
        _update_json(folder / "config.json", graph_targets=None)
    _copy_companions(Path(model.name_or_path or ""), folder, model.config)
    add_code(folder)
    return folder


def add_code(folder: Path) -> None:
    """Put the source files that define a saved model into its folder, and say which class is which Auto class's."""
    _update_json(folder / "config.json", auto_map=AUTO_MAP, custom_pipelines=CUSTOM_PIPELINES)
    _update_json(
        folder / "preprocessor_config.json", auto_map={"AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"]}
    )
    for source in source_files():
        shutil.copyfile(source, folder / source.name)


def _copy_companions(origin: Path, folder: Path, config: UniMol2Config) -> None:
    """What a fine-tuned folder has besides its model: fingerprints, calibration, the other members of an ensemble."""
    members = () if config.head_type == KERNEL else range(1, config.num_members)
    wanted = [path for number in members for path in (origin / member_folder(number)).glob("*")]
    wanted += [origin / name for name in (FINGERPRINTS_FILE, CALIBRATION_FILE)]
    for path in wanted:
        if path.name in (FINGERPRINTS_FILE, CALIBRATION_FILE, CONFIG_NAME) or path.name.startswith("model"):
            copy = folder / path.relative_to(origin)
            if path.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def source_files() -> list[Path]:
    """The modules named in the maps above and, recursively, what they import from this package."""
    package = Path(__file__).parents[1]
    named = [*AUTO_MAP.values(), *(str(entry["impl"]) for entry in CUSTOM_PIPELINES.values())]
    roots = {package / f"{name.split('.')[0]}.py" for name in named}
    imported = {Path(path) for root in roots for path in get_relative_import_files(root)}
    return sorted(roots | imported)


def _update_json(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | entries, indent=2, sort_keys=True) + "\n")
