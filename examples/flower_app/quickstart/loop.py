"""The same server with a loop of its own instead of a strategy: it pushes messages and pulls replies."""

import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from quickstart.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and keep the model."""
    torch.manual_seed(0)
    state = Net().state_dict()
    for _ in range(int(context.run_config["rounds"])):
        state = average(ask(grid, state))
    if path := str(context.run_config["final-model"]):
        torch.save(state, path)


def ask(grid: Grid, state: dict[str, torch.Tensor]) -> list[Message]:
    """Have every node train the model; their replies, sorted by node."""
    while len(nodes := sorted(grid.get_node_ids())) < 2:
        time.sleep(1)
    content = RecordDict({"arrays": ArrayRecord(state), "config": ConfigRecord({"local": True})})
    waiting = set(grid.push_messages([Message(content, node, "train") for node in nodes]))
    replies = list[Message]()
    while waiting:
        arrived = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        replies += arrived
        time.sleep(0.1)
    return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def average(replies: list[Message]) -> dict[str, torch.Tensor]:
    """The mean of the models that came back, weighted by their numbers of examples."""
    sound = [reply.content for reply in replies if reply.has_content()]
    total = sum(int(content["metrics"]["num-examples"]) for content in sound)
    mean = dict[str, torch.Tensor]()
    for content in sound:
        share = int(content["metrics"]["num-examples"]) / total
        for name, values in content["arrays"].to_torch_state_dict().items():
            mean[name] = mean[name] + share * values if name in mean else share * values
    return mean
