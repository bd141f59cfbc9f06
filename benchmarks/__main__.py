"""`make bench`: print every ratio with its spread, on one thread."""

import torch

from benchmarks.evidence import measure

torch.set_num_threads(1)
for clients in (5, 10):
    print(measure("alexnet", clients), flush=True)
print(measure("resnet18_light", 5), flush=True)
