"""The command line: `unimol2-hf finetune`, `predict`, `embed`, `conformers build`, `conformers stats`, `pretrain`."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import UniMol2Error
from ..jobs.memory import keep_freed_memory
from ..models.packaged import NANO_NAME
from .threads import let_waiting_threads_sleep

Result = TypeVar("Result")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, help="Uni-Mol2 for chemists.")
conformers = typer.Typer(no_args_is_help=True, help="Libraries of conformers to pretrain on.")
app.add_typer(conformers, name="conformers")

SmilesColumn = Annotated[str, typer.Option(help="column with SMILES")]
Workers = Annotated[int, typer.Option(help="processes for conformers", min=0)]
BatchSize = Annotated[int, typer.Option(help="molecules in a batch", min=1)]


def _or_exit(console: Console, work: Callable[[], Result]) -> Result:
    """Run a command; what a user can mend is told in one line, without a traceback."""
    try:
        return work()
    except UniMol2Error as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error


def _names(listed: str) -> tuple[str, ...]:
    """Names of columns in a comma-separated list."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


@app.callback()
def _prepare() -> None:
    """Set up the process before a command imports torch."""
    let_waiting_threads_sleep()
    keep_freed_memory()


@app.command()
def finetune(
    data: Annotated[Path, typer.Argument(help="CSV with SMILES and labels; empty labels are missing")],
    output_dir: Annotated[Path, typer.Option(help="folder for model, metrics, predictions and plot")],
    targets: Annotated[str, typer.Option(help="label columns, comma-separated")],
    smiles_column: SmilesColumn = "smiles",
    model: Annotated[
        str, typer.Option(help="unimol2-nano (pretrained), a scale name (random weights), folder or Hub id")
    ] = NANO_NAME,
    split_column: Annotated[str | None, typer.Option(help="column with train, valid, test")] = None,
    split_method: Annotated[str, typer.Option(help="scaffold or random, where there is no split column")] = "scaffold",
    epochs: Annotated[int, typer.Option(min=1)] = 60,
    batch_size: BatchSize = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 4e-4,
    warmup: Annotated[float, typer.Option(help="share of all steps", min=0.0, max=0.99)] = 0.06,
    weight_decay: Annotated[float, typer.Option(min=0.0)] = 0.0,
    patience: Annotated[int, typer.Option(help="epochs without progress before stopping; 0: never", min=0)] = 0,
    loss: Annotated[str, typer.Option(help="smooth_l1, l1 or mse")] = "smooth_l1",
    pooling: Annotated[
        str | None, typer.Option(help="cls or mean (of the atoms), for the task head; default: the model's own")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16, in training")] = "float32",
    num_conformers: Annotated[int, typer.Option(help="3D conformers a molecule", min=0)] = 1,
    include_2d: Annotated[bool, typer.Option(help="add the 2D depiction as a conformer")] = False,
    max_atoms: Annotated[int, typer.Option(help="most heavy atoms of a molecule")] = 256,
    seed: Annotated[int, typer.Option(help="of split, weights and batches")] = 0,
    num_workers: Workers = 2,
) -> None:
    """Fine-tune on a table and report MAE, RMSE and R2 on a held-out part beside the predict-the-mean baseline."""
    from ..finetuning.finetune import finetune as run
    from ..finetuning.settings import FinetuneSettings

    console = Console()
    settings = partial(
        FinetuneSettings,
        model=model,
        smiles_column=smiles_column,
        targets=_names(targets),
        split_column=split_column,
        split_method=split_method,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        patience=patience,
        loss=loss,
        pooling=pooling,
        precision=precision,
        num_conformers=num_conformers,
        include_2d=include_2d,
        max_atoms=max_atoms,
        seed=seed,
        num_workers=num_workers,
    )
    _or_exit(console, lambda: run(data, output_dir, settings(), console))


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="folder that finetune wrote, or a Hub id")],
    data: Annotated[Path, typer.Argument(help="CSV with SMILES")],
    output: Annotated[Path, typer.Option(help="CSV to write: the input with predictions and errors added")],
    smiles_column: SmilesColumn = "smiles",
    batch_size: BatchSize = 32,
    num_workers: Workers = 2,
) -> None:
    """Predict properties for every row of a table; a row that fails keeps its reason."""
    from ..jobs.predict import predict as run

    console = Console()
    _or_exit(console, lambda: run(model, data, output, smiles_column, batch_size, num_workers, console))


