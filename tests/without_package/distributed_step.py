"""One of two processes: the published code in DistributedDataParallel, two steps, gradients and outputs written.

FOLDER AUTO_CLASS MAIN_OUTPUT CHECKPOINTING BATCH FOUND
"""

import sys

import refuse
import torch
import transformers
from safetensors.torch import load_file, save_file

folder, auto_class, main_output, checkpointing, batch_file, found_file = sys.argv[1:]
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).train()
if int(checkpointing):
    model.gradient_checkpointing_enable()
distributed = torch.nn.parallel.DistributedDataParallel(model)
batch = {name: each[rank::2] for name, each in load_file(batch_file).items()}
for _ in range(2):  # a parameter without a gradient in the first step would stop the second
    output = distributed(**batch)
    output.loss.backward()
if rank == 0:
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    save_file({**gradients, "output": output[main_output].detach().contiguous()}, found_file)
torch.distributed.barrier()
refuse.end()
