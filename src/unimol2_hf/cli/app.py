"""The commands: `unimol2-hf finetune`, `predict`, `embed`, `neighbours`, `conformers build|stats|push`, `pretrain`, and
those of the Hub: `convert`, `publish`, `check`, `export`.
"""

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape

from ..errors import UniMol2Error
from ..finetuning.settings import FinetuneSettings
from ..hub.settings import ConvertSettings, ExportSettings, PublishSettings, PushLibrarySettings
from ..jobs.memory import keep_freed_memory
from ..jobs.settings import (
    BuildSettings,
    EmbedSettings,
    NeighbourSettings,
    PredictSettings,
    RaySettings,
    StatisticsSettings,
)
from ..pretraining.settings import PretrainSettings
from ..settings_unimol2 import FeaturizerOverrides
from .options import DEFAULTS, FLAT, names_in, settings_file, source_path, with_featurizer
from .threads import let_waiting_threads_sleep

USAGE_ERROR, INTERRUPTED = 2, 130

app = App(
    name="unimol2-hf",
    help="Uni-Mol2 for chemists.",
    version=lambda: version("unimol2-hf"),
    default_parameter=DEFAULTS,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
# cyclopts would end without a word.
app.meta.suppress_keyboard_interrupt = False
conformers = App(name="conformers", help="Libraries of conformers to pretrain on.")
app.command(conformers)

KINDS = "CSV, TSV, Excel, SMI, SDF (.gz too), Parquet, a folder of it, hf://datasets/ORG/NAME, or s3:// and the like"
Molecules = Annotated[Path, Parameter(help=KINDS, converter=source_path)]
ShardFolder = Annotated[Path, Parameter(help="folder for Parquet shards; an interrupted job goes on there")]
Overrides = Annotated[FeaturizerOverrides, FLAT]


def main(tokens: list[str] | None = None) -> None:
    """Run a command; what a user can mend is told in one line, without a traceback."""
    app.config = ()  # of an earlier call in this process
    try:
        app.meta(tokens, exit_on_error=False)
    except CycloptsError:
        # cyclopts has said what is wrong.
        sys.exit(USAGE_ERROR)
    except UniMol2Error as error:
        Console().print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        Console().print("interrupted; what is finished is kept, the same command goes on", highlight=False)
        sys.exit(INTERRUPTED)


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[
        Path | None, Parameter(help="YAML or JSON file of the command's options; flags win over it")
    ] = None,
) -> Any:
    """Set up the process before a command imports torch, and read the file of options."""
    let_waiting_threads_sleep()
    keep_freed_memory()
    app.config = (settings_file(config),) if config is not None else ()
    return app(tokens, exit_on_error=False)


@app.command
def finetune(
    data: Annotated[
        Path, Parameter(help=f"molecules and labels, of which some may be missing: {KINDS}", converter=source_path)
    ],
    /,
    *,
    output_dir: Annotated[Path, Parameter(help="folder for model, metrics, predictions and plot")],
    settings: Annotated[FinetuneSettings, FLAT],
    overrides: Overrides = FeaturizerOverrides(),
) -> None:
    """Fine-tune on a table and report on a held-out part, beside simple models of the same rows."""
    from ..finetuning.finetune import finetune as run

    listed: dict[str, Any] = {
        name: names_in(getattr(settings, name)) for name in ("targets", "tasks", "feature_columns")
    }
    settings = replace(with_featurizer(settings, overrides), **listed)
    run(data, output_dir, settings, Console())


@app.command
def predict(
    model: Annotated[str, Parameter(help="folder that finetune wrote, or a Hub id")],
    data: Molecules,
    /,
    *,
    output: Annotated[
        Path, Parameter(help="X.csv or X.parquet, or a folder for Parquet shards; an interrupted job goes on there")
    ],
    settings: Annotated[PredictSettings, FLAT] = PredictSettings(),
    overrides: Overrides = FeaturizerOverrides(),
    ray: Annotated[RaySettings, FLAT] = RaySettings(),
) -> None:
    """Predict properties for every row of a library; a row that fails keeps its reason."""
    from ..jobs.predict import predict_job

    _run(predict_job(model, data, output, with_featurizer(settings, overrides)), data, ray)


@app.command
def embed(
    source: Molecules,
    output_dir: ShardFolder,
    /,
    *,
    settings: Annotated[EmbedSettings, FLAT] = EmbedSettings(),
    overrides: Overrides = FeaturizerOverrides(),
    ray: Annotated[RaySettings, FLAT] = RaySettings(),
) -> None:
    """Embed every row of a library into Parquet shards; a row that fails keeps its reason."""
    from ..jobs.embed import embed_job

    _run(embed_job(source, output_dir, with_featurizer(settings, overrides)), source, ray)


