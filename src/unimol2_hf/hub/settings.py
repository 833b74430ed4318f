"""What is said about something that goes to the Hub, and under which name."""

from dataclasses import MISSING, dataclass

from ..errors import SettingsError
from ..settings_unimol2 import Settings, option


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
