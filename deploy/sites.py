"""Write one folder for each site of an experiment: python deploy/sites.py CONFIG FOLDER [KEY=VALUE ...].

FOLDER/site_0 holds client 0's data, its node.toml and, if it is in a coalition, what its members share; it is for
that site's machine alone. A compromised client is given none: the adversary that plays it reads the experiment's.
"""

import sys
import tempfile
from pathlib import Path

from fedsiege.errors import FedSiegeError, InputError
from fedsiege.experiment import load
from fedsiege.flower.deployment import toml
from fedsiege.flower.loopback import numbered
from fedsiege.flower.seat import write_sites


def main(config: str, folder: Path, changes: list[str]) -> None:
    """Write the folders of all sites."""
    with tempfile.TemporaryDirectory() as aside:
        for number, node in enumerate(write_sites(load(config, changes), Path(aside))):
            site = folder / f"site_{number}"
            if site.exists():
                raise InputError(f"{site}: is there already; expected a new folder for the sites")
            site.mkdir(parents=True, mode=0o700)
            values = numbered(node)
            for key in ("data", "coalition"):
                if key in values:
                    file = Path(str(values[key]))
                    (site / file.name).write_bytes(file.read_bytes())
                    values[key] = file.name  # a SuperNode is started in its site's folder
            (site / "node.toml").write_text(toml(values, f"site {number}"), encoding="utf-8")
            print(f"wrote {site}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    except FedSiegeError as error:
        print(f"fedsiege: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
