"""Registration with Transformers' Auto classes and pipelines."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .. import configuration_unimol2, feature_extraction_unimol2, modeling_unimol2, pipeline_unimol2

EMBEDDING_TASK = "molecule-embedding"
PROPERTY_TASK = "molecule-property-prediction"

AUTO_MAP = {
    "AutoConfig": "configuration_unimol2.UniMol2Config",
    "AutoFeatureExtractor": "feature_extraction_unimol2.UniMol2FeatureExtractor",
    "AutoModel": "modeling_unimol2.UniMol2Model",
    "AutoModelForPreTraining": "modeling_unimol2.UniMol2ForPreTraining",
    "AutoModelForSequenceClassification": "modeling_unimol2.UniMol2ForPropertyPrediction",
}
CUSTOM_PIPELINES = {
    EMBEDDING_TASK: {"impl": "pipeline_unimol2.MoleculeEmbeddingPipeline", "pt": ["AutoModel"]},
    PROPERTY_TASK: {
        "impl": "pipeline_unimol2.MoleculePropertyPipeline",
        "pt": ["AutoModelForSequenceClassification"],
    },
}


def register() -> None:
    """Make the Auto classes and `pipeline` know Uni-Mol2; safe to call twice."""
    config_class = configuration_unimol2.UniMol2Config
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoFeatureExtractor.register(config_class, feature_extraction_unimol2.UniMol2FeatureExtractor, exist_ok=True)
    for auto_class, model_class in (
        (AutoModel, modeling_unimol2.UniMol2Model),
        (AutoModelForPreTraining, modeling_unimol2.UniMol2ForPreTraining),
        (AutoModelForSequenceClassification, modeling_unimol2.UniMol2ForPropertyPrediction),
    ):
        auto_class.register(config_class, model_class, exist_ok=True)
    for task, pipeline_class, auto_class in (
        (EMBEDDING_TASK, pipeline_unimol2.MoleculeEmbeddingPipeline, AutoModel),
        (PROPERTY_TASK, pipeline_unimol2.MoleculePropertyPipeline, AutoModelForSequenceClassification),
    ):
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=auto_class, type="multimodal")
