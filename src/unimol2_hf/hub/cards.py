"""Model cards, filled from the folder that is published and, where it was fine-tuned, from the run that made it."""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from jinja2 import Environment, StrictUndefined
from rdkit import rdBase

from ..calibration import CALIBRATION_FILE
from ..configuration_unimol2 import BINARY, MULTICLASS, REGRESSION, UniMol2Config
from ..data.molecule_files import HUB_PREFIX
from ..data.output_folder import JOB_FILE
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..fingerprints import FINGERPRINTS_FILE
from ..modeling_unimol2 import UniMol2ForPropertyPrediction, UniMol2Model
from ..models.loading import load_feature_extractor, load_model
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..settings_unimol2 import NANO_NAME, SCALES

CARD_FILE = "README.md"
OFFICIAL_REPOSITORY = "dptech/Uni-Mol2"
OFFICIAL_SCALES = ("84m", "164m", "310m", "570m", "1.1b")
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# Memory and time of each scale, measured by benchmarks/speed/scales.py.
MEASURED = Path(__file__).with_name("measured.json")
EVAL_RESULTS = Path(".eval_results/unimol2_hf.yaml")

_TAGS = ["chemistry", "molecules", "molecular-property-prediction", "3d", "unimol2"]
_EXAMPLE = "CC(=O)Oc1ccccc1C(=O)O"
_PARAMETERS = {
    "42m": 43_788_112,
    "84m": 84_116_080,
    "164m": 164_772_016,
    "310m": 310_082_880,
    "570m": 570_233_696,
    "1.1b": 1_129_209_696,
}
_MEANING = {
    REGRESSION: "the value, in the labels' units",
    BINARY: "probability of the positive class",
    MULTICLASS: "the likeliest class; its probabilities beside",
}
_DIGITS = 3


def versions() -> dict[str, str]:
    """Of what decides the answers."""
    return {
        "unimol2_hf": version("unimol2-hf"),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "rdkit": rdBase.rdkitVersion,
    }


def family_card() -> str:
    """The card of all scales together, the root's `model_card.md`."""
    card_data = _card_data(license="mit", base_model=OFFICIAL_REPOSITORY)
    values = {
        "title": "Uni-Mol2 for Transformers",
        "family": True,
        "repo": "org/unimol2-84m",
        "revision": f"v{version('unimol2-hf')}",
        "expected": "[...]",
        "figure": "src/unimol2_hf/hub/repository/scaling_law.png",
        "made_with": versions(),
        "featurizer": UniMol2FeatureExtractor().settings(),
        **_of_scales(),
    }
    return render(card_data, values)


def scale_card(folder: Path, scale: str, publication: Mapping[str, Any], where: Mapping[str, Any]) -> str:
    """The card of a converted official checkpoint.

    Args:
        folder: of the model.
        scale: its name.
        publication: what publication.json holds.
        where: `repo`, `revision` and `space`.
    """
    config = UniMol2Config.from_pretrained(folder)
    card_data = _card_data(license="mit", base_model=OFFICIAL_REPOSITORY)
    verification = publication["verification"]
    values = {
        "title": f"Uni-Mol2 {scale.upper()} for Transformers",
        "scale": scale,
        "config": config,
        "parameters": _PARAMETERS[scale],
        "checkpoint": {**publication["source"], "weights": publication["weights"]},
        "verified_on": verification["molecules"],
        "largest_difference": max(verification["differences"].values()),
        "expected": _embedding_of_example(folder),
        "expected_is_known": True,
        "made_with": publication["made_with"],
        "featurizer": load_feature_extractor(str(folder)).settings(),
        "figure": "scaling_law.png",
        **where,
        **_of_scales(),
    }
    return render(card_data, values)


def own_card(
    folder: Path, origin: Path, publication: Mapping[str, Any], where: Mapping[str, Any], license_: str | None
) -> str:
    """The card of a model of one's own: of a fine-tuned one with the run's data, splits and metrics.

    Args:
        folder: that is published.
        origin: that the run wrote.
        publication: what publication.json holds.
        where: `repo`, `revision` and `space`.
        license_: of the weights, as the Hub names it.
    """
    config = UniMol2Config.from_pretrained(folder)
    run = _run_of(origin)
    task = _task_of(folder, config) if "ForProperty" in (config.architectures or [""])[0] else None
    start = run["base_model"] if run else None
    data_sets = [run["data_set"]] if run and run["data_set"] else None
    values = {
        "title": str(where["repo"]).rpartition("/")[2],
        "config": config,
        "parameters": publication["parameters"],
        "task": task,
        "run": run,
        "license": license_,
        "expected": _prediction_of_example(folder, config) if task else _embedding_of_example(folder),
        "expected_is_known": True,
        "made_with": publication["made_with"],
        "featurizer": load_feature_extractor(str(folder)).settings(),
        **where,
    }
    return render(_card_data(license=license_, base_model=start, datasets=data_sets), values)


def render(card_data: ModelCardData, values: Mapping[str, Any]) -> str:
    """The template filled; a name that it needs and does not get is an error."""
    absent = {"family": False, "scale": None, "task": None, "run": None, "space": None, "license": None}
    defaults = {**absent, "checkpoint": None, "config": None, "expected_is_known": False}
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["cell"] = cell
    template = environment.from_string(TEMPLATE.read_text())
    return str(ModelCard(template.render({**defaults, **values, "card_data": card_data.to_yaml()})))


def cell(value: Any) -> str:
    """Text of a user's own in Markdown, where it can neither end a cell nor begin a link, markup or a line."""
    text = " ".join(str(value).split())
    return "".join(f"\\{each}" if each in "\\|`*_[]<>" else each for each in text)