@app.command()
def embed(
    source: Annotated[Path, typer.Argument(help="CSV, SMI, SDF (.gz too) or Parquet; a folder of Parquet files")],
    output_dir: Annotated[Path, typer.Argument(help="folder for Parquet shards; an interrupted job goes on there")],
    model: Annotated[str, typer.Option(help="unimol2-nano, folder or Hub id")] = NANO_NAME,
    smiles_column: SmilesColumn = "smiles",
    id_column: Annotated[str | None, typer.Option(help="column (SDF: property) with the rows' ids")] = None,
    pooling: Annotated[str, typer.Option(help="cls or mean")] = "cls",
    per_atom: Annotated[bool, typer.Option(help="also one vector for each heavy atom")] = False,
    half: Annotated[bool, typer.Option(help="store vectors as float16")] = False,
    keep_conformers: Annotated[
        bool, typer.Option(help="also write conformers, which this command reads again")
    ] = False,
    ignore_conformers: Annotated[
        bool, typer.Option(help="generate conformers where the file brings some, too")
    ] = False,
    num_conformers: Annotated[int | None, typer.Option(help="3D conformers a molecule", min=0)] = None,
    include_2d: Annotated[bool | None, typer.Option(help="add the 2D depiction as a conformer")] = None,
    seed: Annotated[int | None, typer.Option(help="of the conformers")] = None,
    max_atoms: Annotated[int | None, typer.Option(help="most heavy atoms of a molecule")] = None,
    max_atoms_policy: Annotated[str | None, typer.Option(help="error or crop")] = None,
    batch_size: BatchSize = 32,
    rows_per_shard: Annotated[int, typer.Option(help="rows of a Parquet file", min=1)] = 8192,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    compile: Annotated[str, typer.Option(help="none, dynamic or static; for long runs")] = "none",
    num_workers: Annotated[int | None, typer.Option(help="processes for conformers; default all cores", min=0)] = None,
    ray: Annotated[bool, typer.Option(help="run on Ray Data")] = False,
    ray_address: Annotated[str | None, typer.Option(help="of a running cluster; default a local one")] = None,
    ray_models: Annotated[int, typer.Option(help="copies of the model on the cluster", min=1)] = 1,
    ray_gpus: Annotated[float, typer.Option(help="GPUs of each copy", min=0.0)] = 0.0,
) -> None:
    """Embed every row of a library into Parquet shards; a row that fails keeps its reason."""
    from ..jobs.embed import EmbedSettings
    from ..jobs.embed import embed as run
    from ..jobs.on_ray import RaySettings, embed_with_ray

    console = Console()
    featurizer = {
        "num_conformers": num_conformers,
        "include_2d": include_2d,
        "seed": seed,
        "max_atoms": max_atoms,
        "max_atoms_policy": max_atoms_policy,
    }
    settings = partial(
        EmbedSettings,
        model=model,
        smiles_column=smiles_column,
        id_column=id_column,
        pooling=pooling,
        per_atom=per_atom,
        half=half,
        keep_conformers=keep_conformers,
        ignore_conformers=ignore_conformers,
        featurizer={name: value for name, value in featurizer.items() if value is not None},
        dtype=dtype,
        rows_per_shard=rows_per_shard,
        batch_size=batch_size,
        device=device,
        num_workers=(os.cpu_count() or 1) if num_workers is None else num_workers,
        compile=compile,
    )
    if ray:
        on_ray = RaySettings(address=ray_address, num_models=ray_models, gpus_per_model=ray_gpus)
        _or_exit(console, lambda: embed_with_ray(source, output_dir, settings(), on_ray, console))
    else:
        _or_exit(console, lambda: run(source, output_dir, settings(), console))


@conformers.command()
def build(
    source: Annotated[Path, typer.Argument(help="CSV, SMI, SDF (.gz too) or Parquet; a folder of Parquet files")],
    output_dir: Annotated[Path, typer.Argument(help="folder for Parquet shards; an interrupted job goes on there")],
    smiles_column: SmilesColumn = "smiles",
    id_column: Annotated[str | None, typer.Option(help="column (SDF: property) with the rows' ids")] = None,
    num_conformers: Annotated[int, typer.Option(help="3D conformers a molecule; given ones count", min=0)] = 10,
    include_2d: Annotated[bool, typer.Option(help="add the 2D depiction")] = True,
    seed: Annotated[int, typer.Option(help="of the conformers", min=0)] = 42,
    max_atoms: Annotated[int, typer.Option(help="most heavy atoms of a molecule", min=1)] = 256,
    keep_columns: Annotated[
        str | None,
        typer.Option(help="numeric columns to keep, comma-separated: targets for pretraining"),
    ] = None,
    descriptors: Annotated[str | None, typer.Option(help="rdkit: also keep RDKit's descriptors")] = None,
    rows_per_shard: Annotated[int, typer.Option(help="rows of a Parquet file", min=1)] = 4096,
    num_workers: Annotated[int | None, typer.Option(help="processes; default all cores", min=0)] = None,
) -> None:
    """Make conformers of every molecule, once each; a row that fails or comes again keeps its reason."""
    from ..jobs.build_conformers import BuildSettings, build_conformers

    console = Console()
    settings = partial(
        BuildSettings,
        smiles_column=smiles_column,
        id_column=id_column,
        num_conformers=num_conformers,
        include_2d=include_2d,
        seed=seed,
        max_atoms=max_atoms,
        keep_columns=_names(keep_columns or "") or None,
        descriptors=descriptors,
        rows_per_shard=rows_per_shard,
        num_workers=(os.cpu_count() or 1) if num_workers is None else num_workers,
    )
    _or_exit(console, lambda: build_conformers(source, output_dir, settings(), console))


@conformers.command()
def stats(
    libraries: Annotated[list[Path], typer.Argument(help="folders that `conformers build` wrote, one or two")],
    output_dir: Annotated[Path, typer.Option(help="folder for scaffolds.json and scaffolds.png")] = Path("."),
) -> None:
    """Count molecules, conformers and Murcko scaffolds, and draw the 40 most frequent scaffolds side by side."""
    from ..jobs.library_statistics import library_statistics, write_statistics

    console = Console()
    _or_exit(console, lambda: write_statistics([library_statistics(each) for each in libraries], output_dir, console))


@app.command()
def pretrain(
    config: Annotated[Path, typer.Argument(help="YAML file, see `PretrainSettings`")],
) -> None:
    """Pretrain on a library of conformers; run under torchrun or accelerate for several processes."""
    from ..pretraining.pretrain import pretrain as run
    from ..pretraining.settings import read_settings

    console = Console()
    _or_exit(console, lambda: run(read_settings(config), console))
