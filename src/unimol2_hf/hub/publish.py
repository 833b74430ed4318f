"""From a checkpoint, or a model of one's own, to a repository that is whole, checked, and pushed in one commit."""

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from ..configuration_unimol2 import UniMol2Config
from ..data.atomic_files import whole_folder, write_json_whole
from ..data.output_folder import locked_output
from ..errors import CheckpointError, ModelError, OutputFolderError, SettingsError
from ..modeling_unimol2 import (
    UniMol2ForPreTraining,
    UniMol2ForPropertyPrediction,
    UniMol2Model,
    UniMol2PreTrainedModel,
)
from ..models.loading import load_config, load_feature_extractor, load_model, quiet_transformers
from ..models.packaged import resolve_model
from ..models.registration import register
from ..settings_unimol2 import SCALES
from .cards import CARD_FILE, OFFICIAL_SCALES, own_card, scale_card, versions, write_eval_results
from .check import check
from .convert import (
    DEFAULT_MOLECULES,
    config_from_weights,
    convert_checkpoint,
    load_reference_checkpoint,
    resolve_checkpoint,
    save_converted,
    verify,
)
from .export import add_code, export_with_code
from .push import TRAINING_SET, files_to_push, push_folder
from .repository.check_unimol2 import PUBLICATION_FILE, sha256_of, write_checksums, write_reference
from .settings import PublishSettings

RUNS_FILE = "published.json"  # beside the repositories: seconds and memory of each
_REPOSITORY = Path(__file__).with_name("repository")
_COPIED, _FIGURE = ("check_unimol2.py", "handler.py", "requirements.txt", "LICENSE"), "scaling_law.png"
_VERIFIED_TO = 1e-5


@dataclass(frozen=True)
class Repository:
    """One that is to be published.

    Attributes:
        name: of the folder, and on the Hub.
        source: a scale's official checkpoint, or the folder that a run wrote.
        scale: of an official checkpoint.
    """

    name: str
    source: str
    scale: str | None = None


def publish(model: str | None, output_dir: Path, settings: PublishSettings, console: Console) -> list[Path]:
    """Write repositories, check them, and push them where that is asked for; what is there already is not made again.

    Each is a folder of `output_dir`: safetensors, config, feature extractor, code, endpoint handler, card, licence,
    SHA-256 of every file, and the outputs of ten molecules, which `unimol2_hf.check` recomputes. Nothing is sent before
    every one of them has been checked.

    Args:
        model: folder of a model of one's own, or "unimol2-nano"; `None` for official checkpoints (`settings.scale`).
        output_dir: of the repositories.
        settings: what, and where to.
        console: where it is told what was made.

    Returns:
        The folders.

    Raises:
        CheckpointError: a checkpoint is damaged, or of another size than its scale.
        ModelError: the model cannot be loaded, or does not answer as it should.
        OutputFolderError: a folder cannot be written, or holds something else.
        HubError: it cannot be pushed.
    """
    written = write_repositories(model, output_dir, settings, console)
    if settings.push:
        for repository, folder in written:
            _push(folder, repository, settings, console)
    return [folder for _, folder in written]


def write_repositories(
    model: str | None, output_dir: Path, settings: PublishSettings, console: Console
) -> list[tuple[Repository, Path]]:
    """Write and check what `publish` pushes; see there."""
    written = []
    for repository in _repositories(model, settings):
        folder = output_dir / repository.name
        start = time.monotonic()
        made = _is_made(folder, repository)
        if not made and repository.scale is not None:
            _make_converted(folder, repository, settings, console)
        elif not made:
            _make_own(folder, repository, settings)
        with locked_output(output_dir):
            _finish(folder, repository, settings)
            with quiet_transformers():
                differences = check(folder)
            if not made:
                _record(output_dir, repository.name, time.monotonic() - start)
        console.print(_tree(folder))
        console.print(f"checked: {len(differences)} outputs, largest difference {max(differences.values()):.1e}")
        written.append((repository, folder))
    return written


