"""`data_path` -> where the rows of every split come from."""

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from main.errors import ConfigError, DataError, MissingFileError
from main.loaders.files import SUFFIXES, plain_suffix, read_json
from main.loaders.sources import Part, Source, of_dataset, of_file, of_rows
from main.options import nearest

logger = logging.getLogger("main.loaders")

SPLITS = ("train", "dev", "test")
# What else a split is called in folders and in data sets of others.
OTHER_NAMES = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "dev"}

_EXAMPLE = '{"my_data": {"train": "./data/train.json", "dev": "./data/dev.json"}}'
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class _Entry(NamedTuple):
    """Parts that share a weight; None where none is given."""

    parts: list[Part]
    weight: float | None = None


_Found = dict[str, list[_Entry]]


class _Place(NamedTuple):
    """Where something was given: for messages, and where relative paths begin besides."""

    where: str
    registry: Path

    @property
    def folder(self) -> Path:
        return self.registry.parent

    def inner(self, where: str) -> "_Place":
        return self._replace(where=where)


def resolve(
    data_path: Any, data_present_path: str | Path = "./data/present.json"
) -> dict[str, Source]:
    """Where the rows of a data set come from, by split ('train', 'dev', 'test').

    Args:
        data_path: a name in the registry; a file or a folder; a name of the hub; a mapping split ->
            file, list of files, rows or data set; a list of rows; a `datasets.Dataset` (all of
            these without splits are 'train') or `DatasetDict`; or a list of any of these, each as
            it is or as {"data": ..., "weight": 2.0}, whose splits are put together.
        data_present_path: the registry, a JSON object name -> {split: file}. Relative files are
            looked for from the working directory, then from the registry's folder.

    Raises:
        ConfigError: an unknown name (the nearest known one is offered), split or weight.
        DataError: a registry that is not such an object; a folder without data files.
        MissingFileError: the registry or a file does not exist.
    """
    place = _Place("data_path", Path(data_present_path).expanduser())
    found = _found(data_path, place)
    return {split: _source(found[split]) for split in SPLITS if found.get(split)}


def _found(value: Any, place: _Place) -> _Found:
    if isinstance(value, str | Path):
        return _named(value, place)
    if _is_dataset_dict(value):
        return _splits_of(value, place)
    if isinstance(value, Mapping):
        return _mapped(value, place)
    if _is_entries(value):
        return _merged(value, place)
    return {"train": [_Entry([_in_memory(value, place)])]}


def _merged(entries: Iterable[Any], place: _Place) -> _Found:
    """Everything that a list names, put together by split."""
    merged: _Found = {}
    for i, given in enumerate(entries):
        inner = place.inner(f"{place.where}[{i}]")
        data, weight = _entry(given, inner)
        for split, found in _found(data, inner).items():
            if any(entry.weight is not None for entry in found):
                raise ConfigError(f"{inner.where} is a mixture within a mixture: give one list.")
            parts = [part for entry in found for part in entry.parts]
            merged.setdefault(split, []).append(_Entry(parts, weight))
    for split in set(merged) - {"train"}:  # what is evaluated counts row by row
        merged[split] = [entry._replace(weight=None) for entry in merged[split]]
    return merged


def _entry(given: Any, place: _Place) -> tuple[Any, float | None]:
    if not (isinstance(given, Mapping) and "data" in given):
        return given, None
    unknown = [name for name in given if name not in ("data", "weight")]
    if unknown:
        raise ConfigError(
            f"{place.where} has the unknown key {unknown[0]!r}; allowed: data, weight."
            f"{nearest(str(unknown[0]), ('data', 'weight'))}"
        )
    weight = given.get("weight", 1.0)
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (number and 0 < weight < math.inf):
        raise ConfigError(
            f"{place.where}: weight={weight!r} must be a number above 0, the share of the draws "
            "beside the other weights; leave an entry out that is not to be drawn."
        )
    return given["data"], float(weight) if "weight" in given else None


def _source(entries: list[_Entry]) -> Source:
    parts = tuple(part for entry in entries for part in entry.parts)
    if all(entry.weight is None for entry in entries):
        return Source(parts)
    weights = [1.0 if entry.weight is None else entry.weight for entry in entries]
    return Source(parts, tuple((len(e.parts), w) for e, w in zip(entries, weights, strict=True)))


def source_of(data: Any) -> Source:
    """The one split of a file, a list of files, rows or a data set; a `Source` as it is.

    Raises:
        ConfigError, DataError, MissingFileError: see `resolve`.
    """
    if isinstance(data, Source):
        return data
    return _source(_of_split(data, "", _Place("data", Path())))


# -- names


def _named(name: str | Path, place: _Place) -> _Found:
    registry = _read_registry(place.registry)
    if registry is not None and str(name) in registry:
        return _mapped(registry[str(name)], place.inner(f"{place.registry}: '{name}'"))
    path = Path(name).expanduser()
    if os.path.isfile(path):
        return {"train": [_Entry([of_file(path)])]}
    if os.path.isdir(path):
        return _in_folder(path, place)
    if _HUB.fullmatch(str(name)) and not _is_data_file(path):
        return _from_hub(str(name), place)
    raise _unknown(str(name), registry, place.registry)


def _read_registry(path: Path) -> dict[str, Any] | None:
    if not os.path.exists(path):
        return None
    registry = read_json(path)
    if not isinstance(registry, dict):
        raise DataError(f"{path} must be an object such as {_EXAMPLE}.")
    return registry


