"""Pretraining batches: a conformer drawn, atoms masked, coordinates noised and aligned, graph features dropped.

arXiv 2406.14969, section 3. Every draw of a sample is a function of the collator's seed and the sample's number alone:
the same in every batch, process and restart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.conformer_library import GRAPH_TARGETS
from ..errors import LibraryError
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..molecule_features import dropped_graph_features, graph_features
from ..molecules import atoms_of, parse_smiles, remove_hydrogens
from ..settings_unimol2 import IGNORE_INDEX, MASK_TOKEN
from .graph_targets import TargetScale
from .settings import NoiseSettings

DRAW = "draw"  # a row's number among all samples that are ever drawn

FloatArray = NDArray[np.float32]


class PretrainingSample(NamedTuple):
    """One molecule's part of a batch, unpadded.

    Attributes:
        features: the model's input, noised.
        coordinates: (n, 3), clean, angstrom.
        labels: (n,) atomic numbers of masked atoms, -100 elsewhere.
        targets: (T,) standardised graph targets, NaN where missing or not asked for; `None` without any.
    """

    features: dict[str, Any]
    coordinates: FloatArray
    labels: NDArray[np.int64]
    targets: FloatArray | None


@dataclass
class DataCollatorForUniMol2Pretraining:
    """Rows of a library of conformers to batches for `UniMol2ForPreTraining`.

    A row has `smiles`, `atomic_numbers` (n,), `conformers` (flat coordinates (3 n,) in angstrom, in SMILES order) and,
    where 2D conformers are among them, `is_3d` (one flag for each) or `provenance` with that field; as `unimol2-hf
    conformers build` writes them. `draw` is the sample's number: rows without it (a plain `datasets` table) take `row`,
    and with it the same draws in every epoch unless `epoch` is counted up.

    A sample that should be 2D but has no 2D conformer, or 3D but has only a 2D one, takes what it has.

    Attributes:
        feature_extractor: whose `pad` is used.
        noise: the task.
        seed: of all draws.
        epoch: added to the seed.
        targets: scale of the rows' `graph_targets`; without one they are left alone.
    """

    feature_extractor: UniMol2FeatureExtractor = field(default_factory=UniMol2FeatureExtractor)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    seed: int = 0
    epoch: int = 0
    targets: TargetScale | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A padded batch: the model's inputs, `labels` (B, N) (-100 where not masked), `target_coordinates` (B, N, 3).

        With targets also `graph_targets` (B, T), standardised, NaN where missing.

        Raises:
            LibraryError: a row has no conformer, or conformers that do not fit its atoms.
            MoleculeError: RDKit cannot read a row's SMILES.
        """
        samples = [self.sample(row) for row in rows]
        batch: dict[str, Tensor] = dict(self.feature_extractor.pad([sample.features for sample in samples]))
        atoms = batch["attention_mask"].numpy()
        clean, labels = _padded(samples, atoms.shape)
        noised = batch["coordinates"].numpy()
        batch["coordinates"] = torch.from_numpy(align(noised, clean, atoms))
        batch["target_coordinates"] = torch.from_numpy(clean)
        batch["labels"] = torch.from_numpy(labels)
        if self.targets is not None:
            batch[GRAPH_TARGETS] = torch.from_numpy(np.stack([t for _, _, _, t in samples if t is not None]))
        return batch

    def sample(self, row: Mapping[str, Any]) -> PretrainingSample:
        """Noised model input of one row, and what is to be predicted from it."""
        random = self._random(row)
        noise = self.noise
        if noise.clean_probability and random.random() < noise.clean_probability:
            noise = _UNTOUCHED
        numbers = np.asarray(row["atomic_numbers"], dtype=np.int64)
        keeps_graph = random.random() >= noise.drop_graph_probability
        flat = keeps_graph and random.random() < noise.flat_probability
        clean = _draw_conformer(row, len(numbers), flat, random)
        masked = _draw_masked(len(numbers), noise.mask_probability, random)
        labels = np.full(len(numbers), IGNORE_INDEX, dtype=np.int64)
        labels[masked] = numbers[masked]
        tokens = numbers.copy()
        tokens[masked] = MASK_TOKEN
        noised = clean + noise.noise_angstrom * random.standard_normal(clean.shape, dtype=np.float32)
        graph = _graph_of(row, len(numbers)) if keeps_graph else dropped_graph_features(len(numbers))
        features = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **graph, "coordinates": noised}
        return PretrainingSample(features, clean, labels, self._targets_of(row, random))

    def _targets_of(self, row: Mapping[str, Any], random: np.random.Generator) -> FloatArray | None:
        if self.targets is None:
            return None
        if GRAPH_TARGETS not in row:
            raise LibraryError(f"a row needs {GRAPH_TARGETS!r}, its values of {', '.join(self.targets.names)}")
        targets = self.targets.standardised(np.array(row[GRAPH_TARGETS], dtype=np.float32))
        # The last draw of a sample: without targets the others are the same.
        if self.noise.target_probability < 1:
            targets[random.random(len(targets)) >= self.noise.target_probability] = np.nan
        return targets

    def _random(self, row: Mapping[str, Any]) -> np.random.Generator:
        draw = row.get(DRAW, row.get("row"))
        if draw is None:
            raise LibraryError(f"a row needs {DRAW!r} or 'row', from which its noise is drawn")
        # The counter leaves 2^64 numbers to each sample.
        return np.random.Generator(np.random.Philox(key=[self.seed, self.epoch], counter=[0, int(draw), 0, 0]))


