"""Errors that a user of the package can cause, each with the mend in its message.

All are `ValueError`s. In batch work a `MoleculeError` is recorded beside its row instead of being raised.
"""


class UniMol2Error(ValueError):
    """Base of every error that this package raises on purpose."""


class MoleculeError(UniMol2Error):
    """A molecule that cannot be turned into model input.

    Attributes:
        molecule: the molecule as the user gave it, shortened for printing; `None` when unknown.
        index: its position among the given molecules; `None` for a single molecule.
        reason: the message without molecule and position, as batch outputs record it.
    """

    def __init__(self, reason: str, molecule: object = None, index: int | None = None) -> None:
        self.reason = reason
        self.molecule = molecule
        self.index = index
        super().__init__(reason)

    def __str__(self) -> str:
        position = "" if self.index is None else f"molecule {self.index}: "
        shown = "" if self.molecule is None else f" (got {_shorten(self.molecule)})"
        return f"{position}{self.reason}{shown}"

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # Exceptions cross process borders; the default would keep only the message.
        return type(self), (self.reason, self.molecule, self.index)


class MoleculeTypeError(MoleculeError):
    """Not a SMILES string, an RDKit molecule, or (atomic numbers, coordinates[, bonds])."""


class SmilesParseError(MoleculeError):
    """Text that RDKit cannot read as SMILES."""


class SanitizationError(MoleculeError):
    """A molecular graph that violates RDKit's chemistry rules (valence, aromaticity)."""


class EmptyMoleculeError(MoleculeError):
    """A molecule without heavy atoms."""


class UnsupportedAtomError(MoleculeError):
    """An atom without an element: a wildcard, or an atomic number outside 1..118."""


class CoordinatesError(MoleculeError):
    """Coordinates that are missing, not finite, of the wrong shape, or all in one point."""


class MoleculeTooLargeError(MoleculeError):
    """More heavy atoms than `max_atoms`."""


class ConformerError(MoleculeError):
    """No 3D conformer could be embedded, and a 2D one was not allowed."""


class CheckpointError(UniMol2Error):
    """A checkpoint file that cannot be converted: unsafe, incomplete, or of another model."""


class ModelError(UniMol2Error):
    """A folder or Hub id that holds no usable Uni-Mol2 model, or a model whose training diverged."""


class TableError(UniMol2Error):
    """A table of molecules without the columns, splits or labels that were asked for."""


def _shorten(molecule: object, limit: int = 80) -> str:
    text = repr(molecule)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
