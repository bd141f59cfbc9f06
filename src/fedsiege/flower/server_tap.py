"""A tap into somebody's Flower server: their ServerApp runs unchanged, and what it receives is written down.

In the app's pyproject.toml, `serverapp = "quickstart.server_app:app"` becomes
`serverapp = "fedsiege.flower.server_tap:around.quickstart.server_app.app"`. The app is handed a grid that lets
everything through, whichever strategy or loop of its own it runs, and records what is sent and what comes back: as
much as the server sees, and no more. Under secure aggregation that is the model before and after each round.

Settings, all optional, in the node-config, the environment (`FEDSIEGE_TRACE` and so on) or the run-config:

- `fedsiege-trace`: the folder of the log, new or empty; `{run}` in it stands for the run's id. Default:
  `fedsiege-updates/{run}` in the server's working directory.
- `fedsiege-record-every`: record every so many rounds, and the last. Default 1.
- `fedsiege-weight-key`: the metric of a reply that is its weight. Default `num-examples`.
- `fedsiege-arrays-key`: the record that is the model, where messages carry several and none is called `arrays`.
- `fedsiege-clients`: the number of clients, where more may come than are there in the first round. Without it
  sites may number themselves up to ten times the nodes that are there, or to 1,000.
- `fedsiege-observable`: `aggregate` to record no single update, as under a secure aggregation of one's own.
"""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsiege.errors import InputError
from fedsiege.flower.chain import Chain
from fedsiege.flower.received import Received, Wishes
from fedsiege.flower.settings import setting, whole
from fedsiege.flower.signature import unsign
from fedsiege.flower.sites import LOGGER
from fedsiege.update_log import MOST_CLIENTS


class TappedGrid(Grid):
    """A grid that does what another does, and shows what passes through it to `received`.

    Sites' signatures are taken out of the replies; nothing else about them is changed.
    """

    def __init__(self, grid: Grid, received: Received) -> None:
        self._grid = grid
        self._received = received

    def set_run(self, run: Any) -> None:
        """As the grid behind it."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid behind it."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid behind it."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid behind it."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """As the grid behind it."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and remember what they carried."""
        going = list(messages)
        asked = self._received.sending(going)
        ids = list(self._grid.push_messages(going))
        self._received.sent(going, asked, ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch replies, and take note of them."""
        replies = list(self._grid.pull_messages(message_ids))
        self._received.received([(reply, unsign(reply)) for reply in replies])
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and fetch the replies, and take note of both."""
        going = list(messages)
        asked = self._received.sending(going)
        replies = list(self._grid.send_and_receive(going, timeout=timeout))
        self._received.sent(going, asked)
        self._received.received([(reply, unsign(reply)) for reply in replies], asked)
        return replies

    def __getattr__(self, name: str) -> Any:
        # What a grid has beside Flower's interface. Until `_grid` is set, as in a copy, there is nothing behind.
        if name.startswith("__") or name in {"_grid", "_received"}:
            raise AttributeError(name)
        return getattr(self._grid, name)


class TappedServerApp(ServerApp):
    """Somebody's ServerApp, run on a tapped grid."""

    def __init__(self, app: ServerApp) -> None:
        super().__init__()
        self._app = app

    def __call__(self, grid: Grid, context: Context) -> None:
        """Run the app; its log is whole however it ends. InputError before round 1 for bad settings."""
        wishes = wishes_of(context)
        LOGGER.info("FedSiege: what this server receives is recorded in %s", wishes.folder)
        received = Received(wishes, grid.get_node_ids)
        try:
            self._app(grid=TappedGrid(grid, received), context=context)
        finally:
            received.close()


def wishes_of(context: Context) -> Wishes:
    """The settings of a server's context, its folder made; InputError for what cannot be done."""
    observable = setting(context, "observable", "updates")
    if observable not in {"updates", "aggregate"}:
        raise InputError(f"fedsiege-observable: got {observable!r}; expected updates or aggregate")
    clients = whole(context, "clients", 0, least=0)
    if clients > MOST_CLIENTS:
        raise InputError(f"fedsiege-clients: got {clients}; expected at most {MOST_CLIENTS}")
    wishes = Wishes(
        folder=Path(str(setting(context, "trace", "fedsiege-updates/{run}")).replace("{run}", str(context.run_id)))
        .expanduser()
        .absolute(),
        source=f"flower {version('flwr')} server tap",
        every=whole(context, "record-every", 1, least=1),
        weight_key=str(setting(context, "weight-key", "num-examples")),
        arrays_key=str(setting(context, "arrays-key")),
        clients=clients,
        aggregate=observable == "aggregate",
    )
    try:
        wishes.folder.mkdir(parents=True, exist_ok=True)
        found = next(wishes.folder.iterdir(), None)
    except OSError as error:
        raise InputError(
            f"fedsiege-trace: got {wishes.folder}; expected a folder that can be made ({error})"
        ) from None
    if found is not None:
        raise InputError(
            f"fedsiege-trace: {wishes.folder} holds {found.name} already; expected a new or empty folder ({{run}} "
            "in the name stands for the run's id)"
        )
    return wishes


# A plain assignment: Flower looks for the name in this file's syntax tree before it imports it.
around = Chain(TappedServerApp, ServerApp)
