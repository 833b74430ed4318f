"""Uni-Mol2 molecular foundation models for Hugging Face Transformers.

Importing the package registers its classes with `AutoConfig`, `AutoModel`, `AutoModelForPreTraining`,
`AutoModelForSequenceClassification`, `AutoFeatureExtractor` and `pipeline`.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Public name -> module. Loaded on first use, so that workers and `--help` need not wait for torch.
_EXPORTS = {
    "CheckpointError": "errors",
    "ConformerError": "errors",
    "ConformerProvenance": "conformers",
    "ConformerSettings": "settings_unimol2",
    "CoordinatesError": "errors",
    "DataCollatorForUniMol2": "training.collator",
    "DataCollatorForUniMol2Pretraining": "pretraining.collator",
    "EmptyMoleculeError": "errors",
    "FeaturizedMolecule": "feature_extraction_unimol2",
    "ModelError": "errors",
    "UnexpectedMoleculeError": "errors",
    "DuplicateMoleculeError": "errors",
    "SettingsError": "errors",
    "OutputFolderError": "errors",
    "HubError": "errors",
    "LibraryError": "errors",
    "MetricsError": "errors",
    "MoleculeError": "errors",
    "MoleculeTooLargeError": "errors",
    "MoleculeTypeError": "errors",
    "NANO": "models.packaged",
    "NoBondsError": "errors",
    "SanitizationError": "errors",
    "SmilesParseError": "errors",
    "TableError": "errors",
    "UniMol2Classifier": "estimators.property",
    "UniMol2Config": "configuration_unimol2",
    "UniMol2Embedder": "estimators.embedder",
    "UniMol2Error": "errors",
    "UniMol2FeatureExtractor": "feature_extraction_unimol2",
    "UniMol2ForPreTraining": "modeling_unimol2",
    "UniMol2ForPropertyClassification": "modeling_unimol2",
    "UniMol2ForPropertyPrediction": "modeling_unimol2",
    "UniMol2ForPropertyRegression": "modeling_unimol2",
    "UniMol2Model": "modeling_unimol2",
    "UniMol2ModelOutput": "modeling_unimol2",
    "UniMol2PreTrainedModel": "modeling_unimol2",
    "UniMol2PreTrainingOutput": "modeling_unimol2",
    "UniMol2PropertyOutput": "modeling_unimol2",
    "UniMol2Regressor": "estimators.property",
    "UniMol2Trainer": "hub.trainer",
    "UnsupportedAtomError": "errors",
    "check": "hub.check",
    "export_with_code": "hub.export",
    "keep_freed_memory": "jobs.memory",
    "scaffold_groups": "estimators.inputs",
    "similarity": "jobs.neighbours",
}

if TYPE_CHECKING:
    from .configuration_unimol2 import UniMol2Config as UniMol2Config
    from .conformers import ConformerProvenance as ConformerProvenance
    from .errors import CheckpointError as CheckpointError
    from .errors import ConformerError as ConformerError
    from .errors import CoordinatesError as CoordinatesError
    from .errors import DuplicateMoleculeError as DuplicateMoleculeError
    from .errors import EmptyMoleculeError as EmptyMoleculeError
    from .errors import HubError as HubError
    from .errors import LibraryError as LibraryError
    from .errors import MetricsError as MetricsError
    from .errors import ModelError as ModelError
    from .errors import MoleculeError as MoleculeError
    from .errors import MoleculeTooLargeError as MoleculeTooLargeError
    from .errors import MoleculeTypeError as MoleculeTypeError
    from .errors import NoBondsError as NoBondsError
    from .errors import OutputFolderError as OutputFolderError
    from .errors import SanitizationError as SanitizationError
    from .errors import SettingsError as SettingsError
    from .errors import SmilesParseError as SmilesParseError
    from .errors import TableError as TableError
    from .errors import UnexpectedMoleculeError as UnexpectedMoleculeError
    from .errors import UniMol2Error as UniMol2Error
    from .errors import UnsupportedAtomError as UnsupportedAtomError
    from .estimators.embedder import UniMol2Embedder as UniMol2Embedder
    from .estimators.inputs import scaffold_groups as scaffold_groups
    from .estimators.property import UniMol2Classifier as UniMol2Classifier
    from .estimators.property import UniMol2Regressor as UniMol2Regressor
    from .feature_extraction_unimol2 import FeaturizedMolecule as FeaturizedMolecule
    from .feature_extraction_unimol2 import UniMol2FeatureExtractor as UniMol2FeatureExtractor
    from .hub.check import check as check
    from .hub.export import export_with_code as export_with_code
    from .hub.trainer import UniMol2Trainer as UniMol2Trainer
    from .jobs.memory import keep_freed_memory as keep_freed_memory
    from .jobs.neighbours import similarity as similarity
    from .modeling_unimol2 import UniMol2ForPreTraining as UniMol2ForPreTraining
    from .modeling_unimol2 import UniMol2ForPropertyClassification as UniMol2ForPropertyClassification
    from .modeling_unimol2 import UniMol2ForPropertyPrediction as UniMol2ForPropertyPrediction
    from .modeling_unimol2 import UniMol2ForPropertyRegression as UniMol2ForPropertyRegression
    from .modeling_unimol2 import UniMol2Model as UniMol2Model
    from .modeling_unimol2 import UniMol2ModelOutput as UniMol2ModelOutput
    from .modeling_unimol2 import UniMol2PreTrainedModel as UniMol2PreTrainedModel
    from .modeling_unimol2 import UniMol2PreTrainingOutput as UniMol2PreTrainingOutput
    from .modeling_unimol2 import UniMol2PropertyOutput as UniMol2PropertyOutput
    from .models.packaged import NANO as NANO
    from .pretraining.collator import DataCollatorForUniMol2Pretraining as DataCollatorForUniMol2Pretraining
    from .settings_unimol2 import ConformerSettings as ConformerSettings
    from .training.collator import DataCollatorForUniMol2 as DataCollatorForUniMol2

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


def _is_own_command() -> bool:
    """`unimol2-hf ...`, or `python -m unimol2_hf.cli ...`, as torchrun starts it."""
    program = (getattr(sys, "argv", None) or [""])[0]
    # Python's `-m` imports the package before it knows the program's path.
    return Path(program).stem == "unimol2-hf" or (program == "-m" and f"{__name__}.cli" in sys.orig_argv)


# The command line names the classes it needs: its `--help` answers at once, and what must be set before torch is
# loaded can be set there.
if not _is_own_command():
    from .models.registration import register

    register()
