"""Output folders and small files that are whole or absent, whatever happens to the process that writes them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import OutputFolderError
from ..settings_unimol2 import Settings

SETTINGS_FILE = "settings.json"


def make_output_folder(folder: Path) -> None:
    """Make a folder with those above it.

    Raises:
        OutputFolderError: it cannot be made.
    """
    if len(folder.parts) > 1 and folder.parts[0].endswith(":") and not folder.is_absolute():
        raise OutputFolderError(f"{folder} is no folder of this machine; write here, and copy it there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"{folder} cannot be used as the output folder: {error}") from error


def write_settings(path: Path, *settings: Settings) -> None:
    """Every option of a run by its name, as `--config` reads it back."""
    options: dict[str, Any] = {}
    for each in settings:
        options |= each.as_options()
    write_json_whole(path, options)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name what keeps a file from being written.

    Raises:
        OutputFolderError: the disk is full, or the place cannot be written to.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        told = getattr(error, "strerror", None) or error
        raise OutputFolderError(
            f"{path} cannot be written: {told}; free the space or choose another output (a job goes on where it was)"
        ) from error


def draft_of(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_name(f".{path.name}.draft")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file that appears whole or not at all: write to the path that this gives.

    Raises:
        OutputFolderError: it cannot be written.
    """
    draft = draft_of(path)
    try:
        with writing(path):
            yield draft
            move_into_place(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: write into the one that this gives.

    Raises:
        OutputFolderError: there is something already, or it cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputFolderError(f"{path} exists already; choose another folder or delete it")
    make_output_folder(path.parent)
    draft = draft_of(path)
    try:
        with writing(path):
            shutil.rmtree(draft, ignore_errors=True)  # of a killed process
            draft.mkdir()
            yield draft
            for each in draft.rglob("*"):
                _sync(each)
            move_into_place(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_text_whole(path: Path, text: str) -> None:
    """A small file, whole or absent."""
    with whole_file(path) as draft:
        draft.write_text(text)


def write_json_whole(path: Path, content: Any) -> None:
    """A small JSON file, whole or absent."""
    write_text_whole(path, json.dumps(content, indent=1) + "\n")


def move_into_place(draft: Path, path: Path) -> None:
    """Rename a finished file; its content reaches the disk before its name does, and the name is made to last."""
    with writing(path):
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