def _unknown(name: str, registry: dict[str, Any] | None, present: Path) -> Exception:
    if _is_data_file(Path(name)) or "/" in name:
        return MissingFileError(f"data_path={name!r} does not exist (looked from {Path.cwd()}).")
    if registry is None:
        return MissingFileError(
            f"data_path={name!r} is looked up in {present}, which does not exist. Write it, for "
            f"example {_EXAMPLE}, or name it with data_present_path."
        )
    known = ", ".join(registry) or "(none)"
    return ConfigError(
        f"data_path={name!r} is not in {present}.{nearest(name, registry)} Known: {known}."
    )


def _from_hub(name: str, place: _Place) -> _Found:
    import datasets

    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # classes of datasets, huggingface_hub, requests and the system
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingFileError(
            f"data_path={name!r} does not exist (looked from {Path.cwd()}), and the hub has no "
            f"such data set or cannot be reached: {reason}"
        ) from error
    return _splits_of(found, place.inner(name))


# -- mappings, folders, objects


def _mapped(entry: Any, place: _Place) -> _Found:
    if not isinstance(entry, Mapping) or not entry:
        raise DataError(
            f"{place.where} must map splits to files, such as {{'train': 'train.json'}}."
        )
    for split in entry:
        if split not in SPLITS:
            raise ConfigError(
                f"{place.where} has the unknown split {split!r}; allowed: {', '.join(SPLITS)}."
                f"{nearest(str(split), SPLITS)}"
            )
    return {split: _of_split(value, split, place) for split, value in entry.items()}


def _of_split(value: Any, split: str, place: _Place) -> list[_Entry]:
    """What a mapping gives one split: a file, rows, a data set, or a list of files or of these."""
    here = place.inner(f"{place.where}, '{split}'" if split else place.where)
    if not _is_entries(value):
        return [_Entry([_one(value, here)])]
    inner = [here.inner(f"{here.where}[{i}]") for i in range(len(value))]
    entries = [_entry(given, at) for given, at in zip(value, inner, strict=True)]
    if split != "train" and any(weight is not None for _, weight in entries):
        raise ConfigError(
            f"{here.where}: weights are shares of what is drawn in training, and these rows are "
            "gone through one by one; leave them out."
        )
    found = zip(entries, inner, strict=True)
    return [_Entry([_one(data, at)], weight) for (data, weight), at in found]


def _one(value: Any, place: _Place) -> Part:
    if isinstance(value, str | Path):
        return of_file(_find(Path(value).expanduser(), place))
    return _in_memory(value, place)


def _find(file: Path, place: _Place) -> Path:
    for found in dict.fromkeys((file, place.folder / file)):
        if os.path.isfile(found):
            return found
    if place.where == "data":  # nobody looked in a registry's folder
        return file
    raise MissingFileError(
        f"{place.where}: {file} does not exist, neither from {Path.cwd()} nor from "
        f"{place.folder.resolve()}."
    )


def _in_folder(folder: Path, place: _Place) -> _Found:
    """The splits that a folder's files are named after; without such names all are 'train'."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        import datasets

        return _found(datasets.load_from_disk(str(folder)), place.inner(str(folder)))
    files = sorted(f for f in folder.iterdir() if f.is_file() and _is_data_file(f))
    if not files:
        raise DataError(f"{folder} has no data files ({', '.join(SUFFIXES)}, also packed).")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file), []).append(file)
    others = splits.pop("", [])
    if splits and others:
        names = ", ".join(file.name for file in others)
        logger.warning("%s: files that are named after no split are not read: %s", folder, names)
    splits = splits or {"train": others}
    return {split: [_files_of(split, found)] for split, found in splits.items()}


def _split_of(file: Path) -> str:
    """'dev' of validation.jsonl and of dev-00001-of-00002.parquet; '' of other names."""
    word = re.split(r"[.-]", file.name.lower(), maxsplit=1)[0]
    return word if word in SPLITS else OTHER_NAMES.get(word, "")


def _files_of(split: str, files: list[Path]) -> _Entry:
    kinds = {file.name.partition(".")[2] for file in files}
    if len(kinds) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{files[0].parent} has several files for '{split}': {names}. Name one.")
    return _Entry([of_file(file) for file in files])


def _splits_of(found: Any, place: _Place) -> _Found:
    """Of a DatasetDict."""
    named: _Found = {}
    for name, rows in found.items():
        split = OTHER_NAMES.get(name, name)
        if split not in SPLITS or split in named:
            raise ConfigError(
                f"{place.where} has the splits {list(found)}: '{name}' is none of "
                f"{', '.join((*SPLITS, *OTHER_NAMES))}, or the second of its kind. Give a mapping, "
                "as {'train': data[...], 'dev': data[...]}."
            )
        named[split] = [_Entry([_in_memory(rows, place.inner(f"{place.where}['{name}']"))])]
    return named


def _in_memory(value: Any, place: _Place) -> Part:
    import datasets

    if isinstance(value, datasets.Dataset):
        return of_dataset(value, place.where)
    if isinstance(value, list | tuple):
        return of_rows(value, place.where)
    if isinstance(value, datasets.IterableDataset):
        raise DataError(f"{place.where} is an IterableDataset, which has no end that is known; "
                        "save it to a file or make a Dataset of it.")  # fmt: skip
    raise DataError(f"{place.where} must be a path, rows or a data set; found {value!r:.80}.")


def _is_entries(value: Any) -> bool:
    """Whether a list names data, as opposed to a list of rows."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and not all(isinstance(e, Mapping) and "data" not in e for e in value)
    )


def _is_dataset_dict(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    import datasets

    return isinstance(value, datasets.DatasetDict)


def _is_data_file(path: Path) -> bool:
    return plain_suffix(path) in SUFFIXES and not path.name.startswith(".")
