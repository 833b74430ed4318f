"""Run an exported model with ONNX Runtime, without torch: python examples/run_onnx.py FOLDER SMILES...

FOLDER is what `unimol2-hf export MODEL FOLDER` wrote. Needs onnxruntime, rdkit and transformers.
"""

import json
import sys

from onnxruntime import InferenceSession
from transformers import AutoFeatureExtractor

folder, *smiles = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
batch = extractor(smiles, return_tensors="np")
program = InferenceSession(f"{folder}/model.onnx")
# Of a fine-tuned model the logits, of a pretrained one the molecules' vectors.
values = program.run(None, {each.name: batch[each.name] for each in program.get_inputs()})[0]
print(json.dumps(dict(zip(smiles, values.tolist(), strict=True))))
