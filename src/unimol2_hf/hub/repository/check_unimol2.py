"""Whether a published model is whole, and answers as it did when it was published.

In a folder that was downloaded from the Hub, without the package that made it:

    python check_unimol2.py

compares every file with SHA256SUMS, then recomputes the outputs of ten molecules whose coordinates are given. An
upgrade of Transformers, torch or RDKit that changes what the model answers is noticed here and nowhere else.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rdkit.Geometry import Point3D
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

CHECKSUMS_FILE = "SHA256SUMS"
PUBLICATION_FILE = "publication.json"
REFERENCE_FILE = "reference_outputs.safetensors"
# Largest difference that is accepted, relative to an output's largest value; processors differ by 1e-6 to 1e-5.
TOLERANCE = 1e-4
# Sizes from 1 to 37 heavy atoms; charges, fragments, stereo, halogens, S, P and B.
MOLECULES = (
    "C",
    "CC(=O)Oc1ccccc1C(=O)O",
    "F/C=C/Cl",
    "C[N+](C)(C)CCO.[Cl-]",
    "CC(C)Cc1ccc(cc1)[C@H](C)C(=O)O",
    "OB(O)c1ccc(Br)cc1",
    "CCOP(=S)(OCC)SCc1ccccc1I",
    "CN1CCC[C@H]1c1cccnc1",
    "Cc1ccc(cc1)-c1cc(nn1-c1ccc(cc1)S(N)(=O)=O)C(F)(F)F",
    "CCCc1nn(C)c2c1nc([nH]c2=O)-c1cc(ccc1OCC)S(=O)(=O)N1CCN(C)CC1",
)
_TASK = "molecule-property-prediction"
_SEED = 42

Array = NDArray[Any]


class CheckError(ValueError):
    """A folder that is damaged, or a model that does not answer as it did when it was published."""


def check(folder: Path, trust_remote_code: bool = False) -> dict[str, float]:
    """Compare files and outputs with what was written when the model was published.

    Args:
        folder: of the model.
        trust_remote_code: run the folder's own code, where the package is not installed.

    Returns:
        Of each output the largest difference, relative to its largest value.

    Raises:
        CheckError: a file is missing or differs, or an output does.
    """
    check_files(folder)
    return check_outputs(folder, trust_remote_code)


def check_files(folder: Path) -> None:
    """Compare every file with its SHA-256; raise `CheckError` where one is missing, differs, or has none."""
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        raise CheckError(f"{folder} has no {CHECKSUMS_FILE}: it was not published by `unimol2-hf publish`")
    problems, told = [], set()
    for line in path.read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        told.add(name)
        found = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            problems.append(f"{name} leads out of the folder")
        elif not name or not found.is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(found) != expected:
            problems.append(f"{name} differs ({found.stat().st_size:,} bytes here)")
    if left_out := sorted(_names_to_tell(folder) - told):
        problems.append(f"{CHECKSUMS_FILE} leaves out {', '.join(left_out)}")
    if problems:
        raise CheckError(
            f"{folder} is not what was published: {'; '.join(problems)}. If it is a download or a cache, it is damaged "
            "or was broken off: delete it and fetch it again (`hf download ORG/NAME --force-download`)"
        )


def _names_to_tell(folder: Path) -> set[str]:
    """What was published, and what could be loaded or run in its place."""
    here = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".json", ".py", ".safetensors"))
    # Of hidden folders: those of git, and of a download into a folder.
    names = {path.as_posix() for path in here if not path.parts[0].startswith(".")}
    try:
        made = json.loads((folder / PUBLICATION_FILE).read_text())["files"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        made = ()  # its own checksum tells that it is damaged
    return {PUBLICATION_FILE, *names, *made}


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write SHA256SUMS for the named files."""
    (folder / CHECKSUMS_FILE).write_text(checksums_of(folder, names))


