"""Errors that a user of the package can cause, named by what they are about, each with the mend in its message.

All are `ValueError`s. In batch work a `MoleculeError` is recorded beside its row instead of being raised: its reason as
`error`, its class's `code` as `error_code`, so that a million failures can be counted.
"""

from typing import ClassVar

DUPLICATE = "duplicate"
NOT_FINITE = "not_finite"


class UniMol2Error(ValueError):
    """Base of every error that this package raises on purpose.

    Attributes:
        code: short name of the kind of error, the same in every version.
    """

    code: ClassVar[str] = "error"


class SettingsError(UniMol2Error):
    """A setting that is not known, of another type, out of bounds, or that does not fit another one."""

    code = "settings"


class OutputFolderError(UniMol2Error):
    """An output folder or file that cannot be written, is in use, or holds another job's output."""

    code = "output_folder"


class TableError(UniMol2Error):
    """A table or file of molecules that cannot be read, or lacks the columns, splits or labels that were asked for."""

    code = "table"


class MetricsError(UniMol2Error):
    """Predictions or labels that metrics cannot be computed from."""

    code = "metrics"


class LibraryError(UniMol2Error):
    """A folder or data set that is no library of conformers, or lacks what was asked of it."""

    code = "library"


class ModelError(UniMol2Error):
    """A folder or Hub id that holds no usable Uni-Mol2 model, or a model whose training diverged."""

    code = "model"


class CheckpointError(UniMol2Error):
    """A checkpoint file that cannot be converted: unsafe, incomplete, or of another model."""

    code = "checkpoint"


class HubError(UniMol2Error):
    """A folder that must not be published, or a repository of the Hub that cannot be reached, read or written."""

    code = "hub"


class MoleculeError(UniMol2Error):
    """A molecule that cannot be turned into model input.

    Attributes:
        molecule: the molecule as the user gave it, shortened for printing; `None` when unknown.
        index: its position among the given molecules; `None` for a single molecule.
        reason: the message without molecule and position, as batch outputs record it.
    """

    code = "molecule"

    def __init__(self, reason: str, molecule: object = None, index: int | None = None) -> None:
        self.reason = reason
        self.molecule = molecule
        self.index = index
        super().__init__(reason)

    def __str__(self) -> str:
        position = "" if self.index is None else f"molecule {self.index}: "
        shown = "" if self.molecule is None else f" (got {_shorten(self.molecule)})"
        return f"{position}{self.reason}{shown}"

    def __reduce__(self) -> tuple[type, tuple[object, ...], dict[str, str]]:
        # Exceptions cross process borders; the default would keep only the message.
        return type(self), (self.reason, self.molecule, self.index), {"code": self.code}


class MoleculeTypeError(MoleculeError):
    """Not a SMILES string, an RDKit molecule, or (atomic numbers, coordinates[, bonds])."""

    code = "molecule_type"


class SmilesParseError(MoleculeError):
    """Text that RDKit cannot read as SMILES."""

    code = "smiles"


class SanitizationError(MoleculeError):
    """A molecular graph that violates RDKit's chemistry rules (valence, aromaticity)."""

    code = "sanitization"


class EmptyMoleculeError(MoleculeError):
    """A molecule without heavy atoms."""

    code = "empty"


class UnsupportedAtomError(MoleculeError):
    """An atom without an element: a wildcard, or an atomic number outside 1..118."""

    code = "unsupported_atom"


class CoordinatesError(MoleculeError):
    """Coordinates that are missing, not finite, of the wrong shape, or all in one point."""

    code = "coordinates"


class MoleculeTooLargeError(MoleculeError):
    """More heavy atoms than `max_atoms`."""

    code = "too_large"


class ExtraFeaturesError(MoleculeError):
    """Numbers that the model reads besides the molecule are missing, not finite, or not known."""

    code = "extra_features"


class NoBondsError(MoleculeError):
    """Atoms and coordinates alone, where bonds are needed: the model reads descriptors."""

    code = "no_bonds"


class ConformerError(MoleculeError):
    """No 3D conformer could be embedded, and a 2D one was not allowed."""

    code = "no_conformer"


class UnexpectedMoleculeError(MoleculeError):
    """RDKit raised what nobody thought of; the reason tells what."""

    code = "unexpected"

    @classmethod
    def of(cls, error: Exception) -> "UnexpectedMoleculeError":
        return cls(f"unexpected {type(error).__name__}: {error}")


class DuplicateMoleculeError(MoleculeError):
    """A molecule that came before, where each is wanted once."""

    code = DUPLICATE


def _shorten(molecule: object, limit: int = 80) -> str:
    text = repr(molecule)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
