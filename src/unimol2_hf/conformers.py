"""Conformer generation: RDKit's ETKDG with MMFF94, a recorded retry ladder, the same coordinates on every machine load.

The rungs, in order:

1. "etkdg": ETKDGv2, the reference's call.
2. "etdg": the same without its flat rings, which crowded polycyclic aromatics cannot have, relaxed until it converges.
3. "etkdg-other-seed".
4. "etkdg-random-coordinates" and "etdg-random-coordinates": for molecules whose random distances give no start in 3D,
   mostly long chains.
5. "2d": RDKit's drawing.

Each is bounded by its attempts. A bound in seconds would make the answer depend on what else the machine does.
Each conformer tells how its coordinates came about (`ConformerProvenance`); nothing is replaced silently.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor, rdDistGeom, rdForceFieldHelpers

from .errors import ConformerError, MoleculeTooLargeError
from .molecules import FloatArray, atoms_of, center_coordinates
from .settings_unimol2 import RETRY_SEED_STEP, ConformerSettings

# Of the rungs, their order and bounds. 1 knew no ETDG and was bounded by a clock.
LADDER_VERSION = 2

GIVEN = "given"
ETKDG = "etkdg"
ETDG = "etdg"
ETKDG_OTHER_SEED = "etkdg-other-seed"
ETKDG_RANDOM_COORDINATES = "etkdg-random-coordinates"
ETDG_RANDOM_COORDINATES = "etdg-random-coordinates"
TWO_DIMENSIONAL = "2d"
_NOT_FLAT = frozenset((ETDG, ETDG_RANDOM_COORDINATES))
_RANDOM_START = frozenset((ETKDG_RANDOM_COORDINATES, ETDG_RANDOM_COORDINATES))

# By the names of `ConformerSettings.force_field`.
_OPTIMIZERS: Mapping[str, Callable[..., int]] = {
    "MMFF94": rdForceFieldHelpers.MMFFOptimizeMolecule,
    "UFF": rdForceFieldHelpers.UFFOptimizeMolecule,
}
TIMED_OUT = "embedding timed out"
NO_START = "no starting coordinates"
ATOMS_COINCIDE = "atoms of separate fragments coincide"
COINCIDENCE_ANGSTROM = 0.1  # far below any bond
FRAGMENTS_NOTE = "fragments were embedded apart; their distance is arbitrary"

# An attempt without starting coordinates costs next to nothing, and hundreds may precede a good one. Those that are
# minimised and thrown away cost up to seconds: of 2,264 molecules that ETKDG embedded, none needed more than 6.
FIRST_ATTEMPTS = 30
COSTLY_ATTEMPTS = 20
MOST_ATTEMPTS = 1000
RDKIT_ATTEMPTS_PER_ATOM = 10  # its own bound
RANDOM_COORDINATES_ATTEMPTS = 20

REFERENCE_RELAXATION = 200  # iterations; RDKit's default
# ETDG starts further from flat rings: 200 iterations converge for 33 of 75 crowded aromatics, these for all.
ETDG_RELAXATION = 2000

# What need not be tried after a failure. The starting coordinates of ETDG are those of ETKDG.
_HOPELESS_AFTER: Mapping[str, frozenset[str]] = {
    TIMED_OUT: frozenset((ETKDG_OTHER_SEED,)),
    NO_START: frozenset((ETDG, ETKDG_OTHER_SEED)),
}


@dataclass(frozen=True)
class ConformerProvenance:
    """How a conformer's coordinates came about.

    Attributes:
        method: "given", or the rung that worked: "etkdg" (the reference's call), "etdg", "etkdg-other-seed",
            "etkdg-random-coordinates", "etdg-random-coordinates" or "2d".
        is_3d: true for an embedded conformer, and for given coordinates, planar ones too.
        seed: the random seed that worked; `None` for given and 2D coordinates.
        force_field: "MMFF94" or "UFF" where the conformer was relaxed with it, else `None`.
        force_field_converged: whether it converged within RDKit's 200 iterations (for ETDG 2,000); `None` where it was
            not run.
        note: why a fallback was taken or a force field could not be set up; empty when all went well.
        ladder: `LADDER_VERSION` of the process that made the conformer; `None` for given coordinates, and for
            conformers stored before this was recorded.
        rdkit: its version of RDKit, the same way.
    """

    method: str
    is_3d: bool
    seed: int | None = None
    force_field: str | None = None
    force_field_converged: bool | None = None
    note: str = ""
    ladder: int | None = None
    rdkit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Conformer:
    """Heavy-atom coordinates (n, 3), float32, angstrom, mean-centred, and where they come from."""

    coordinates: FloatArray
    provenance: ConformerProvenance


def conformer_versions() -> dict[str, Any]:
    """What decides generated conformers besides molecule and settings: the versions of the ladder and of RDKit."""
    return {"ladder": LADDER_VERSION, "rdkit": rdBase.rdkitVersion}


def given_conformers(heavy: Chem.Mol, limit: int) -> list[Conformer]:
    """The first `limit` 3D conformers that a molecule without hydrogens carries, shifted to the origin, else untouched.

    What its file or program calls 3D is the user's, planar or not; a drawing is no conformer.
    """
    # RDKit's iterator costs more than the rest.
    conformers = [heavy.GetConformer()] if heavy.GetNumConformers() == 1 else list(heavy.GetConformers())
    return [given_coordinates(each.GetPositions()) for each in conformers if each.Is3D()][:limit]


def given_coordinates(coordinates: NDArray[np.floating[Any]]) -> Conformer:
    """Heavy-atom coordinates (n, 3) in angstrom as a conformer, shifted to the origin, else untouched."""
    return Conformer(center_coordinates(coordinates), ConformerProvenance(GIVEN, is_3d=True))


def generate_conformers(molecule: Chem.Mol, settings: ConformerSettings) -> list[Conformer]:
    """Embed conformers of a sanitised molecule with heavy atoms (see `remove_hydrogens`).

    The result is a function of molecule, settings and `conformer_versions` alone, unless `embed_timeout` strikes.

    Where no 3D conformer can be had, the list holds one 2D conformer that says why.

    Raises:
        ConformerError: no 3D conformer, and `allow_2d_fallback` is off.
        MoleculeTooLargeError: more atoms than `max_embed_atoms`.
    """
    with rdBase.BlockLogs():
        with_hydrogens = Chem.AddHs(molecule)
        with_hydrogens.RemoveAllConformers()
        _check_size(with_hydrogens.GetNumAtoms(), settings.max_embed_atoms)
        conformers: list[Conformer] = []
        for number in range(settings.num_conformers):
            embedded = _embed_with_retries(with_hydrogens, settings.seed + number, settings)
            if isinstance(embedded, Conformer):
                conformers.append(embedded)
                continue
            if not settings.allow_2d_fallback:
                raise ConformerError(f"no 3D conformer: {embedded}; allow the 2D fallback or give coordinates")
            # The ladder has tried every way: the other seeds' ladders would only repeat it.
            return [*conformers, _depict(with_hydrogens, f"no 3D conformer: {embedded}")]
        if settings.include_2d:
            conformers.append(_depict(with_hydrogens, ""))
    return conformers


def depict(heavy: Chem.Mol) -> Conformer:
    """RDKit's 2D depiction of a sanitised molecule's heavy atoms."""
    with rdBase.BlockLogs():
        return _depict(Chem.AddHs(heavy), "")


def _check_size(count: int, limit: int) -> None:
    if count > limit:
        raise MoleculeTooLargeError(
            f"{count} atoms with hydrogens are too many to make a conformer of (limit {limit}); give coordinates"
        )


def _embed_with_retries(with_hydrogens: Chem.Mol, seed: int, settings: ConformerSettings) -> Conformer | str:
    """The first rung of the ladder that works, or the reason why none did."""
    failures: list[str] = []
    hopeless: set[str] = set()
    for method, rung_seed in _rungs(seed, settings.num_retries):
        if method in hopeless:
            continue
        reason = _embed(with_hydrogens, method, rung_seed, settings.embed_timeout)
        if reason is None:
            return _relax(with_hydrogens, method, rung_seed, "; ".join(failures), settings.force_field)
        hopeless |= _HOPELESS_AFTER.get(reason, frozenset())
        failures.append(f"{method} (seed {rung_seed}): {reason}")
    return "; ".join(failures)


def _rungs(seed: int, num_retries: int) -> list[tuple[str, int]]:
    other_seeds = [(ETKDG_OTHER_SEED, seed + RETRY_SEED_STEP * (retry + 1)) for retry in range(num_retries)]
    random_start = [(ETKDG_RANDOM_COORDINATES, seed), (ETDG_RANDOM_COORDINATES, seed)]
    return [(ETKDG, seed), (ETDG, seed), *other_seeds, *random_start]


def _embed(with_hydrogens: Chem.Mol, method: str, seed: int, timeout: int) -> str | None:
    """Embed in place; returns why not, `None` on success."""
    parameters = _embed_parameters(method, seed, timeout)
    most = min(RDKIT_ATTEMPTS_PER_ATOM * with_hydrogens.GetNumAtoms(), MOST_ATTEMPTS)
    if method in _RANDOM_START:
        most = RANDOM_COORDINATES_ATTEMPTS
    attempts = costly = 0
    while attempts < most and costly < COSTLY_ATTEMPTS:
        attempts = min(most, _next_bound(attempts, costly))
        parameters.maxIterations = attempts
        try:
            embedded = rdDistGeom.EmbedMolecule(with_hydrogens, parameters) == 0
        except (RuntimeError, ValueError) as error:
            return str(error).strip().splitlines()[0]
        if embedded:
            return ATOMS_COINCIDE if _atoms_coincide(with_hydrogens) else None
        failures = parameters.GetFailureCounts()
        if failures[rdDistGeom.EXCEEDED_TIMEOUT]:
            return TIMED_OUT
        costly = sum(failures) - failures[rdDistGeom.INITIAL_COORDS]
    return f"embedding failed in {attempts} attempts" if costly else NO_START


def _embed_parameters(method: str, seed: int, timeout: int) -> Any:
    """The defaults of `EmbedMolecule` (ETKDGv2), and what the rung changes."""
    parameters: Any = rdDistGeom.ETKDGv2()
    parameters.randomSeed = seed
    parameters.timeout = timeout
    parameters.trackFailures = True
    parameters.useBasicKnowledge = method not in _NOT_FLAT
    parameters.useRandomCoords = method in _RANDOM_START
    return parameters


def _next_bound(attempts: int, costly: int) -> int:
    """As many attempts as should meet the bound of costly ones; they repeat the first ones, whose seed they share."""
    if not attempts:
        return FIRST_ATTEMPTS
    return max(2 * attempts, attempts * COSTLY_ATTEMPTS // max(costly, 1))


def _atoms_coincide(molecule: Chem.Mol) -> bool:
    """RDKit embeds fragments apart, each around the origin, and so may put lone ions on top of each other."""
    positions = _heavy_positions(molecule)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return bool(distances.min(initial=np.inf) < COINCIDENCE_ANGSTROM)


def _heavy_positions(with_hydrogens: Chem.Mol) -> NDArray[np.float64]:
    heavy = np.array([atom.GetAtomicNum() for atom in atoms_of(with_hydrogens)]) != 1
    positions: NDArray[np.float64] = with_hydrogens.GetConformer().GetPositions()
    return positions[heavy]


def _relax(with_hydrogens: Chem.Mol, method: str, seed: int, note: str, force_field: str) -> Conformer:
    iterations = ETDG_RELAXATION if method in _NOT_FLAT else REFERENCE_RELAXATION
    optimize = _OPTIMIZERS.get(force_field)
    status = -1 if optimize is None else optimize(with_hydrogens, maxIters=iterations)
    has_force_field = status >= 0
    lacks = optimize is not None and not has_force_field
    no_parameters = f"{force_field} has no parameters for this molecule" if lacks else ""
    apart = FRAGMENTS_NOTE if len(Chem.GetMolFrags(with_hydrogens)) > 1 else ""
    note = "; ".join(filter(None, (note, no_parameters, apart)))
    coordinates = _heavy_positions(with_hydrogens)
    provenance = ConformerProvenance(
        method=method,
        is_3d=True,
        seed=seed,
        force_field=force_field if has_force_field else None,
        force_field_converged=status == 0 if has_force_field else None,
        note=note,
        **conformer_versions(),
    )
    return Conformer(center_coordinates(coordinates), provenance)


def _depict(with_hydrogens: Chem.Mol, note: str) -> Conformer:
    drawn = Chem.Mol(with_hydrogens)
    rdDepictor.Compute2DCoords(drawn)
    coordinates = _heavy_positions(drawn)
    provenance = ConformerProvenance(TWO_DIMENSIONAL, is_3d=False, note=note, **conformer_versions())
    return Conformer(center_coordinates(coordinates), provenance)