def _repositories(model: str | None, settings: PublishSettings) -> list[Repository]:
    if (model is None) == (settings.scale is None):
        raise SettingsError("name the folder of a model of your own, or --scale with --checkpoint for an official one")
    if model is not None:
        if settings.checkpoint is not None:
            raise SettingsError("--checkpoint belongs to --scale; leave it out for a model of your own")
        named = (
            settings.push.rpartition("/")[2] if settings.push and "/" in settings.push else Path(model).resolve().name
        )
        return [Repository(named, model)]
    if settings.checkpoint is None:
        raise SettingsError("--scale needs --checkpoint: a file, a folder, or a Hub id such as dptech/Uni-Mol2")
    wanted = OFFICIAL_SCALES if settings.scale == "all" else tuple(str(settings.scale).lower().split(","))
    unknown = [scale for scale in wanted if scale not in OFFICIAL_SCALES]
    if unknown:
        told = " (of 42m no official checkpoint was published)" if "42m" in unknown else ""
        raise SettingsError(f"unknown scale {', '.join(unknown)}{told}; use {', '.join(OFFICIAL_SCALES)} or all")
    if len(wanted) > 1 and settings.push and "/" in settings.push:
        raise SettingsError(f"--push {settings.push} is one repository, and there are {len(wanted)}; name the owner")
    return [Repository(f"unimol2-{scale}", settings.checkpoint, scale) for scale in wanted]


def checkpoint_of(checkpoint: str, scale: str) -> tuple[Path, str]:
    """A scale's official checkpoint and its public name: of a file, a folder laid out as the official one, or a Hub id.

    Raises:
        CheckpointError: it is not there.
    """
    inside = f"modelzoo/{scale.upper()}/checkpoint.pt"
    path = Path(checkpoint)
    if path.is_dir():
        places = [path / inside, path / scale.upper() / "checkpoint.pt", path / scale / "checkpoint.pt"]
        found = next((each for each in places if each.is_file()), None)
        if found is None:
            raise CheckpointError(f"{path} has no checkpoint of {scale}; it was looked for at {places[0]}")
        return found, found.relative_to(path).as_posix()
    if path.is_file():
        return path, path.name
    if checkpoint.count("/") == 1:
        return resolve_checkpoint(checkpoint, inside), f"{checkpoint}/{inside}"
    return resolve_checkpoint(checkpoint, None), checkpoint


def _is_made(folder: Path, repository: Repository) -> bool:
    """Whether a folder is there and was made from the same; what else is there is not overwritten."""
    if not folder.exists():
        return False
    try:
        publication = json.loads((folder / PUBLICATION_FILE).read_text())
        known, version = publication["source"], publication["made_with"]["unimol2_hf"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputFolderError(f"{folder} is there and was not published from here; choose another folder") from error
    if known["sha256"] != _source_of(repository)["sha256"]:
        raise OutputFolderError(
            f"{folder} was published from another {known['kind']}; delete it, or choose another one"
        )
    if version != versions()["unimol2_hf"]:
        raise OutputFolderError(f"{folder} was made by unimol2-hf {version}; delete it, and publish again")
    return True


def _source_of(repository: Repository) -> dict[str, str]:
    """What a repository is made from, by its content; no path or folder's name of this machine."""
    if repository.scale is not None:
        path, name = checkpoint_of(repository.source, repository.scale)
        return {"kind": "checkpoint", "name": name, "sha256": sha256_of(path)}
    folder = Path(resolve_model(repository.source))
    if not folder.is_dir():
        raise ModelError(f"{repository.source} is no folder of a model; fetch it first (`hf download`)")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in (".json", ".safetensors")]
    together = "".join(map(sha256_of, files)).encode()
    return {"kind": "model", "name": repository.name, "sha256": hashlib.sha256(together).hexdigest()}


def _make_converted(folder: Path, repository: Repository, settings: PublishSettings, console: Console) -> None:
    """An official checkpoint's; nothing is written before all of it is known to fit."""
    scale = str(repository.scale)
    path, _ = checkpoint_of(repository.source, scale)
    checkpoint = load_reference_checkpoint(path, ignore_head=True)
    _require_scale(config_from_weights(checkpoint.state_dict), scale, path)
    model = convert_checkpoint(checkpoint)
    with locked_output(folder.parent), whole_folder(folder) as draft:
        save_converted(model, draft, settings.max_shard_size)
        parameters = model.num_parameters()
        # Of the largest one 4.5 GB, which the verification loads as well.
        del model
        add_code(draft)
        differences = verify(checkpoint, draft, DEFAULT_MOLECULES, _VERIFIED_TO, console)
        about = {
            "scale": scale,
            "parameters": parameters,
            "weights": checkpoint.origin,
            "verification": {"molecules": len(DEFAULT_MOLECULES), "differences": differences},
        }
        _conclude(draft, repository, about)


