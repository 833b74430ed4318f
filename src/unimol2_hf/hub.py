"""Registration with Transformers' Auto classes, and export of a model together with its code."""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from . import configuration_unimol2, feature_extraction_unimol2, modeling_unimol2

AUTO_MAP = {
    "AutoConfig": "configuration_unimol2.UniMol2Config",
    "AutoFeatureExtractor": "feature_extraction_unimol2.UniMol2FeatureExtractor",
    "AutoModel": "modeling_unimol2.UniMol2Model",
    "AutoModelForPreTraining": "modeling_unimol2.UniMol2ForPreTraining",
    "AutoModelForSequenceClassification": "modeling_unimol2.UniMol2ForPropertyRegression",
}


def register() -> None:
    """Make the Auto classes know Uni-Mol2; safe to call twice."""
    config_class = configuration_unimol2.UniMol2Config
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoFeatureExtractor.register(config_class, feature_extraction_unimol2.UniMol2FeatureExtractor, exist_ok=True)
    AutoModel.register(config_class, modeling_unimol2.UniMol2Model, exist_ok=True)
    AutoModelForPreTraining.register(config_class, modeling_unimol2.UniMol2ForPreTraining, exist_ok=True)
    AutoModelForSequenceClassification.register(
        config_class, modeling_unimol2.UniMol2ForPropertyRegression, exist_ok=True
    )
