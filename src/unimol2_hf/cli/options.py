"""Settings classes on the command line and in files, by cyclopts."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin, get_type_hints

import yaml
from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Yaml

from ..errors import SettingsError
from ..finetuning.settings import FinetuneSettings
from ..hub.settings import HUB, ConvertSettings, ExportSettings, PublishSettings, PushLibrarySettings
from ..jobs.settings import (
    RANKING,
    RAY,
    BuildSettings,
    EmbedSettings,
    NeighbourSettings,
    PredictSettings,
    RaySettings,
    StatisticsSettings,
)
from ..pretraining.settings import PretrainSettings
from ..settings_unimol2 import (
    CONFORMERS,
    FEATURIZER,
    MACHINE,
    OUTPUT,
    TRAINING,
    FeaturizerOverrides,
    Settings,
    flag_of,
    kind_of,
)

Made = TypeVar("Made", bound=Settings)

# Every option of a class is one of the command's.
FLAT = Parameter(name="*")
# Headings in the order in which they are listed, after what has none and those of a single command.
GROUPS = (TRAINING, CONFORMERS, OUTPUT, RANKING, HUB, MACHINE, RAY)
# Lists are repeated or comma-separated; nothing asks for an empty one.
DEFAULTS = Parameter(negative_iterable=())


class SettingsFile(Yaml):
    """A YAML or JSON file of options by their names."""

    def _load_config(self, path: Path) -> dict[str, Any]:
        try:
            content = super()._load_config(path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise SettingsError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(content, dict):
            raise SettingsError(f"{path} holds no settings; write `name: value` lines, such as `epochs: 20`")
        # A mapping travels as text, as on the command line.
        return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in content.items()}


def settings_file(path: Path) -> SettingsFile:
    if not path.exists():
        raise SettingsError(f"{path} does not exist")
    return SettingsFile(path, must_exist=True, use_commands_as_keys=False)


def read_settings(settings: type[Made], path: Path) -> Made:
    """Settings of a file, as `--config` reads it.

    Raises:
        SettingsError: it cannot be read, lacks an option, or has one or a value that is not known.
    """
    reader = App(config=settings_file(path), default_parameter=DEFAULTS, result_action="return_value")

    def read(*, made: Annotated[settings, FLAT]) -> Settings:  # type: ignore[valid-type]
        return made

    reader.default(read)
    try:
        made: Made = reader([], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return made


def with_featurizer(settings: Made, overrides: Any) -> Made:
    """The settings with the options of the featurizer that were given."""
    given = {each.name: getattr(overrides, each.name) for each in fields(overrides)}
    content = {name: value for name, value in given.items() if value is not None}
    return type(settings)(**settings.all_but(FEATURIZER), **{FEATURIZER: content})


def names_in(listed: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of columns, each given by itself or several in a comma-separated text."""
    return tuple(name.strip() for part in listed or () for name in part.split(",") if name.strip())


def source_path(_: Any, tokens: Any) -> Path:
    """What lies elsewhere ("s3://...") is fetched; a path is made here, since `Path` drops a slash of "//"."""
    from ..data.molecule_files import local_source

    return local_source(tokens[0].value)


def _mapping_in(_: Any, tokens: Any) -> Mapping[str, Any]:
    text = tokens[0].value
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no YAML") from error
    if not isinstance(content, dict):
        raise ValueError(f"{text!r} is no mapping; write '{{name: value}}'")
    return content


def _whole_number(_: Any, tokens: Any) -> int:
    """cyclopts itself would cut 1.5 off to 1."""
    number = float(tokens[0].value)
    if not number.is_integer():
        raise ValueError(f"{tokens[0].value} is no whole number")
    return int(number)


def _annotated(settings: type, group_help: str = "") -> None:
    """Tell cyclopts what the fields' metadata say; the classes themselves know nothing of it."""
    hints = get_type_hints(settings)
    for each in fields(settings):
        more: dict[str, Any] = {}
        kind, _ = kind_of(hints[each.name])
        group = each.metadata.get("group")
        if group:
            more["group"] = Group(group, help=group_help, sort_key=GROUPS.index(group) if group in GROUPS else 0)
        if flag_of(each) != each.name:
            more["name"] = f"--{flag_of(each).replace('_', '-')}"
        if each.name == FEATURIZER:
            # Its options are the command's one by one: `FeaturizerOverrides`.
            more = {"parse": False}
        elif kind is int:
            more["converter"] = _whole_number
        elif get_origin(kind) is dict:
            more |= {"converter": _mapping_in, "accepts_keys": False, "n_tokens": 1}
        if more:
            settings.__annotations__[each.name] = Annotated[hints[each.name], Parameter(**more)]


for _each in (
    FinetuneSettings,
    PredictSettings,
    EmbedSettings,
    RaySettings,
    BuildSettings,
    NeighbourSettings,
    StatisticsSettings,
    PushLibrarySettings,
    PretrainSettings,
    ConvertSettings,
    PublishSettings,
    ExportSettings,
):
    _annotated(_each)
_annotated(FeaturizerOverrides, "Default: as the model's folder says.")
