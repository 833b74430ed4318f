"""A model as a program that runs without this package and, but for torch.export's, without torch.

`transformers.exporters` traces and writes it; `transformers.exporters.ExportedModel.from_pretrained` reads it back, and
so does its own runtime (`examples/run_onnx.py`).
"""

import inspect
import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.export import Dim
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from ..configuration_unimol2 import UniMol2Config
from ..data.atomic_files import whole_folder
from ..errors import ModelError, SettingsError
from ..feature_extraction_unimol2 import OPTIONAL_NAMES, PAIRWISE_INPUT_NAMES, UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2ForPropertyPrediction, UniMol2Model
from ..models.loading import load_config, load_feature_extractor, load_model, quiet_transformers
from ..models.registration import AUTO_MAP, register
from ..pipeline_unimol2 import load_other_members
from ..settings_unimol2 import LONGEST_PATH
from .settings import ExportSettings, ProgramKind

LARGEST_DIFFERENCE = 1e-5
# What tracing, writing and checking a kind of program take besides torch.
_PACKAGES: dict[ProgramKind, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "torch": (),
}
# Of `ExportedModel.from_pretrained`. By itself OpenVINO computes in bfloat16 where the processor can: .003 apart.
FLOAT32: dict[ProgramKind, dict[str, Any]] = {
    "onnx": {},
    "openvino": {"config": {"INFERENCE_PRECISION_HINT": "f32"}},
    "torch": {},
}
_FORMATS: dict[ProgramKind, str] = {"onnx": "onnx", "openvino": "openvino", "torch": "dynamo"}
_PROPERTY_CLASSES = "UniMol2ForProperty"

# A dimension of 0 or 1 would be taken for a constant.
_TRACED = ("CC(=O)Oc1ccccc1C(=O)O", "CCO", "C[N+](C)(C)CC([O-])=O")
_CHECKED = (
    ("C",),
    ("c1ccccc1",),
    ("C", "[Na+].[Cl-]", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "CCO", "C#N", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "O"),
    ("CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)O", "OCC1OC(OC2(CO)OC(CO)C(O)C2O)C(O)C(O)C1O" * 2),
)


class EncoderProgram(nn.Module):
    """`pooler_output`, the CLS (B, D), and `last_hidden_state` (B, N + 1, D), the CLS first."""

    def __init__(self, model: UniMol2Model) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        encoded = self.model(**inputs, read_out="atoms")
        return {"pooler_output": encoded.pooler_output, "last_hidden_state": encoded.last_hidden_state}


