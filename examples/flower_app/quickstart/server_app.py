"""A server that averages: Flower's own strategy."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and keep the model."""
    torch.manual_seed(0)
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
    result = strategy.start(grid, ArrayRecord(Net().state_dict()), num_rounds=int(context.run_config["rounds"]))
    if path := str(context.run_config["final-model"]):
        torch.save(result.arrays.to_torch_state_dict(), path)
