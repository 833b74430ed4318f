"""A library of conformers as a data set of the Hub: its card, and one commit with all its shards."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData
from rich.console import Console
from rich.markup import escape

from ..conformers import conformer_versions
from ..data.atomic_files import write_text_whole
from ..data.output_folder import JOB_FILE, SUMMARY_FILE, read_job
from ..data.shards import CONFORMERS, PRETRAINING_SCHEMA, finished_shards, shard_counts, shard_path
from ..errors import LibraryError
from ..jobs.build_conformers import RDKIT_DESCRIPTORS, BuildSummary
from ..jobs.settings import BuildSettings
from ..settings_unimol2 import ConformerSettings, flag_of
from .push import push_folder
from .settings import PushLibrarySettings

CARD_FILE = "README.md"
_TEMPLATE = Path(__file__).with_name("data_set_card.md.jinja")
_TAGS = ["chemistry", "molecules", "conformers", "3d", "unimol2"]
_MEANINGS = {
    "row": "number of the row in the source",
    "id": "of the row, where the source had one",
    "smiles": "canonical; of a row that could not be read, as it was written",
    "atomic_numbers": "of the n heavy atoms, in the order of `smiles`",
    "conformers": "coordinates of the same atoms, x y z after x y z (3 n numbers a conformer), angstrom, centred",
    "provenance": "of each conformer: method, is_3d, seed, force field and whether it converged, note, versions",
    "error": "why a row has no conformer; null where it has",
    "error_code": "the same in a word",
    "num_heavy_atoms": "n",
    "scaffold": "Murcko scaffold; empty for an acyclic molecule",
    RDKIT_DESCRIPTORS: "RDKit's descriptors; their names are in the column's metadata",
}
_KEPT = "kept from the source"
# Of the build: those that decide coordinates. Names of the source's columns say nothing about these.
_TOLD = (*(each.name for each in fields(ConformerSettings)), "max_atoms")
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip


def push_library(library: Path, repo_id: str, settings: PushLibrarySettings, console: Console) -> str:
    """Push the shards of a finished library and a card made for them in one commit, whose id is returned.

    The card is written into the library's folder too, anew each time.

    Raises:
        LibraryError: the folder holds no finished library.
        OutputFolderError: the card cannot be written, or `job.json` cannot be read.
        HubError: see `push_folder`.
    """
    card = data_set_card(library, repo_id, settings.origin, settings.license)
    write_text_whole(library / CARD_FILE, card)
    commit = push_folder(
        library,
        repo_id,
        repo_type="dataset",
        tag=settings.revision,
        message=f"{len(finished_shards(library / CONFORMERS))} shards of conformers",
        private=settings.private,
    )
    console.print(f"{escape(repo_id)} is at commit {commit}; load_dataset({escape(repo_id)!r}) reads it")
    return commit


def data_set_card(library: Path, repo_id: str, origin: str, license: str) -> str:
    """The card of a finished library, in Markdown; nothing in it tells of the machine that made the library.

    Raises:
        LibraryError: the folder holds no finished library.
    """
    summary, schema = _finished(library)
    job = read_job(library)["job"]
    metadata = DatasetCardData(
        license=license,
        pretty_name=repo_id.rpartition("/")[2],
        tags=_TAGS,
        size_categories=[_size_category(summary.rows)],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": f"{CONFORMERS}/part-*.parquet"}],
            }
        ],
    )
    card = DatasetCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        repo_id=repo_id,
        origin=origin.strip(),
        columns=[_column(each) for each in schema],
        settings=_told_settings(job["settings"]),
        **{name: (job.get("conformers") or {}).get(name, "not recorded") for name in conformer_versions()},
        **vars(summary),
    )
    return str(card.content)


def _finished(library: Path) -> tuple[BuildSummary, pa.Schema]:
    """What a library counts and its columns, once all its shards are there."""
    numbers = sorted(finished_shards(library / CONFORMERS))
    if not (library / SUMMARY_FILE).is_file() or not numbers:
        raise LibraryError(
            f"{library} holds no finished library; give the folder with {JOB_FILE} of `unimol2-hf conformers build`, "
            "and run that to its end"
        )
    paths = [shard_path(library / CONFORMERS, number) for number in numbers]
    try:
        summary = BuildSummary(**json.loads((library / SUMMARY_FILE).read_text()))
        rows = sum(shard_counts(path)["rows"] for path in paths)
        schema = pq.read_schema(paths[0])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise LibraryError(f"{library} was not written by `unimol2-hf conformers build`: {error}") from error
    if rows != summary.rows:
        raise LibraryError(f"{library} has {rows:,} of its {summary.rows:,} rows: shards are gone; build it again")
    if not set(PRETRAINING_SCHEMA.names) <= set(schema.names):
        raise LibraryError(f"{library} is no library to pretrain on; make one with `unimol2-hf conformers build`")
    return summary, schema


def _column(field: pa.Field) -> dict[str, str]:
    return {"name": field.name, "type": _told_type(field.type), "meaning": _MEANINGS.get(field.name, _KEPT)}


def _told_type(kind: Any) -> str:
    if pa.types.is_list(kind):
        return f"list of {_told_type(kind.value_type)}"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} {_told_type(kind.value_type)}"
    return "struct" if pa.types.is_struct(kind) else str(kind)


def _told_settings(recorded: dict[str, Any]) -> list[dict[str, Any]]:
    known = {each.name: each for each in fields(BuildSettings)}
    return [
        {"name": flag_of(known[name]), "value": recorded[name], "meaning": known[name].metadata["help"]}
        for name in _TOLD
        if name in recorded
    ]


def _size_category(rows: int) -> str:
    """By the Hub's names."""
    return next((name for bound, name in _SIZES if rows < bound), "n>1B")
