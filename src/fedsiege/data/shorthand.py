"""`data: some/name` in a config: which source reads it."""

from pathlib import Path

from fedsiege.registry import names


def source_spec(value: str) -> str | dict[str, str]:
    """The component spec of a string under `data:`.

    A registered name stays. An .npz file is read by `npz`, a folder without parquet files by `imagefolder`, any
    other folder, parquet file or hub name by `huggingface`. Anything else stays, for the registry to refuse.
    """
    if value in names("data"):
        return value
    place = Path(value).expanduser()
    if place.suffix == ".npz":
        return {"name": "npz", "path": value}
    if place.is_dir() and not any(place.rglob("*.parquet")) and any(path.is_dir() for path in place.iterdir()):
        return {"name": "imagefolder", "path": value}
    if ":" not in value and ("/" in value or place.exists()):
        return {"name": "huggingface", "path": value}
    return value
