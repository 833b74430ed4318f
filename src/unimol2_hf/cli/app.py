"""The commands: `unimol2-hf finetune`, `predict`, `embed`, `conformers build`, `conformers stats`, `pretrain`."""

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
from ..jobs.memory import keep_freed_memory
from ..jobs.settings import BuildSettings, EmbedSettings, PredictSettings, RaySettings, StatisticsSettings
from ..pretraining.settings import PretrainSettings
from ..settings_unimol2 import FeaturizerOverrides
from .options import DEFAULTS, FLAT, names_in, settings_file, with_featurizer
from .threads import let_waiting_threads_sleep

USAGE_ERROR = 2

app = App(
    name="unimol2-hf",
    help="Uni-Mol2 for chemists.",
    version=lambda: version("unimol2-hf"),
    default_parameter=DEFAULTS,
    help_format="plaintext",
    result_action="return_value",
)
conformers = App(name="conformers", help="Libraries of conformers to pretrain on.")
app.command(conformers)

KINDS = "CSV, TSV, Excel, SMI, SDF (.gz too), Parquet, a folder of it, or hf://datasets/ORG/NAME"
Molecules = Annotated[Path, Parameter(help=KINDS)]
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
    data: Annotated[Path, Parameter(help=f"molecules and labels, of which some may be missing: {KINDS}")],
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
    output: Annotated[Path, Parameter(help="CSV to write: the input with predictions and errors added")],
    settings: Annotated[PredictSettings, FLAT] = PredictSettings(),
    overrides: Overrides = FeaturizerOverrides(),
) -> None:
    """Predict properties for every row of a table; a row that fails keeps its reason."""
    from ..jobs.predict import predict as run

    run(model, data, output, with_featurizer(settings, overrides), Console())


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
    settings = with_featurizer(settings, overrides)
    if ray.ray:
        from ..jobs.on_ray import embed_with_ray

        embed_with_ray(source, output_dir, settings, ray, Console())
    else:
        from ..jobs.embed import embed as run

        run(source, output_dir, settings, Console())


@conformers.command
def build(
    source: Molecules,
    output_dir: ShardFolder,
    /,
    *,
    settings: Annotated[BuildSettings, FLAT] = BuildSettings(),
) -> None:
    """Make conformers of every molecule, once each; a row that fails or comes again keeps its reason."""
    from ..jobs.build_conformers import build_conformers

    settings = replace(settings, keep_columns=names_in(settings.keep_columns) or None)
    build_conformers(source, output_dir, settings, Console())


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


@app.command
def pretrain(*, settings: Annotated[PretrainSettings, FLAT]) -> None:
    """Pretrain on a library of conformers; run under torchrun or accelerate for several processes."""
    from ..pretraining.pretrain import pretrain as run

    run(settings, Console())
