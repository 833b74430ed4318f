"""Predict properties for a table with a fine-tuned model; every row stays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from ..data.atomic_files import make_output_folder, write_settings, write_text_whole
from ..data.conformer_cache import cache_for, featurize_cached
from ..data.molecule_files import Source
from ..data.progress import stage
from ..data.tables import MoleculeTable, conformer_summary, read_table, require_columns
from ..errors import OutputFolderError, TableError
from ..modeling_unimol2 import UniMol2ForPropertyPrediction
from ..models.loading import load_feature_extractor, load_model
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..targets.predictions import columns_of, prediction_cells
from ..worker_pool import worker_count
from .settings import PredictSettings

SIMILARITY, STANDARDIZED, CONFORMER = "nearest_similarity", "standardized", "conformer"
ERROR, ERROR_CODE = "error", "error_code"


def predict(model: str, data: Source, output: Path, settings: PredictSettings, console: Console) -> dict[str, int]:
    """Write the table with predictions, `conformer`, `error` and `error_code` added, in the input's order.

    `data` is whatever `read_molecules` reads, a DataFrame or a `datasets.Dataset` too. Predictions are
    `predicted_<target>`: values, probabilities of the positive class, or classes, with `predicted_<target>_<class>`
    beside; of an ensemble `predicted_<target>_spread`, and where it was fitted on folds `_lower` and `_upper`;
    `nearest_similarity` is that to the training molecules; `standardized` what was read instead of the molecule, where
    the model standardises. Columns of numbers that the model reads must be there.

    Beside OUTPUT.csv stands OUTPUT.settings.json.

    Returns:
        `rows`, `failed` and `flat` (rows with a conformer that is not 3D).

    Raises:
        TableError: the table lacks the SMILES column, or has a column that is to be added.
        OutputFolderError: the output cannot be written.
        ModelError: the folder holds no fine-tuned model.
    """
    pipeline = load_property_pipeline(model)
    table = read_table(data, settings.smiles_column)
    require_columns(table.cells, pipeline.model.config.extra_feature_names)
    added = _added_columns(pipeline, settings)
    clashing = [name for name in added if name in table.cells.columns]
    if clashing:
        raise TableError(f"the table has columns that the predictions need: {', '.join(clashing)}; rename them")
    _check_output_file(output)
    counts = {"rows": len(table), "failed": 0, "flat": 0}
    with stage(console, "predicting", len(table)) as advance:
        rows = []
        for row in _predicted_rows(pipeline, table, settings, counts):
            rows.append(row)
            advance(1)
    predicted = pd.DataFrame(rows, columns=added, index=table.cells.index)
    write_text_whole(output, pd.concat([table.cells, predicted], axis=1).to_csv(index=False))
    write_settings(output.with_suffix(".settings.json"), settings)
    console.print(
        f"{counts['rows']} rows written to {escape(str(output))}: {counts['failed']} failed "
        f"(reason in the error column), {counts['flat']} from a 2D conformer"
    )
    return counts


def _added_columns(pipeline: MoleculePropertyPipeline, settings: PredictSettings) -> list[str]:
    similarity = [SIMILARITY] if pipeline.has_similarity else []
    standardizes = pipeline.feature_extractor.settings(**settings.featurizer).standardize != "none"
    standardized = [STANDARDIZED] if standardizes else []
    columns = columns_of(pipeline.model.config, pipeline.calibration)
    return [*columns, *similarity, *standardized, CONFORMER, ERROR, ERROR_CODE]


def _predicted_rows(
    pipeline: MoleculePropertyPipeline, table: MoleculeTable, settings: PredictSettings, counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    config, extractor = pipeline.model.config, pipeline.feature_extractor
    features = table.cells[config.extra_feature_names].to_dict("records")
    pairs = (((molecule, given), molecule) for molecule, given in zip(table.molecules, features, strict=True))
    cache = cache_for(extractor, settings.conformer_cache, settings.featurizer)
    workers = worker_count(settings.num_workers)
    featurized = featurize_cached(extractor, pairs, cache, num_workers=workers, **settings.featurizer)
    complete = (pipeline.complete(made, molecule, given) for (molecule, given), made in featurized)
    columns = columns_of(config, pipeline.calibration)
    for result in pipeline.run_featurized(complete, settings.batch_size, coverage=settings.coverage):
        provenance = result["provenance"]
        counts["failed"] += result["error"] is not None
        counts["flat"] += any(not each["is_3d"] for each in provenance)
        yield {
            **dict(zip(columns, prediction_cells(result, len(columns)), strict=True)),
            SIMILARITY: result.get(SIMILARITY),
            STANDARDIZED: (provenance[0]["standardized_smiles"] if provenance else None) or "",
            CONFORMER: conformer_summary(each["method"] for each in provenance),
            ERROR: result["error"] or "",
            ERROR_CODE: result["error_code"] or "",
        }


def _check_output_file(output: Path) -> None:
    """Before the work, not after it."""
    make_output_folder(output.parent)
    try:
        output.open("a").close()
    except OSError as error:
        raise OutputFolderError(f"{output} cannot be written: {error}") from error


def load_property_pipeline(model: str) -> MoleculePropertyPipeline:
    """The pipeline of a fine-tuned model.

    Raises:
        ModelError: the folder or Hub id cannot be loaded as one.
    """
    loaded = load_model(UniMol2ForPropertyPrediction, model)
    return MoleculePropertyPipeline(model=loaded.eval(), feature_extractor=load_feature_extractor(model))