def _make_own(folder: Path, repository: Repository, settings: PublishSettings) -> None:
    """A model of one's own, as it was saved."""
    origin = Path(resolve_model(repository.source))
    model = load_own(str(origin))
    with locked_output(folder.parent), whole_folder(folder) as draft:
        with quiet_transformers():
            export_with_code(model, draft, load_feature_extractor(str(origin)), max_shard_size=settings.max_shard_size)
        write_eval_results(draft, origin)
        _conclude(draft, repository, {"parameters": model.num_parameters()})


def _conclude(draft: Path, repository: Repository, about: Mapping[str, Any]) -> None:
    """Write what is recomputed later, and what the repository was made from."""
    register()  # the command line does not by itself
    with quiet_transformers():
        write_reference(draft)
    files = {path.relative_to(draft).as_posix(): sha256_of(path) for path in draft.rglob("*") if path.is_file()}
    publication = {"source": _source_of(repository), "made_with": versions(), **about, "files": files}
    write_json_whole(draft / PUBLICATION_FILE, publication)


def _require_scale(config: UniMol2Config, scale: str, path: Path) -> None:
    wrong = {name: size for name, size in SCALES[scale].items() if getattr(config, name) != size}
    if wrong:
        told = ", ".join(f"{name} {getattr(config, name)} instead of {size}" for name, size in wrong.items())
        raise CheckpointError(f"{path} is not of the scale {scale}: {told}")


def load_own(model: str) -> UniMol2PreTrainedModel:
    """A model as the class that its folder names.

    Raises:
        ModelError: it cannot be loaded, or has weights for no head that it names.
    """
    named = (load_config(model).architectures or ["UniMol2Model"])[0]
    kinds: tuple[type[UniMol2PreTrainedModel], ...] = (UniMol2Model, UniMol2ForPreTraining)
    kind = next((each for each in kinds if each.__name__ == named), UniMol2ForPropertyPrediction)
    return load_model(kind, model).eval()


def _finish(folder: Path, repository: Repository, settings: PublishSettings) -> None:
    """What depends on where it goes: card, code of this version, and, last, the checksums."""
    publication = json.loads((folder / PUBLICATION_FILE).read_text())
    damaged = [name for name, known in publication["files"].items() if not _is(folder / name, known)]
    if damaged:
        raise ModelError(f"{folder} was changed since it was made ({', '.join(damaged)}); delete it and publish again")
    where = {"repo": _repo_id(repository, settings), "revision": _revision(settings), "space": settings.space}
    if repository.scale is not None:
        card = scale_card(folder, repository.scale, publication, where)
    else:
        card = own_card(folder, Path(resolve_model(repository.source)), publication, where, settings.model_license)
    (folder / CARD_FILE).write_text(card)
    for name in (*_COPIED, *([_FIGURE] if repository.scale else [])):
        shutil.copyfile(_REPOSITORY / name, folder / name)
    if settings.include_training_set:
        _copy_training_set(Path(resolve_model(repository.source)), folder)
    files, _ = files_to_push(folder, include_training_set=settings.include_training_set)
    write_checksums(folder, files)


def _copy_training_set(origin: Path, folder: Path) -> None:
    if not (origin / TRAINING_SET).is_file():
        raise ModelError(f"{origin} has no {TRAINING_SET}; leave --include-training-set out")
    shutil.copyfile(origin / TRAINING_SET, folder / TRAINING_SET)


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def _repo_id(repository: Repository, settings: PublishSettings) -> str:
    owner = settings.push or "org"
    return owner if "/" in owner else f"{owner}/{repository.name}"


def _revision(settings: PublishSettings) -> str:
    return settings.revision or f"v{versions()['unimol2_hf']}"


def _record(output_dir: Path, name: str, seconds: float) -> None:
    """Time and memory of what was made, beside the repositories."""
    path = output_dir / RUNS_FILE
    known = json.loads(path.read_text()) if path.exists() else {}
    # Of this process from its start: of several scales the largest so far.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    known[name] = {"seconds": round(seconds, 1), "peak_memory_gib": round(peak, 2), **versions()}
    write_json_whole(path, known)


def _tree(folder: Path) -> Tree:
    tree = Tree(escape(str(folder)))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            tree.add(f"{escape(str(path.relative_to(folder)))}  {path.stat().st_size:,}")
    return tree


def _push(folder: Path, repository: Repository, settings: PublishSettings, console: Console) -> None:
    repo_id, revision = _repo_id(repository, settings), _revision(settings)
    commit = push_folder(
        folder,
        repo_id,
        tag=revision,
        message=f"Publish {repository.name} {revision}",
        private=settings.private,
        include_training_set=settings.include_training_set,
    )
    console.print(f"pushed to {repo_id}, revision {revision} (commit {commit})")
