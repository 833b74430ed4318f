"""An embedding job as a process of its own, for tests that kill it."""

from pathlib import Path

from rich.console import Console

from unimol2_hf.jobs.embed import embed
from unimol2_hf.jobs.settings import EmbedSettings


def run(source: str, output_dir: str, model: str, keep_conformers: bool = True) -> None:
    settings = EmbedSettings(model=model, rows_per_shard=4, num_workers=1, keep_conformers=keep_conformers)
    embed(Path(source), Path(output_dir), settings, Console(quiet=True))
