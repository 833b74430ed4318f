"""Predict properties for a library with a fine-tuned model; every row stays."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from ..data.atomic_files import whole_file
from ..data.molecule_files import Source
from ..data.molecule_rows import Columns, Fields, MoleculeRow, text_of
from ..data.output_folder import JOB_FILE, SUMMARY_FILE
from ..data.shards import finished_shards, shard_path, whole_or_absent
from ..data.tables import conformer_summary
from ..errors import OutputFolderError, SettingsError, TableError
from ..modeling_unimol2 import UniMol2ForPropertyPrediction
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..targets.predictions import PREDICTED, prediction_cells, prediction_fields
from .library_job import RowSummary, check_source, run_job
from .model_job import Featurized, ModelJob, load_pipeline
from .ranking import Ranking, write_ranking
from .settings import PredictSettings

PREDICTIONS, JOB_SUFFIX = "predictions", ".job"
SIMILARITY, STANDARDIZED, CONFORMER = "nearest_similarity", "standardized", "conformer"
WARNING, ERROR, ERROR_CODE = "warning", "error", "error_code"
_ROWS_AT_A_TIME = 4096


def predict(model: str, data: Source, output: Path, settings: PredictSettings, console: Console) -> dict[str, int]:
    """Write every row of `data` with predictions, in order; after a kill, go on where it was.

    `data` is whatever `read_molecules` reads, a DataFrame or a `datasets.Dataset` too; its columns are all kept.
    Predictions are `predicted_<target>`: values, probabilities of the positive class, or classes, with
    `predicted_<target>_<class>` beside; of an ensemble `predicted_<target>_spread`, and where it was fitted on folds
    `_lower` and `_upper`; `nearest_similarity` is that to the training molecules; `standardized` what was read instead
    of the molecule, where the model standardises; `conformer` how it was made; `warning` what to know of it; `error`
    why there is no prediction, `error_code` in a word. Columns of numbers that the model reads must be there.

    Args:
        model: folder of a fine-tuned model, or a Hub id.
        data: the molecules.
        output: X.csv or X.parquet, whole or absent, with the job's folder X.job beside; or a folder, in which Parquet
            shards stay.
        settings: of the job.
        console: where it is told how far it has come.

    Returns:
        `rows`, `failed` and `flat` (rows with a conformer that is not 3D).

    Raises:
        TableError: the source lacks a column that is read, or has one that is to be added.
        OutputFolderError: the output cannot be written, or is another job's.
        ModelError: the folder holds no fine-tuned model.
    """
    return asdict(run_job(predict_job(model, data, output, settings), data, console))


def predict_job(model: str, data: Source, output: Path, settings: PredictSettings) -> "PredictJob":
    """What `predict` does, checked before anything is made."""
    file, folder = _output_places(output)
    if file is not None and file.exists() and not (folder / JOB_FILE).exists():
        raise OutputFolderError(f"{file} exists already; delete it, or choose another name")
    columns = Columns(settings.smiles_column, cells=True)
    job = PredictJob(settings, folder, columns, check_source(data, columns), model=model, file=file)
    names = [each.name for each in job.source_fields]
    missing = [name for name in job.pipeline.model.config.extra_feature_names if name not in names]
    if missing:
        raise TableError(f"the table has no column {', '.join(missing)}; it has: {', '.join(names)}")
    clashing = [each.name for each in job.added_fields if each.name in names]
    if clashing:
        raise TableError(f"the table has columns that the predictions need: {', '.join(clashing)}; rename them")
    if settings.top:
        job.ranking().check([each.name for each in job.added_fields])
    return job


def _output_places(output: Path) -> tuple[Path | None, Path]:
    """The file, if one is asked for, and the job's folder."""
    kind = output.suffix.lower()
    if kind in (".csv", ".parquet"):
        return output, output.with_suffix(JOB_SUFFIX)
    if kind and not output.is_dir():
        raise SettingsError(f"{output}: predictions are written as .csv, as .parquet, or into a folder")
    return None, output


