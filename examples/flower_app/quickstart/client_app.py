"""What a site does: train the model it is sent on its own data, and evaluate it."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import Net, evaluate, load_data, train

torch.set_num_threads(1)  # the sites of this example share a machine

app = ClientApp()


@app.train()
def train_here(message: Message, context: Context) -> Message:
    """Train on the site's examples and send the model back."""
    net, data = _received(message), _data(context)[0]
    seen = int(context.state["seen"]["rounds"]) if "seen" in context.state else 0
    context.state["seen"] = MetricRecord({"rounds": seen + 1})
    loss = train(
        net, data, int(context.run_config["epochs"]), float(context.run_config["learning-rate"]), seed=seen
    )
    return Message(
        content=RecordDict(
            {
                "arrays": ArrayRecord(net.state_dict()),
                "metrics": MetricRecord({"train-loss": loss, "num-examples": len(data)}),
            }
        ),
        reply_to=message,
    )


@app.evaluate()
def evaluate_here(message: Message, context: Context) -> Message:
    """Evaluate the model on the held-out examples."""
    data = _data(context)[1]
    loss, accuracy = evaluate(_received(message), data)
    metrics = MetricRecord({"eval-loss": loss, "eval-accuracy": accuracy, "num-examples": len(data)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def _received(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def _data(context: Context) -> tuple:
    return load_data(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