_UNTOUCHED = NoiseSettings(mask_probability=0.0, noise_angstrom=0.0, drop_graph_probability=0.0, flat_probability=0.0)


def _draw_conformer(row: Mapping[str, Any], count: int, flat: bool, random: np.random.Generator) -> FloatArray:
    """Centred coordinates (n, 3) of one conformer of the wanted kind, or of any if there is none."""
    conformers = row["conformers"]
    if not len(conformers):
        raise LibraryError(f"{row['smiles']!r} has no conformer; leave rows with an error out")
    is_3d = _kinds(row, len(conformers))
    wanted = [number for number, three in enumerate(is_3d) if three != flat] or range(len(conformers))
    chosen = np.asarray(conformers[wanted[int(random.integers(len(wanted)))]], dtype=np.float32)
    if chosen.size != 3 * count:
        raise LibraryError(f"{row['smiles']!r} has {count} atoms and {chosen.size} coordinates; build it again")
    positions = chosen.reshape(count, 3)
    return positions - positions.mean(0)


def _kinds(row: Mapping[str, Any], count: int) -> Sequence[bool]:
    if "is_3d" in row:
        return list(row["is_3d"])
    provenance = row.get("provenance")
    return [bool(entry["is_3d"]) for entry in provenance] if provenance else [True] * count


def _draw_masked(count: int, probability: float, random: np.random.Generator) -> NDArray[np.intp]:
    """Positions of masked atoms: n p of them, rounded up or down at random so that the mean is exact."""
    number = int(count * probability + random.random())
    return random.permutation(count)[:number]


def _graph_of(row: Mapping[str, Any], count: int) -> dict[str, Any]:
    heavy = remove_hydrogens(parse_smiles(row["smiles"]))
    if heavy.GetNumAtoms() != count:
        raise LibraryError(f"{row['smiles']!r} has {heavy.GetNumAtoms()} heavy atoms, its row {count}; build it again")
    return graph_features(heavy, atoms_of(heavy))


def _padded(samples: Sequence[PretrainingSample], shape: tuple[int, ...]) -> tuple[FloatArray, NDArray[np.int64]]:
    clean = np.zeros((*shape, 3), dtype=np.float32)
    labels = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    for number, sample in enumerate(samples):
        clean[number, : len(sample.labels)] = sample.coordinates
        labels[number, : len(sample.labels)] = sample.labels
    return clean, labels


def align(moving: FloatArray, fixed: FloatArray, atoms: NDArray[Any]) -> FloatArray:
    """`moving` after the proper rigid motion that brings it nearest to `fixed` (Kabsch 1976).

    Args:
        moving, fixed: (B, N, 3), angstrom.
        atoms: (B, N), 1 for atoms; padding is left at 0.
    """
    weights = atoms[..., None].astype(np.float64)
    counts = weights.sum(1, keepdims=True)
    from_center = (moving * weights).sum(1, keepdims=True) / counts
    to_center = (fixed * weights).sum(1, keepdims=True) / counts
    centred = (moving - from_center) * weights
    left, _, right = np.linalg.svd(centred.transpose(0, 2, 1) @ ((fixed - to_center) * weights))
    # A reflection would turn the molecule into its mirror image.
    left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    aligned: FloatArray = ((centred @ (left @ right) + to_center) * weights).astype(np.float32)
    return aligned