def _card_data(**values: Any) -> ModelCardData:
    return ModelCardData(library_name="transformers", pipeline_tag="graph-ml", tags=_TAGS, **values)


def _of_scales() -> dict[str, Any]:
    rows = []
    for scale, parameters in _PARAMETERS.items():
        sizes = SCALES[scale]
        rows.append(
            {
                "name": scale,
                "layers": sizes["num_hidden_layers"],
                "width": sizes["hidden_size"],
                "heads": UniMol2Config.from_scale(scale).num_attention_heads,
                "pair_width": sizes["pair_hidden_size"],
                "parameters": parameters,
                "checkpoint": f"`{OFFICIAL_REPOSITORY}`" if scale in OFFICIAL_SCALES else "none was published",
            }
        )
    return {"scales": rows, "measured": json.loads(MEASURED.read_text())}


def _embedding_of_example(folder: Path) -> str:
    model = load_model(UniMol2Model, str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        vector = model(**load_feature_extractor(str(folder))(_EXAMPLE)).pooler_output[0, :3]
    return str([round(value, _DIGITS) for value in vector.tolist()])


def _prediction_of_example(folder: Path, config: UniMol2Config) -> str:
    model = load_model(UniMol2ForPropertyPrediction, str(folder), dtype=torch.float32).eval()
    pipe = MoleculePropertyPipeline(model=model, feature_extractor=load_feature_extractor(str(folder)), device="cpu")
    return str(_rounded(pipe(_example_input(config))["predictions"]))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, _DIGITS) if isinstance(value, float) else value


def _example_input(config: UniMol2Config) -> Any:
    if not config.extra_features:
        return _EXAMPLE
    features = {each["name"]: round(float(each.get("mean", 0.0)), _DIGITS) for each in config.extra_features}
    return {"molecule": _EXAMPLE, "features": features}


def _task_of(folder: Path, config: UniMol2Config) -> dict[str, Any]:
    kinds = config.targets or [{"name": name, "kind": REGRESSION} for name in config.target_names]
    calibration = folder / CALIBRATION_FILE
    return {
        "targets": [{"name": each["name"], "kind": each["kind"], "means": _MEANING[each["kind"]]} for each in kinds],
        "features": config.extra_feature_names,
        "members": config.num_members,
        "coverage": json.loads(calibration.read_text())["coverage"] if calibration.exists() else None,
        "has_fingerprints": (folder / FINGERPRINTS_FILE).exists(),
        "example_input": repr(_example_input(config)),
    }


def _run_of(origin: Path) -> dict[str, Any] | None:
    """What `finetune` left in its folder; `None` where it was made otherwise. No path of this machine is told."""
    try:
        metrics, settings = (json.loads((origin / name).read_text()) for name in ("metrics.json", "settings.json"))
        about = json.loads((origin / JOB_FILE).read_text())["about"]
    except (OSError, ValueError, KeyError):
        return None
    source = about.get("source", "")
    start, base = _start_of(settings, about.get("model_is_folder", True))
    baselines = metrics["baselines"]
    return {
        "head": f"{'fitted' if metrics.get('head') == 'frozen' else 'trained'}",
        "rows": metrics["rows"],
        "split": _split_of(settings),
        "seed": settings["seed"],
        "start": start,
        "base_model": base,
        "data_set": source.removeprefix(HUB_PREFIX) if str(source).startswith(HUB_PREFIX) else None,
        "baselines": list(baselines),
        "results": list(_results(metrics["test"], baselines)),
    }


def _start_of(settings: Mapping[str, Any], is_folder: bool) -> tuple[str, str | None]:
    """In words, and as a Hub id if it is one: a folder's name is nobody's business."""
    model = settings["model"]
    if settings["scale"]:
        return f"random weights of the scale {settings['scale']}", None
    if model.lower() == NANO_NAME:
        return f"{NANO_NAME}, which comes with the package", None
    if is_folder:
        return "a model of the author's own", None
    return f"[{model}](https://huggingface.co/{model})", model


def _split_of(settings: Mapping[str, Any]) -> str:
    if settings["split_column"] or settings["split_file"]:
        return "given with the table"
    method = f"by {settings['split_by']}" if settings["split_by"] else settings["split_method"]
    return f"{method}, {settings['folds']} folds" if settings["folds"] else str(method)


def _results(test: Mapping[str, Any], baselines: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for target, metrics in test.items():
        for name in metrics:
            if f"{name}_interval" in metrics and metrics[name] is not None:
                # Of a few rows there is none.
                interval = metrics[f"{name}_interval"]
                own = f"{metrics[name]:.3f}" + ("" if interval is None else " ({:.3f} to {:.3f})".format(*interval))
                others = [each.get(target, {}).get(name) for each in baselines.values()]
                told = ["" if value is None else f"{value:.3f}" for value in others]
                yield {"target": target, "metric": name, "own": own, "others": told}


def write_eval_results(folder: Path, origin: Path) -> None:
    """The run's test metrics as the Hub reads them, where the table is a data set there."""
    run = _run_of(origin)
    if run is None or run["data_set"] is None:
        return
    metrics = json.loads((origin / "metrics.json").read_text())["test"]
    entries = [
        EvalResultEntry(run["data_set"], f"{row['target']}: {row['metric']}", metrics[row["target"]][row["metric"]])
        for row in run["results"]
    ]
    (folder / EVAL_RESULTS).parent.mkdir(exist_ok=True)
    (folder / EVAL_RESULTS).write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