@app.command
def neighbours(
    embeddings: Annotated[Path, Parameter(help="folder that `embed` wrote")],
    query: Annotated[str, Parameter(help="SMILES, a file of molecules, or another folder that `embed` wrote")],
    /,
    *,
    settings: Annotated[NeighbourSettings, FLAT] = NeighbourSettings(),
) -> None:
    """Find the molecules of an embedded library that are most like a query: exact, by the cosine of the vectors."""
    from ..jobs.neighbours import neighbours as run

    run(embeddings, query, settings, Console())


@conformers.command
def build(
    source: Molecules,
    output_dir: ShardFolder,
    /,
    *,
    settings: Annotated[BuildSettings, FLAT] = BuildSettings(),
    ray: Annotated[RaySettings, FLAT] = RaySettings(),
) -> None:
    """Make conformers of every molecule, once each; a row that fails or comes again keeps its reason."""
    from ..jobs.build_conformers import build_job

    settings = replace(settings, keep_columns=names_in(settings.keep_columns) or None)
    _run(build_job(source, output_dir, settings), source, ray)


def _run(job: Any, source: Path, ray: RaySettings) -> None:
    if ray.ray:
        from ..jobs.on_ray import run_on_ray

        run_on_ray(job, source, ray, Console())
    else:
        from ..jobs.library_job import run_job

        run_job(job, source, Console())


@conformers.command
def stats(
    libraries: Annotated[list[Path], Parameter(help="folders that `conformers build` wrote, one or two")],
    /,
    *,
    settings: Annotated[StatisticsSettings, FLAT] = StatisticsSettings(),
) -> None:
    """Count molecules, conformers and Murcko scaffolds, and draw the most frequent scaffolds side by side."""
    from ..jobs.library_statistics import library_statistics, write_statistics

    write_statistics([library_statistics(each) for each in libraries], Path(settings.output_dir), Console())


@conformers.command(name="push")
def push_library(
    library: Annotated[Path, Parameter(help="folder that `conformers build` wrote and finished")],
    repo_id: Annotated[str, Parameter(help="ORG/NAME on the Hub; created if it is missing")],
    /,
    *,
    settings: Annotated[PushLibrarySettings, FLAT],
) -> None:
    """Publish a library as a data set of the Hub, with a card that says how it came about, in one commit."""
    from ..hub.data_set import push_library as run

    run(library, repo_id, settings, Console())


@app.command
def pretrain(*, settings: Annotated[PretrainSettings, FLAT]) -> None:
    """Pretrain on a library of conformers; run under torchrun or accelerate for several processes."""
    from ..pretraining.pretrain import pretrain as run

    run(settings, Console())


@app.command
def convert(
    checkpoint: Annotated[str, Parameter(help="checkpoint.pt, model_*.pth, or a Hub id")],
    output_dir: Annotated[Path, Parameter(help="folder to write")],
    /,
    *,
    settings: Annotated[ConvertSettings, FLAT] = ConvertSettings(),
) -> None:
    """Convert an official Uni-Mol2 checkpoint to safetensors, config and feature extractor."""
    from ..hub.convert import convert as run

    run(checkpoint, output_dir, settings, Console())


@app.command
def publish(
    model: Annotated[
        str | None, Parameter(help="folder of a model of your own; left out for official checkpoints (--scale)")
    ] = None,
    /,
    *,
    output_dir: Annotated[Path, Parameter(help="folder for the repositories; what is there is not made again")],
    settings: Annotated[PublishSettings, FLAT] = PublishSettings(),
) -> None:
    """Write repositories for the Hub, with code, card and checksums, check them, and push them where asked to."""
    from ..hub.publish import publish as run

    run(model, output_dir, settings, Console())


@app.command
def check(
    model: Annotated[str, Parameter(help="folder that publish wrote, or a Hub id")],
    /,
    *,
    revision: Annotated[str | None, Parameter(help="of a Hub id: tag, branch or commit")] = None,
) -> None:
    """Check that a published model is whole, and answers as it did when it was published."""
    from ..hub.check import check as run

    differences = run(model, revision)
    Console().print(
        f"{model} is what was published; largest difference of {len(differences)} outputs "
        f"{max(differences.values()):.1e}",
        highlight=False,
    )


@app.command
def export(
    model: Annotated[str, Parameter(help="unimol2-nano, a folder or a Hub id")],
    output_dir: Annotated[Path, Parameter(help="folder for program, feature extractor and config")],
    /,
    *,
    settings: Annotated[ExportSettings, FLAT] = ExportSettings(),
) -> None:
    """Write a model as a program for another runtime, checked against the model."""
    from ..hub.exporters import export_program

    export_program(model, output_dir, settings, Console())
