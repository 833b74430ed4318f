"""Options about data that several commands share."""

from dataclasses import dataclass

from ..settings_unimol2 import MACHINE, Settings, option

CACHE_VARIABLE = "UNIMOL2_HF_CONFORMERS"


@dataclass(frozen=True)
class CacheSettings(Settings):
    """Where conformers that were made are kept."""

    conformer_cache: str = option(
        "auto",
        "folder where conformers are kept for the next run; auto: $UNIMOL2_HF_CONFORMERS, else "
        "~/.cache/unimol2_hf/conformers; none: not kept",
        group=MACHINE,
    )
