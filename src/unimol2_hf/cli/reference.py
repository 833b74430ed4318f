"""The table of all options, `OPTIONS.md` beside this file: `python -m unimol2_hf.cli.reference`.

A test holds the file to the settings classes, and so the command line to the file.
"""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..finetuning.settings import FinetuneSettings
from ..hub.settings import ConvertSettings, ExportSettings, PublishSettings, PushLibrarySettings
from ..jobs.settings import (
    OTHER_DEFAULTS,
    BuildSettings,
    EmbedSettings,
    NeighbourSettings,
    PredictSettings,
    RaySettings,
    StatisticsSettings,
)
from ..pretraining.settings import NoiseSettings, PretrainSettings
from ..settings_unimol2 import FEATURIZER, FeaturizerSettings, flag_of, hints_of, kind_of

FILE = Path(__file__).with_name("OPTIONS.md")
# Of each command what stands before its options, and whether it takes the featurizer's.
COMMANDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("finetune DATA --output-dir DIR", (FinetuneSettings, FeaturizerSettings)),
    ("predict MODEL DATA --output FILE_OR_DIR", (PredictSettings, FeaturizerSettings, RaySettings)),
    ("embed SOURCE OUTPUT_DIR", (EmbedSettings, FeaturizerSettings, RaySettings)),
    ("neighbours EMBEDDINGS QUERY", (NeighbourSettings,)),
    ("conformers build SOURCE OUTPUT_DIR", (BuildSettings, RaySettings)),
    ("conformers stats LIBRARY...", (StatisticsSettings,)),
    ("conformers push LIBRARY ORG/NAME", (PushLibrarySettings,)),
    ("pretrain", (PretrainSettings,)),
    ("convert CHECKPOINT OUTPUT_DIR", (ConvertSettings,)),
    ("publish [MODEL] --output-dir DIR", (PublishSettings,)),
    ("export MODEL OUTPUT_DIR", (ExportSettings,)),
)
INTRODUCTION = """# Options

Made by `python -m unimol2_hf.cli.reference` from the settings classes. Every command takes `--config FILE` too, YAML or
JSON with these names (dashes become underscores); a run writes its own as `settings.json`. What wins: a flag, the file,
the model's folder, the default here.
"""


def reference() -> str:
    """The whole file."""
    parts = [INTRODUCTION]
    parts += [_section(f"`unimol2-hf {usage}`", classes) for usage, classes in COMMANDS]
    parts.append(_section("`noise` of `pretrain`", (NoiseSettings,), flags=False))
    reasons = [f"- `{name}` is {default}. {reason}" for name, (default, reason) in OTHER_DEFAULTS.items()]
    return "\n".join([*parts, "## Other defaults, and why", "", *reasons, ""])


def _section(title: str, classes: tuple[type, ...], flags: bool = True) -> str:
    lines = [f"## {title}", "", "| option | value | default | what it decides |", "|---|---|---|---|"]
    for settings in classes:
        # With a model's folder the featurizer's defaults are the folder's.
        of_folder = settings is FeaturizerSettings
        lines += [_row(each, settings, of_folder, flags) for each in fields(settings) if each.name != FEATURIZER]
    return "\n".join([*lines, ""])


def _row(each: Any, settings: type, of_folder: bool, flags: bool) -> str:
    name = f"--{flag_of(each).replace('_', '-')}" if flags else flag_of(each)
    value = _value(each, hints_of(settings)[each.name])
    default = "the folder's" if of_folder else _default(each)
    return f"| `{name}` | {value} | {default} | {each.metadata['help']} |"


def _value(each: Any, hint: Any) -> str:
    kind, _ = kind_of(hint)
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    name = {tuple: "names", dict: "mapping"}.get(get_origin(kind)) or kind.__name__  # type: ignore[arg-type]
    low, high = each.metadata["minimum"], each.metadata["maximum"]
    bounds = f"{low} to {high}" if low is not None and high is not None else f"{low} or more" if low is not None else ""
    return f"{name}, {bounds}" if bounds else str(name)


def _default(each: Any) -> str:
    if each.default_factory is not MISSING:
        return "none"
    if each.default is MISSING:
        return "must be given"
    if each.default is None:
        return "none"
    if isinstance(each.default, bool):
        return "on" if each.default else "off"
    return f"{each.default}"


if __name__ == "__main__":
    FILE.write_text(reference())
