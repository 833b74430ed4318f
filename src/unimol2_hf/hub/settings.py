"""What is converted, what is said about something that goes to the Hub, and under which name."""

from dataclasses import MISSING, dataclass
from typing import Literal

from ..errors import SettingsError
from ..settings_unimol2 import OUTPUT, Settings, option

HUB = "Hub"

ProgramKind = Literal["onnx", "openvino", "torch"]


@dataclass(frozen=True)
class PushLibrarySettings(Settings):
    """A library of conformers as a data set of the Hub."""

    origin: str = option(MISSING, "where the molecules come from: name, version, address; or unknown")
    license: str = option(MISSING, "of the molecules, by the Hub's identifiers (cc-by-4.0, cc0-1.0, ...); or unknown")
    revision: str | None = option(None, "tag for this version, a new one; default: none")
    private: bool = option(False, "make a new repository private")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("origin", "license"):
            if not getattr(self, name).strip():
                raise SettingsError(f"{name} is empty; say it, or say unknown")


@dataclass(frozen=True)
class ConvertSettings(Settings):
    """What is taken from an official checkpoint."""

    filename: str | None = option(None, "file inside the Hub repository")
    head: str | None = option(None, "name of the task head, where there are several")
    ignore_head: bool = option(False, "leave the task head out, keep the pretraining heads")
    targets: str | None = option(None, "names of the task head's outputs, comma-separated")
    verify: bool = option(False, "recompute molecules before and after")
    molecules: str | None = option(None, "SMILES for --verify, comma-separated")
    tolerance: float = option(1e-5, "largest relative difference that --verify accepts", minimum=0)
    max_shard_size: str = option("2GB", "largest safetensors file", group=OUTPUT)


@dataclass(frozen=True)
class PublishSettings(Settings):
    """What a published repository holds, and where it goes."""

    scale: str | None = option(None, "of an official checkpoint: 84m, 164m, 310m, 570m, 1.1b, several, or all")
    checkpoint: str | None = option(
        None, "the official checkpoint: a file, a folder with one for each scale, or a Hub id (dptech/Uni-Mol2)"
    )
    push: str | None = option(None, "organisation or user, or ORG/NAME; nothing is sent without it", group=HUB)
    revision: str | None = option(
        None, "tag of what is pushed, which the card names; default: this package's version", group=HUB
    )
    private: bool = option(False, "make the repository a private one, where it is new", group=HUB)
    space: str | None = option(None, "ORG/NAME of a Space that the card is to link to", group=HUB)
    model_license: str | None = option(
        None, "licence of a model of your own, as the Hub names it (mit, cc-by-4.0)", group=HUB, flag="license"
    )
    include_training_set: bool = option(False, "push the training molecules and their labels too", group=HUB)
    max_shard_size: str = option("2GB", "largest safetensors file", group=OUTPUT)


@dataclass(frozen=True)
class ExportSettings(Settings):
    """The kind of program that a model is exported as."""

    to: ProgramKind = option("onnx", "a program for ONNX Runtime, for OpenVINO, or of torch.export")