@dataclass
class PredictJob(ModelJob):
    """Predictions beside the source's columns, in shards, which become one file where that is asked for."""

    folder: ClassVar[str] = PREDICTIONS
    title: ClassVar[str] = "predicting"

    file: Path | None = None

    @cached_property
    def pipeline(self) -> Any:
        kinds = MoleculePropertyPipeline, UniMol2ForPropertyPrediction
        return load_pipeline(*kinds, self.model, self.settings, self.extractor)

    @property
    def output(self) -> Path:
        return self.shards if self.file is None else self.file

    def ranking(self) -> Ranking:
        """What the settings ask for, of the file where there is one: its shards may be gone."""
        settings: PredictSettings = self.settings
        name = settings.rank_by or self.pipeline.model.config.target_names[0]
        predicted = f"{PREDICTED}{name}"
        column = predicted if predicted in [each.name for each in self.added_fields] else name
        beside = self.output_dir / "top.csv" if self.file is None else self.file.with_suffix(".top.csv")
        files = [self.file] if self.file else [shard_path(self.shards, n) for n in sorted(finished_shards(self.shards))]
        return Ranking(column, settings.top, settings.lowest, Path(settings.top_output or beside), files)

    @cached_property
    def _predicted_fields(self) -> Fields:
        return prediction_fields(self.pipeline.model.config, self.pipeline.calibration)

    @cached_property
    def added_fields(self) -> Fields:
        """The columns beside the source's."""
        standardizes = self.extractor.settings(**self.settings.featurizer).standardize != "none"
        return [
            *self._predicted_fields,
            *([pa.field(SIMILARITY, pa.float64())] if self.pipeline.has_similarity else []),
            *([pa.field(STANDARDIZED, pa.string())] if standardizes else []),
            *(pa.field(name, pa.string()) for name in (CONFORMER, WARNING, ERROR, ERROR_CODE)),
        ]

    def decisive(self) -> dict[str, Any]:
        fitted = self.pipeline.calibration
        return {**super().decisive(), "calibration": None if fitted is None else _digest(fitted.to_dict())}

    def write_shard(
        self, number: int, made: Iterable[tuple[int, Featurized]], after_row: Callable[[], object] = lambda: None
    ) -> int:
        schema = pa.schema([*self.source_fields, *self.added_fields])
        summary = RowSummary()
        options = {"coverage": self.settings.coverage}
        with whole_or_absent(shard_path(self.shards, number), schema) as writer:
            empty = dict.fromkeys(schema.names)
            results = self.pipeline.run_pairs(self._completed(made), self.settings.batch_size, **options)
            for row, result in results:
                summary.add(result)
                writer.write({**empty, **row.cells, **self._predicted(result)})
                after_row()
            writer.counts = asdict(summary)
        return summary.rows

    def _completed(self, made: Iterable[tuple[int, Featurized]]) -> Iterator[tuple[MoleculeRow, Any]]:
        names = self.pipeline.model.config.extra_feature_names
        for _, (row, molecule) in made:
            given = {name: row.cells.get(name) for name in names}
            yield row, self.pipeline.complete(molecule, row.molecule, given)

    def _predicted(self, result: Mapping[str, Any]) -> dict[str, Any]:
        provenance, names = result["provenance"], [each.name for each in self._predicted_fields]
        return {
            **dict(zip(names, prediction_cells(result, len(names)), strict=True)),
            SIMILARITY: result.get(SIMILARITY),
            STANDARDIZED: provenance[0]["standardized_smiles"] if provenance else None,
            CONFORMER: conformer_summary(each["method"] for each in provenance),
            WARNING: warning_of(provenance),
            ERROR: result["error"],
            ERROR_CODE: result["error_code"],
        }

    def is_finished(self) -> bool:
        # The summary is written after the file; of its shards some may be gone.
        return self.file is not None and self.file.exists() and (self.output_dir / SUMMARY_FILE).exists()

    def conclude(self) -> None:
        if self.file is not None:
            join_shards(self.shards, self.file, pa.schema([*self.source_fields, *self.added_fields]))

    def accompany(self, source: Source, console: Console) -> None:
        if self.file is not None:
            # All of it is in the file.
            for number in finished_shards(self.shards):
                shard_path(self.shards, number).unlink()
        if self.settings.top:
            write_ranking(self.ranking(), self, source, console)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content).encode()).hexdigest()[:32]


def warning_of(provenance: Iterable[Mapping[str, Any]]) -> str | None:
    """What a reader should know of a molecule's prediction besides its value."""
    told: dict[str, None] = {}
    for each in provenance:
        if not each["is_3d"]:
            told["the conformer is 2D"] = None
        if each["cropped"]:
            told["the molecule is cropped"] = None
        if each["undefined_descriptors"]:
            told[f"{each['undefined_descriptors']} descriptors are undefined"] = None
        if not each["has_graph_features"]:
            told["bonds are unknown"] = None
    return "; ".join(told) or None


def join_shards(shards: Path, file: Path, schema: pa.Schema) -> None:
    """The rows of all shards in one CSV or Parquet file, whole or absent."""
    paths = [shard_path(shards, number) for number in sorted(finished_shards(shards))]
    batches = (batch for path in paths for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_A_TIME))
    with whole_file(file) as draft:
        if file.suffix.lower() == ".parquet":
            with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
                for batch in batches:
                    writer.write_batch(batch)
        else:
            with draft.open("w", newline="", encoding="utf-8") as text:
                lines = csv.writer(text, lineterminator="\n")
                lines.writerow(schema.names)
                for batch in batches:
                    columns = [map(csv_text, column.to_pylist()) for column in batch.columns]
                    lines.writerows(zip(*columns, strict=True))


def csv_text(value: Any) -> str:
    """A value in a CSV file; of a list or structure its JSON."""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else text_of(value)
