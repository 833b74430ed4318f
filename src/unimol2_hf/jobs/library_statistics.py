"""What a library of conformers holds: scaffolds, sizes, failures (arXiv 2406.14969, table 1 and figure 1)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from ..data.atomic_files import whole_file, write_json_whole
from ..data.conformer_library import conformer_shards_of
from ..data.molecule_files import files_of
from ..errors import LibraryError

ACYCLIC = "(acyclic)"
STATISTICS_FILE, STATISTICS_FIGURE = "scaffolds.json", "scaffolds.png"
TOP = 40


@dataclass(frozen=True)
class LibraryStatistics:
    """What a library holds.

    Attributes:
        name: of the data set.
        rows: input rows.
        molecules: rows with a conformer: unique molecules.
        conformers_3d, conformers_2d: of all molecules.
        failed: rows without a conformer, by the first words of their reason.
        scaffolds: number of molecules of each scaffold, the most frequent first.
        heavy_atoms: number of molecules of each size.
    """

    name: str
    rows: int
    molecules: int
    conformers_3d: int
    conformers_2d: int
    failed: dict[str, int]
    scaffolds: dict[str, int]
    heavy_atoms: dict[int, int]

    def top(self, count: int = TOP) -> list[tuple[str, int, float]]:
        """The most frequent scaffolds with their number and share of molecules."""
        first = list(self.scaffolds.items())[:count]
        return [(name or ACYCLIC, number, number / self.molecules) for name, number in first]

    def summary(self) -> dict[str, Any]:
        """Table 1 of the paper for this library, and what it lacks."""
        return {
            "data set": self.name,
            "rows": self.rows,
            "molecules": self.molecules,
            "scaffolds": len(self.scaffolds),
            "molecules a scaffold": self.molecules / max(1, len(self.scaffolds)),
            "scaffolds seen once": sum(number == 1 for number in self.scaffolds.values()),
            "3D conformers": self.conformers_3d,
            "2D conformers": self.conformers_2d,
            "mean heavy atoms": sum(n * c for n, c in self.heavy_atoms.items()) / max(1, self.molecules),
            "failed or duplicate": sum(self.failed.values()),
        }


def library_statistics(folder: Path, name: str | None = None) -> LibraryStatistics:
    """Read the statistics of a folder that `unimol2-hf conformers build` wrote.

    Raises:
        LibraryError: no such folder, or no shards with scaffolds in it.
    """
    paths = files_of(conformer_shards_of(folder)) if folder.exists() else []
    if not paths:
        raise LibraryError(f"{folder} holds no shards of `unimol2-hf conformers build`")
    scaffolds: Counter[str] = Counter()
    heavy_atoms: Counter[int] = Counter()
    failed: Counter[str] = Counter()
    kinds: Counter[bool] = Counter()
    rows = 0
    for path in paths:
        names = pq.read_schema(path).names
        if not {"scaffold", "provenance", "num_heavy_atoms", "error"} <= set(names):
            raise LibraryError(f"{path} was not written by `unimol2-hf conformers build`")
        for batch in pq.ParquetFile(path).iter_batches(
            columns=["scaffold", "num_heavy_atoms", "provenance.list.element.is_3d", "error"]
        ):
            rows += batch.num_rows
            columns = batch.to_pydict()
            failed.update(reason.split(";")[0].split(" of row")[0] for reason in columns["error"] if reason)
            used = [entry is not None for entry in columns["scaffold"]]
            scaffolds.update(entry for entry in columns["scaffold"] if entry is not None)
            heavy_atoms.update(n for n, use in zip(columns["num_heavy_atoms"], used, strict=True) if use)
            kinds.update(each["is_3d"] for entry in columns["provenance"] for each in entry or ())
    return LibraryStatistics(
        name or folder.resolve().name,
        rows,
        sum(scaffolds.values()),
        kinds[True],
        kinds[False],
        dict(failed.most_common()),
        dict(scaffolds.most_common()),
        dict(sorted(heavy_atoms.items())),
    )


def write_statistics(libraries: Sequence[LibraryStatistics], output_dir: Path, console: Console) -> None:
    """Write `scaffolds.json` and `scaffolds.png`, and print the table."""
    output_dir.mkdir(parents=True, exist_ok=True)
    content = [
        {**each.summary(), "failures": each.failed, "heavy_atoms": each.heavy_atoms, "top": each.top()}
        for each in libraries
    ]
    write_json_whole(output_dir / STATISTICS_FILE, content)
    _draw(libraries, output_dir / STATISTICS_FIGURE)
    names, *rows = zip(*(each.summary().items() for each in libraries), strict=True)
    # One column for each library: a terminal is narrow.
    table = Table("", *(str(value) for _, value in names))
    for row in rows:
        table.add_row(row[0][0], *(_text(value) for _, value in row))
    console.print(table)
    console.print(f"written: {output_dir / STATISTICS_FILE}, {output_dir / STATISTICS_FIGURE}", highlight=False)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _draw(libraries: Sequence[LibraryStatistics], path: Path) -> None:
    """Figure 1 of the paper: the most frequent scaffolds, one panel for each library."""
    import matplotlib as mpl  # noqa: PLC0415 - the builder needs none

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, panels = plt.subplots(
        1, len(libraries), figsize=(7 * len(libraries), 8), layout="constrained", squeeze=False
    )
    for axes, library in zip(panels[0], libraries, strict=True):
        top = library.top()
        axes.barh(range(len(top)), [100 * share for _, _, share in top], color="tab:blue")
        axes.set_yticks(range(len(top)), _shortened(name for name, _, _ in top), fontsize=7, family="monospace")
        axes.invert_yaxis()
        axes.set_xlabel("molecules, %")
        axes.set_title(f"{library.name}: {library.molecules:,} molecules, {len(library.scaffolds):,} scaffolds")
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=120, format="png")
    plt.close(figure)


def _shortened(names: Iterable[str], limit: int = 44) -> list[str]:
    return [name if len(name) <= limit else f"{name[: limit - 1]}…" for name in names]
