"""The experiments that travel with the package, by name."""

from pathlib import Path

from fedsiege.errors import InputError
from fedsiege.registry import nearest

FOLDER = Path(__file__).parent / "experiments"
TEMPLATE = Path(__file__).parent / "template.yaml"
"""The commented config that `fedsiege init` writes."""


def names() -> list[str]:
    """Every shipped experiment (`quickstart`, `fedmia/cifar100_alexnet`, ...), sorted."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def find(config: str | Path) -> Path:
    """The file a config argument means: a file of the user's, else a shipped experiment.

    A shipped one answers to `quickstart`, `quickstart.yaml` and `experiments/quickstart.yaml` alike.
    Raises InputError naming the nearest shipped experiment.
    """
    path = Path(config)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("experiments/").removesuffix(".yaml").removesuffix(".yml")
    known = names()
    if name in known:
        return FOLDER / f"{name}.yaml"
    what = "is a folder; expected a YAML file" if path.is_dir() else "no such file or shipped experiment"
    raise InputError(f"{config}: {what}{nearest(name, known)}; shipped: {', '.join(known) or 'none'}")