def checksums_of(folder: Path, names: Iterable[str]) -> str:
    """The lines of the named files, but for SHA256SUMS itself, as `sha256sum --check` reads them."""
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(set(names) - {CHECKSUMS_FILE}))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_outputs(folder: Path, trust_remote_code: bool = False) -> dict[str, float]:
    """Recompute the reference outputs; raise `CheckError` where they cannot be, or differ."""
    try:
        molecules, expected = read_reference(folder)
        actual = outputs_of(folder, molecules, trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise CheckError(f"the outputs of {folder} cannot be recomputed: {error}") from error
    differences = {name: relative_difference(actual.get(name), known) for name, known in expected.items()}
    wrong = [f"{name} by {each:.1e}" for name, each in differences.items() if not each <= TOLERANCE]
    if wrong:
        raise CheckError(
            f"{folder} does not answer as it did when it was published: {', '.join(wrong)} of the largest value "
            f"(accepted: {TOLERANCE:.0e}). Its files are whole: use the versions of transformers, torch and rdkit that "
            f"{PUBLICATION_FILE} names under made_with"
        )
    return differences


def relative_difference(actual: Array | None, expected: Array) -> float:
    """Largest difference over the largest expected value; infinite where shapes differ or a value is not a number."""
    if actual is None or actual.shape != expected.shape or not np.array_equal(np.isnan(actual), np.isnan(expected)):
        return float("inf")
    if not expected.size:
        return 0.0
    difference = np.nan_to_num(np.abs(actual.astype(np.float64) - expected)).max()
    return float(difference / max(float(np.nan_to_num(np.abs(expected)).max()), 1e-12))


def write_reference(folder: Path, trust_remote_code: bool = False) -> None:
    """Write the outputs of ten molecules, with the coordinates that they were computed from."""
    molecules = [_with_conformer(smiles) for smiles in MOLECULES]
    outputs = outputs_of(folder, molecules, trust_remote_code)
    coordinates = np.concatenate([each.GetConformer().GetPositions() for each in molecules])
    metadata = {"smiles": json.dumps(MOLECULES)}
    save_file({**outputs, "coordinates": coordinates}, folder / REFERENCE_FILE, metadata)


def read_reference(folder: Path) -> tuple[list[Chem.Mol], dict[str, Array]]:
    """The molecules with their coordinates, and the outputs by name."""
    with safe_open(folder / REFERENCE_FILE, framework="np") as file:
        smiles = json.loads(file.metadata()["smiles"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    coordinates = tensors.pop("coordinates")
    molecules, start = [], 0
    for each in smiles:
        molecule = Chem.MolFromSmiles(each)
        end = start + molecule.GetNumAtoms()
        molecules.append(_placed(molecule, coordinates[start:end]))
        start = end
    return molecules, tensors


def _placed(molecule: Chem.Mol, coordinates: Array) -> Chem.Mol:
    conformer = Chem.Conformer(molecule.GetNumAtoms())
    for atom, position in enumerate(coordinates.tolist()):
        conformer.SetAtomPosition(atom, Point3D(*position))
    molecule.AddConformer(conformer)
    return molecule


def _with_conformer(smiles: str) -> Chem.Mol:
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(molecule, randomSeed=_SEED)
    heavy = Chem.MolFromSmiles(smiles)
    positions = molecule.GetConformer().GetPositions()[: heavy.GetNumAtoms()]
    return _placed(heavy, positions - positions.mean(axis=0))


@torch.no_grad()
def outputs_of(folder: Path, molecules: list[Chem.Mol], trust_remote_code: bool) -> dict[str, Array]:
    """What the model answers in float32: vectors of all molecules; atoms' outputs one after the other; predictions."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **options)
    kind = (config.architectures or [""])[0]
    extractor = AutoFeatureExtractor.from_pretrained(folder, **options)
    options["dtype"] = torch.float32
    if "ForProperty" in kind:
        return _predictions(folder, config, molecules, options)
    auto_class = AutoModelForPreTraining if kind.endswith("ForPreTraining") else AutoModel
    model = auto_class.from_pretrained(folder, **options).eval()
    found: dict[str, list[Array]] = {"embedding": []}
    for molecule in molecules:
        batch = extractor(molecule)
        found["embedding"].append(model.base_model(**batch).pooler_output.numpy())
        if auto_class is AutoModelForPreTraining:
            outputs = model(**batch)
            found.setdefault("token_logits", []).append(outputs.token_logits[0].numpy())
            found.setdefault("predicted_coordinates", []).append(outputs.predicted_coordinates[0].numpy())
    return {name: np.concatenate(each) for name, each in found.items()}


def _predictions(folder: Path, config: Any, molecules: list[Chem.Mol], options: Mapping[str, Any]) -> dict[str, Array]:
    # Without trust only the installed package's class can be meant; `pipeline` itself would ask for the folder's.
    installed = None if options["trust_remote_code"] else PIPELINE_REGISTRY.check_task(_TASK)[1]["impl"]
    pipe = pipeline(_TASK, str(folder), device="cpu", pipeline_class=installed, **options)
    extra = {each["name"]: each.get("mean", 0.0) for each in config.extra_features or []}
    results = [pipe({"molecule": molecule, "features": extra}) for molecule in molecules]
    embeddings = [pipe.model.base_model(**pipe.feature_extractor(each)).pooler_output.numpy() for each in molecules]
    rows = [dict(_numbers(each)) for each in results]
    names = sorted({name for row in rows for name in row})
    predictions = {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}
    return {"embedding": np.concatenate(embeddings), **predictions}


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result, by where it stands in it; how a conformer came about is left out."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key != "provenance":
                yield from _numbers(each, f"{name}/{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        for number, each in enumerate(value):
            yield from _numbers(each, f"{name}/{number}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def main() -> None:
    """Check the folder in which this file lies."""
    # Links are not followed: a cache of the Hub keeps the files themselves elsewhere.
    folder = Path(__file__).absolute().parent
    try:
        differences = check(folder, trust_remote_code=True)
    except CheckError as error:
        sys.exit(f"check failed: {error}")
    largest = max(differences.values())
    print(f"{folder} is what was published; largest difference of {len(differences)} outputs {largest:.1e}")


if __name__ == "__main__":
    main()