class PropertyProgram(nn.Module):
    """`logits` (B, num_labels), see `UniMol2PropertyOutput`: of an ensemble their mean over the members.

    An ensemble moreover gives `member_logits` (B, members, num_labels).
    """

    def __init__(self, models: Sequence[UniMol2ForPropertyPrediction]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.config = models[0].config

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs = [model(**inputs) for model in self.models]
        logits = [each.logits.unsqueeze(1) if each.member_logits is None else each.member_logits for each in outputs]
        members = torch.cat(logits, dim=1)
        return {"logits": members.mean(1)} | ({"member_logits": members} if members.shape[1] > 1 else {})


def export_program(model: str, output_dir: Path, settings: ExportSettings, console: Console) -> None:
    """Write a model as a program, with its feature extractor, and check the program against the model.

    A fine-tuned model gives `PropertyProgram`'s outputs, any other one `EncoderProgram`'s. Batch and length are free.

    Args:
        model: "unimol2-nano", a folder or a Hub id; an ensemble becomes one program.
        output_dir: folder to write, whole or not at all; it must not exist, or be empty.
        settings: what kind of program.
        console: told what was written.

    Raises:
        ModelError: the model cannot be loaded or traced, or the program's answers are not the model's.
        OutputFolderError: the folder exists or cannot be written.
        SettingsError: a package is missing.
    """
    _require_packages(settings.to)
    with whole_folder(output_dir) as draft:
        program = load_program(model)
        extractor = load_feature_extractor(model)
        with _quiet():
            _write_program(model, program, _batch(extractor, program.config, _TRACED), settings.to, draft)
            _write_feature_extractor(extractor, draft)
            difference = _largest_difference(program, extractor, draft, FLOAT32[settings.to])
        if not difference <= LARGEST_DIFFERENCE:
            raise ModelError(
                f"the {settings.to} program of {model} differs from the model by {difference:.1e} (relative; at most "
                f"{LARGEST_DIFFERENCE:.0e} is allowed); nothing was written, export it to another kind"
            )
    console.print(f"{output_dir}: differs from the model by {difference:.1e} (relative)", highlight=False)
    if settings.to == "openvino":
        console.print("compile it with INFERENCE_PRECISION_HINT f32, or OpenVINO may choose bfloat16", highlight=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what three compilers say of their own insides; what matters is told by name."""
    logging.disable(logging.WARNING)
    try:
        with quiet_transformers(), redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _require_packages(kind: ProgramKind) -> None:
    missing = [name for name in ("transformers.exporters", *_PACKAGES[kind]) if find_spec(name) is None]
    if missing:
        raise SettingsError(f'export to {kind} needs {", ".join(missing)}; pip install "unimol2-hf[export]"')


def load_program(model: str) -> EncoderProgram | PropertyProgram:
    """What is to be exported of a model, float32, in eval mode.

    Raises:
        ModelError: it cannot be loaded, or its property head was never trained.
    """
    config = load_config(model)
    if not any(name.startswith(_PROPERTY_CLASSES) for name in config.architectures or ()):
        return EncoderProgram(load_model(UniMol2Model, model, config, torch.float32)).eval()
    loaded = load_model(UniMol2ForPropertyPrediction, model, config, torch.float32).eval()
    if loaded.classifier.is_new:
        raise ModelError(f"the property head of {model} was never trained; fine-tune it first")
    with quiet_transformers():
        return PropertyProgram([loaded, *load_other_members(loaded)]).eval()


def _batch(extractor: UniMol2FeatureExtractor, config: UniMol2Config, smiles: Sequence[str]) -> dict[str, Tensor]:
    """Model input of some molecules, drawn in 2D: whatever else the model reads comes too."""
    batch = dict(extractor(smiles, num_conformers=0, include_2d=True, max_atoms=LONGEST_PATH))
    if config.extra_features:
        mean, std = (torch.tensor([each[key] for each in config.extra_features]) for key in ("mean", "std"))
        batch["extra_features"] = mean + std * torch.linspace(-1, 1, len(smiles)).unsqueeze(-1)
    return batch


def _dynamic_shapes(names: Sequence[str]) -> dict[str, dict[int, Dim]]:
    molecules, atoms = Dim("molecules"), Dim("atoms")
    axes: dict[str, dict[int, Dim]] = {}
    for name in names:
        of_atoms = 0 if name in OPTIONAL_NAMES else 2 if name in PAIRWISE_INPUT_NAMES else 1
        axes[name] = {0: molecules, **dict.fromkeys(range(1, 1 + of_atoms), atoms)}
    return axes


def _write_program(
    name: str, program: EncoderProgram | PropertyProgram, batch: dict[str, Tensor], kind: ProgramKind, folder: Path
) -> None:
    from transformers.exporters.auto import AutoExportConfig, AutoHfExporter  # noqa: PLC0415 - of newer Transformers

    program.config.auto_map = {"AutoConfig": AUTO_MAP["AutoConfig"]}
    program.config.__dict__.pop("custom_pipelines", None)
    options = {"export_format": _FORMATS[kind], "dynamic_shapes": _dynamic_shapes(list(batch))}
    try:
        exporter = AutoHfExporter.from_config(options)
        exported = exporter.export(program, batch, AutoExportConfig.from_dict(options))
    # Three compilers, each with exceptions of its own.
    except Exception as error:
        told = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name} cannot be exported to {kind}: {type(error).__name__}: {told}") from error
    exported.save_pretrained(folder)


def _write_feature_extractor(extractor: UniMol2FeatureExtractor, folder: Path) -> None:
    """The extractor and the code of it and of the config, which need neither this package nor torch."""
    extractor.auto_map = {"AutoFeatureExtractor": AUTO_MAP["AutoFeatureExtractor"]}
    extractor.save_pretrained(folder)
    package = Path(inspect.getfile(UniMol2FeatureExtractor)).parent
    own = package / "feature_extraction_unimol2.py"
    code = own.read_text()
    # The pipelines, and with them torch: the program has no use for either.
    (folder / own.name).write_text(code.replace(inspect.getsource(UniMol2FeatureExtractor.pipeline_classes), ""))
    imported = (package / f"{module}.py" for module in get_relative_imports(folder / own.name))
    roots = [package / "configuration_unimol2.py", *imported]
    for source in {Path(each) for root in roots for each in (root, *get_relative_import_files(root))}:
        shutil.copyfile(source, folder / source.name)


def _largest_difference(
    program: EncoderProgram | PropertyProgram,
    extractor: UniMol2FeatureExtractor,
    folder: Path,
    options: dict[str, Any],
) -> float:
    """Between the written program and the model, over the largest value of each output."""
    from transformers.exporters import ExportedModel  # noqa: PLC0415

    register()
    written = ExportedModel.from_pretrained(folder, device="cpu", **options)
    differences: list[Tensor] = []
    for smiles in _CHECKED:
        batch = _batch(extractor, program.config, smiles)
        with torch.no_grad():
            expected, found = program(**batch), written(**batch)
        differences += [(found[name] - own).abs().max() / own.abs().max() for name, own in expected.items()]
    return float(torch.stack(differences).max())
