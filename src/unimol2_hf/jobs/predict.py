"""Predict properties for a table with a fine-tuned model; every row stays."""

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ..data.atomic_files import make_output_folder, write_settings
from ..data.tables import conformer_summary, read_table, require_columns
from ..errors import OutputFolderError, TableError
from ..modeling_unimol2 import UniMol2ForPropertyPrediction
from ..models.loading import load_feature_extractor, load_model
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..targets.predictions import prediction_cells, prediction_columns
from ..worker_pool import worker_count
from .settings import PredictSettings

SIMILARITY, CONFORMER, ERROR, ERROR_CODE = "nearest_similarity", "conformer", "error", "error_code"
_ROWS_AT_A_TIME = 1024


def predict(model: str, data: Path, output: Path, settings: PredictSettings, console: Console) -> dict[str, int]:
    """Write the table with predictions, `conformer`, `error` and `error_code` added, in the input's order.

    Predictions are `predicted_<target>`: values, probabilities of the positive class, or classes, with
    `predicted_<target>_<class>` beside; `nearest_similarity` is that to the training molecules. Columns of numbers that
    the model reads must be there.

    Beside OUTPUT.csv stands OUTPUT.settings.json.

    Returns:
        `rows`, `failed` and `flat` (rows with a conformer that is not 3D).

    Raises:
        TableError: the table lacks the SMILES column, or has a column that is to be added.
        OutputFolderError: the output cannot be written.
        ModelError: the folder holds no fine-tuned model.
    """
    table = read_table(data)
    pipeline = load_property_pipeline(model)
    require_columns(table, [settings.smiles_column, *pipeline.model.config.extra_feature_names])
    similarity = [SIMILARITY] if pipeline.has_similarity else []
    added = [*prediction_columns(pipeline.model.config), *similarity, CONFORMER, ERROR, ERROR_CODE]
    clashing = [name for name in added if name in table.columns]
    if clashing:
        raise TableError(f"the table has columns that the predictions need: {', '.join(clashing)}; rename them")
    _check_output_file(output)
    starts = range(0, max(1, len(table)), _ROWS_AT_A_TIME)
    chunks = [table.iloc[start : start + _ROWS_AT_A_TIME] for start in starts]
    counts = {"rows": len(table), "failed": 0, "flat": 0}
    predicted = [
        _predict_chunk(pipeline, chunk, settings, counts)
        for chunk in track(chunks, description="predicting", console=console)
    ]
    pd.concat(predicted).to_csv(output, index=False)
    write_settings(output.with_suffix(".settings.json"), settings)
    console.print(
        f"{counts['rows']} rows written to {escape(str(output))}: {counts['failed']} failed "
        f"(reason in the error column), {counts['flat']} from a 2D conformer"
    )
    return counts


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


def _predict_chunk(
    pipeline: MoleculePropertyPipeline, chunk: pd.DataFrame, settings: PredictSettings, counts: dict[str, int]
) -> pd.DataFrame:
    config = pipeline.model.config
    features = chunk[config.extra_feature_names].to_dict("records")
    molecules = zip(chunk[settings.smiles_column], features, strict=True)
    results = pipeline(
        [{"molecule": molecule, "features": given} for molecule, given in molecules],
        batch_size=settings.batch_size,
        num_workers=worker_count(settings.num_workers),
        **settings.featurizer,
    )
    cells = [prediction_cells(result, config) for result in results]
    predicted = pd.DataFrame(cells, columns=prediction_columns(config), index=chunk.index)
    chunk = pd.concat([chunk, predicted], axis=1)
    if pipeline.has_similarity:
        chunk[SIMILARITY] = [result[SIMILARITY] for result in results]
    chunk[CONFORMER] = [conformer_summary(c["method"] for c in result["provenance"]) for result in results]
    chunk[ERROR] = [result["error"] or "" for result in results]
    chunk[ERROR_CODE] = [result["error_code"] or "" for result in results]
    counts["failed"] += sum(result["error"] is not None for result in results)
    counts["flat"] += sum(any(not c["is_3d"] for c in result["provenance"]) for result in results)
    return chunk
