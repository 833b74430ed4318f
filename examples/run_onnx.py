"""Run an exported model with ONNX Runtime, without torch: python examples/run_onnx.py FOLDER SMILES...

FOLDER is what `unimol2-hf export MODEL FOLDER` wrote. Needs onnxruntime, rdkit and transformers. A model that reads
numbers besides the molecule needs these added to the batch: `extra_features`, float32, (molecules, columns).
"""

import json
import sys

from onnxruntime import InferenceSession
from transformers import AutoFeatureExtractor

folder, *smiles = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
program = InferenceSession(f"{folder}/model.onnx")
values = {}
for each in smiles:
    batch = extractor(each, return_tensors="np")
    # Of a fine-tuned model the logits, of a pretrained one the molecule's vector; a row for each conformer.
    rows = program.run(None, {wanted.name: batch[wanted.name] for wanted in program.get_inputs()})[0]
    values[each] = rows.mean(0).tolist()
print(json.dumps(values))
