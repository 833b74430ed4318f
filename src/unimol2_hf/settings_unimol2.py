"""Settings of conformers and of the featurizer, and names that several components share."""

from dataclasses import dataclass, field

POOLINGS = ("cls", "mean")
PRECISIONS = ("float32", "bfloat16")  # of training; bfloat16 is autocast
MAX_ATOMS_POLICIES = ("error", "crop")


@dataclass(frozen=True)
class ConformerSettings:
    """How to make conformers.

    Attributes:
        num_conformers: 3D conformers to embed; the k-th starts from `seed + k`.
        include_2d: add RDKit's 2D depiction as a last conformer.
        seed: seed of the first 3D conformer.
        embed_timeout: seconds after which RDKit is stopped: the last resort. Attempts are bounded by their number,
            and where the clock decides, which the conformer's note tells, the answer depends on the machine's load.
        num_retries: further seeds to try before random starting coordinates.
        allow_2d_fallback: give the 2D depiction when no 3D conformer can be embedded, else raise `ConformerError`.
        max_embed_atoms: a molecule with more atoms than this, hydrogens included, is refused: the set-up of distance
            geometry and the drawing in 2D grow with the cube of the count and ignore the timeout (3,002 atoms took
            246 s and 64 s).
    """

    num_conformers: int = 1
    include_2d: bool = False
    seed: int = 42
    embed_timeout: int = 3600
    num_retries: int = 3
    allow_2d_fallback: bool = True
    max_embed_atoms: int = 1000


@dataclass(frozen=True)
class FeaturizerSettings:
    """What `featurize_molecule` needs to know; travels to worker processes."""

    conformers: ConformerSettings = field(default_factory=ConformerSettings)
    max_atoms: int = 256
    max_atoms_policy: str = "error"
    use_graph_features: bool = True
