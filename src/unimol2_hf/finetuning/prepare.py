"""From a table to what is trained on: labels, split, molecules, and the scale of all numbers."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from ..configuration_unimol2 import REGRESSION
from ..data.conformer_cache import cache_for, featurize_cached
from ..data.identity import identities
from ..data.molecule_files import Source
from ..data.progress import stage
from ..data.splits import (
    TRAIN,
    UNUSED,
    Parts,
    make_split,
    one_part_a_molecule,
    split_by_column,
    split_by_file,
)
from ..data.tables import MoleculeTable, add_note, read_table, require_columns
from ..descriptors import RDKIT, descriptor_names
from ..errors import TableError
from ..feature_extraction_unimol2 import FeaturizedMolecule, UniMol2FeatureExtractor
from ..models.loading import load_feature_extractor
from ..molecules import Molecule
from ..settings_unimol2 import Standardization
from ..targets.kinds import describe_target, kinds_in
from ..targets.labels import Duplicates, LabelledTable, check_parts, label_table, resolve_duplicates
from ..worker_pool import worker_count
from .dataset import FeaturizedDataset
from .settings import FinetuneSettings

Scales = list[dict[str, Any]]

ROWS_FILE, SPLIT = Path("report/rows.csv"), "split"
SMALLEST_RELATIVE_STD = 1e-4
_SHOWN_TARGETS = 6


@dataclass(frozen=True)
class PreparedTable:
    """A table ready to train on.

    Attributes:
        table: labels and split; molecules that failed are unused.
        molecules: featurised, one for each row.
        extractor: that made them, and goes into the model's folder.
        names: identity of each row's molecule.
        targets: as `UniMol2Config.targets`, scaled by the training part.
        extra_features: as `UniMol2Config.extra_features`, likewise.
    """

    table: LabelledTable
    molecules: list[FeaturizedMolecule]
    extractor: UniMol2FeatureExtractor
    names: list[str]
    targets: Scales
    extra_features: Scales

    def read_molecules(self) -> list[Molecule]:
        """What was read of each row: standardised where that is asked for."""
        made = zip(self.molecules, self.table.molecules, strict=True)
        return [molecule.standardized_smiles or given for molecule, given in made]

    def with_split(self, split: Parts) -> "PreparedTable":
        """The same table in other parts, scaled as before."""
        return replace(self, table=replace(self.table, split=split))

    def training_data(self) -> FeaturizedDataset:
        """The training part; of several conformers one is drawn anew each time."""
        rows = self.table.rows_of(TRAIN)
        weights = self.table.row_weights
        if weights is not None:
            # The rate means the same whatever the unit of the weights.
            weights = weights[rows] / weights[rows].mean()
        return FeaturizedDataset([self.molecules[row] for row in rows], self.table.labels[rows], weights)


def prepare(
    data: Source | MoleculeTable, settings: FinetuneSettings, console: Console, held_out: bool = True
) -> PreparedTable:
    """Read, split and featurise a table.

    Args:
        data: the table.
        settings: of the run.
        console: where it is told.
        held_out: whether there are parts to validate and test on; without them every row is for training.

    Raises:
        TableError: the table cannot be used (see `label_table`, `make_split`), or every molecule of a part failed.
    """
    source = data if isinstance(data, MoleculeTable) else read_table(data, settings.smiles_column)
    table = label_table(
        source,
        settings.targets,
        kinds_in(settings.tasks),
        settings.feature_columns,
        settings.weight_column,
        [each for each in (settings.smiles_column, settings.split_column, settings.split_by) if each],
    )
    tell_targets(table, console)
    extractor = _extractor(settings)
    workers = worker_count(settings.num_workers)
    standardize = extractor.settings().standardize
    names = identities(table.molecules, standardize, workers)
    _tell_duplicates(resolve_duplicates(table, names, settings.duplicates), console)
    if held_out:
        split = _asked_split(source, names, settings, standardize, table.notes)
    else:
        split, table.parts = np.full(len(names), TRAIN, dtype="<U5"), (TRAIN,)
    left_out = one_part_a_molecule(split, names, table.notes)
    if left_out:
        console.print(f"{left_out} rows left out: the same molecule is in a later part of the split (see {ROWS_FILE})")
    table.use(split)
    cache = cache_for(extractor, settings.conformer_cache)
    molecules = []
    with stage(console, "conformers", len(table.molecules)) as advance:
        for row, molecule in featurize_cached(extractor, enumerate(table.molecules), cache, num_workers=workers):
            molecules.append(_with_extra_features(table, row, molecule))
            advance(1)
    _exclude_failed(table, molecules)
    balanced = settings.class_weights == "balanced"
    return PreparedTable(table, molecules, extractor, names, scaled_targets(table, balanced), scaled_features(table))


def _extractor(settings: FinetuneSettings) -> UniMol2FeatureExtractor:
    # Of the folder of a model that was fitted before, not its descriptors: they are this head's own.
    read = {"descriptor_names": descriptor_names() if settings.descriptors == RDKIT else ()}
    if settings.scale is not None:
        return UniMol2FeatureExtractor(**settings.featurizer, **read)
    return load_feature_extractor(settings.model, optional=True, **settings.featurizer, **read)


def _asked_split(
    source: MoleculeTable, names: list[str], settings: FinetuneSettings, standardize: Standardization, notes: list[str]
) -> Parts:
    """The part of each row, as the settings ask for it."""
    if settings.split_file:
        file, column = Path(settings.split_file), settings.split_column or SPLIT
        return split_by_file(file, column, settings.smiles_column, names, notes, standardize)
    require_columns(source.cells, [each for each in (settings.split_column, settings.split_by) if each])
    if settings.split_column:
        return split_by_column(source.cells[settings.split_column], notes)
    order = source.cells[settings.split_by] if settings.split_by else None
    return make_split(names, settings.split_method, settings.seed, order, settings.split_folds, settings.split_fold)


def _tell_duplicates(found: Duplicates, console: Console) -> None:
    if found.rows:
        against = ", ".join(f"{count} in {name}" for name, count in found.contradictions.items())
        console.print(
            escape(f"{found.rows} rows repeat a molecule; contradictory: {against or 'none'} (see {ROWS_FILE})"),
            highlight=False,
        )


def tell_targets(table: LabelledTable, console: Console) -> None:
    """What each target was taken for, and labels that were none."""
    told = [describe_target(target) for target in table.targets[:_SHOWN_TARGETS]]
    more = len(table.targets) - len(told)
    console.print(escape("; ".join(told) + (f"; and {more} more" if more else "")), highlight=False)
    for name, texts in table.left_out.items():
        row, text = next(iter(texts.items()))
        count = int((~np.isnan(table.labels[:, table.target_names.index(name)])).sum()) + len(texts)
        console.print(
            escape(f"{len(texts)} of {count} labels of {name} are no numbers, e.g. {text!r} in row {row}: left out"),
            highlight=False,
        )


def _with_extra_features(table: LabelledTable, row: int, molecule: FeaturizedMolecule) -> FeaturizedMolecule:
    """As at prediction, a row without one of the numbers is a failed one; what was standardised is noted."""
    if molecule.standardized_smiles is not None:
        add_note(table.notes, row, f"standardised to {molecule.standardized_smiles}")
    given = {name: float(values[row]) for name, values in table.extra_features.items() if not np.isnan(values[row])}
    return molecule.with_extra_features(list(table.extra_features), given)


def _exclude_failed(table: LabelledTable, molecules: list[FeaturizedMolecule]) -> None:
    """A molecule without features leaves its split; the row report keeps it."""
    failed = np.array([molecule.error is not None for molecule in molecules])
    table.split[failed] = UNUSED
    for part in table.parts:
        if failed.any() and not len(table.rows_of(part)):
            reasons = sorted({str(molecule.error.reason) for molecule in molecules if molecule.error is not None})
            raise TableError(f"no usable molecule is left in the {part} part; failures: {'; '.join(reasons[:3])}")


def scaled_targets(table: LabelledTable, balanced: bool = False) -> Scales:
    """The targets with mean and standard deviation, or weights of classes, of their training labels.

    Raises:
        TableError: a part of the split is empty, or a target hardly varies.
    """
    check_parts(table)
    labels = table.labels[table.rows_of(TRAIN)]
    return [_scaled_target(target, labels[:, index], balanced) for index, target in enumerate(table.targets)]


def _scaled_target(target: dict[str, Any], labels: NDArray[np.float64], balanced: bool) -> dict[str, Any]:
    if target["kind"] == REGRESSION:
        return {**target, **_scale(labels, f"target {target['name']}")}
    if not balanced:
        return target
    present = labels[~np.isnan(labels)].astype(int)
    counts = np.bincount(present, minlength=len(target["classes"])).clip(min=1)
    return {**target, "class_weights": (len(present) / (len(counts) * counts)).tolist()}


def scaled_features(table: LabelledTable) -> Scales:
    """The extra features with mean and standard deviation over the training part."""
    rows = table.rows_of(TRAIN)
    return [{"name": name, **_scale(values[rows], f"column {name}")} for name, values in table.extra_features.items()]


def _scale(values: NDArray[np.float64], what: str) -> dict[str, float]:
    mean, std = float(np.nanmean(values)), float(np.nanstd(values))
    if std <= SMALLEST_RELATIVE_STD * abs(mean):
        raise TableError(
            f"{what} varies by {std:.3g} around {mean:.6g}: too little for single precision; subtract the offset, or "
            "leave the column out where it is constant"
        )
    return {"mean": mean, "std": std}
