"""Elsewhere: a folder that somebody saved, loaded by its own code, applied by both pipelines and by hand.

FOLDER SMILES (as JSON); prints what it found as JSON.
"""

import json
import sys

import refuse  # noqa: F401
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    pipeline,
)

folder, smiles = sys.argv[1], json.loads(sys.argv[2])
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
classes = (AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification)
models = [cls.from_pretrained(folder, trust_remote_code=True).eval() for cls in classes]
pipe = pipeline("molecule-property-prediction", folder, trust_remote_code=True, device="cpu")
embedder = pipeline("molecule-embedding", folder, trust_remote_code=True, device="cpu")
answer = {
    "classes": [type(model).__name__ for model in models],
    "logits": models[2](**extractor(smiles)).logits.tolist(),
    "pipeline": pipe([*smiles, "C1CC"], batch_size=3),
    "embedding": embedder(smiles)[0]["embedding"].tolist(),
    "targets": config.target_names,
}
print(json.dumps(answer))
