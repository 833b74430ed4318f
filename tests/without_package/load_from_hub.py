"""Elsewhere: a model of the Hub by its own code. ID; prints ethanol's vector as JSON."""

import json
import sys

import refuse  # noqa: F401
from transformers import AutoFeatureExtractor, AutoModel

name = sys.argv[1]
extractor = AutoFeatureExtractor.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True).eval()
print(json.dumps(model(**extractor("CCO")).pooler_output[0].tolist()))
