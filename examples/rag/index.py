"""A searchable index of clues: chromadb on disk, cosine distance, a sentence encoder from a folder.

    python examples/rag/index.py add examples/rag/policies.jsonl     # or a folder of .txt and .md
    python examples/rag/index.py list
    python examples/rag/index.py delete returns-1

A JSONL row is {"id": ..., "text": what a question is compared with, "clue": what the model is
told}; `clue` defaults to `text`, `id` to a number made of the text. Of a folder every paragraph is
an entry. Adding an id again replaces its entry; nothing is ever twice in the index. The encoder
reads so many tokens and no more: a longer text is compared piece by piece, none of it is left out.
"""

import argparse
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from foreign import refuse_embedding_functions
from pieces import pieces

from main.errors import ConfigError, DataError, MissingExtraError, MissingFileError
from main.loaders import read_rows, row_word
from main.models.folder import clear_errors
from main.models.harmless import check_modules

ENCODER = "models/all-MiniLM-L6-v2"
LAYOUT = "2: pieces"  # of what is stored, see `_records`


class Entry(NamedTuple):
    """A piece of knowledge: `text` is compared with the question, `clue` is handed to the model."""

    id: str
    text: str
    clue: str


class Hit(NamedTuple):
    """The entry nearest to a question; `distance` is 1 - cosine, 0 = same direction."""

    id: str
    clue: str
    distance: float


class Record(NamedTuple):
    """A piece of an entry, as the database keeps it."""

    id: str
    text: str
    metadata: dict[str, Any]


class Changes(NamedTuple):
    """What adding entries did to the index."""

    added: int
    replaced: int
    unchanged: int


class Index:
    """Entries in `folder`, found by meaning.

    Raises:
        MissingExtraError: chromadb or sentence-transformers is not installed.
        MissingFileError: there is no encoder in the folder named.
        ModelError: the encoder would run code of others, or cannot be loaded.
        ConfigError: the index was built with another encoder: its distances would mean nothing; or
            it cannot be read or written, or would load a model of its own.
    """

    def __init__(self, folder: str | Path, encoder: str | Path = ENCODER, name: str = "knowledge"):
        chromadb, sentence_transformers = _packages()
        marks = {"encoder": _fingerprint(Path(encoder)), "layout": LAYOUT}
        self.folder, self._errors = folder, (chromadb.errors.ChromaError, sqlite3.Error, OSError)
        settings = chromadb.Settings(anonymized_telemetry=False)
        refuse_embedding_functions(Path(folder))
        with self._clear_errors():
            self._client = chromadb.PersistentClient(str(folder), settings=settings)
            _refuse_other(self._client, name, marks, folder, encoder)
            self._collection = self._client.get_or_create_collection(
                name, embedding_function=None, metadata={"hnsw:space": "cosine", **marks}
            )
        check_modules(Path(encoder))
        with clear_errors("sentence encoder", encoder):
            self._encoder = sentence_transformers.SentenceTransformer(
                str(encoder), trust_remote_code=False
            )

    def __len__(self) -> int:
        with self._clear_errors():
            return len(self._collection.get(where={"part": 0}, include=[])["ids"])

    def add(self, entries: Sequence[Entry]) -> Changes:
        """Add or replace by id; of several entries with one id the last counts."""
        wanted = {entry.id: entry for entry in entries}
        known = {entry.id: entry for entry in self._get(list(wanted))}
        new = [entry for entry in wanted.values() if known.get(entry.id) != entry]
        records = {entry.id: list(self._records(entry)) for entry in new}
        for some in self._batches([record for parts in records.values() for record in parts]):
            with self._clear_errors():
                self._collection.upsert(
                    ids=[record.id for record in some],
                    documents=[record.text for record in some],
                    embeddings=self._embed([record.text for record in some]),
                    metadatas=[record.metadata for record in some],
                )
        replaced = [entry.id for entry in new if entry.id in known]
        for one in replaced:  # what is left of a longer text than the new one
            surplus = [{"entry": one}, {"part": {"$gte": len(records[one])}}]
            with self._clear_errors():
                self._collection.delete(where={"$and": surplus})
        return Changes(len(new) - len(replaced), len(replaced), len(wanted) - len(new))

    def delete(self, ids: Sequence[str]) -> None:
        """Raises ConfigError when an id is not in the index; then nothing is deleted."""
        known = {entry.id for entry in self._get(list(ids))}
        missing = [one for one in ids if one not in known]
        if missing:
            raise ConfigError(f"not in the index: {missing}. `list` shows the ids that are.")
        for some in self._batches(list(ids)):
            with self._clear_errors():
                self._collection.delete(where={"entry": {"$in": some}})

    def find(self, question: str, threshold: float = 0.1) -> Hit | None:
        """The nearest entry closer than `threshold`; None when none is, or the index is empty."""
        with self._clear_errors():
            if not self._collection.count():
                return None
            found = self._collection.query(query_embeddings=self._embed([question]), n_results=1)
        metadata, distance = found["metadatas"][0][0], found["distances"][0][0]
        hit = Hit(metadata["entry"], metadata["clue"], distance)
        return hit if hit.distance < threshold else None

    def entries(self) -> list[Entry]:
        """All of them, by id."""
        with self._clear_errors():
            found = self._collection.get(where={"part": 0}, include=["metadatas"])
        return sorted(Entry(*json.loads(metadata["whole"])) for metadata in found["metadatas"])

    def _records(self, entry: Entry) -> Iterator["Record"]:
        """One for each piece of the text; the first one also keeps the entry.

        Where the clue is the text itself, the piece that was found is what the model is told.
        """
        for part, text in enumerate(pieces(entry.text, self._encoder)):
            clue = text if entry.clue == entry.text else entry.clue
            metadata = {"entry": entry.id, "part": part, "clue": clue}
            if part == 0:
                metadata["whole"] = json.dumps(entry, ensure_ascii=False)
            yield Record(f"{entry.id}#{part}", text, metadata)

    def _get(self, ids: list[str]) -> list[Entry]:
        found: list[Entry] = []
        for some in self._batches([f"{one}#0" for one in ids]):
            with self._clear_errors():
                records = self._collection.get(ids=some, include=["metadatas"])
            found += [Entry(*json.loads(m["whole"])) for m in records["metadatas"]]
        return found

    def _embed(self, texts: list[str]) -> Any:
        return self._encoder.encode(texts, convert_to_numpy=True, show_progress_bar=False)

    def _batches(self, items: Sequence[Any]) -> Iterator[list[Any]]:
        """As many at once as the database takes."""
        size = self._client.get_max_batch_size()
        for start in range(0, len(items), size):
            yield list(items[start : start + size])

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the index in {self.folder} cannot be used: {error}. If it is damaged, build it "
                "anew in another folder (--index)."
            ) from error


def read_entries(path: str | Path) -> list[Entry]:
    """Entries of a JSON file, or of every .txt and .md file below a folder.

    Raises:
        MissingFileError: no such path.
        DataError: rows that cannot be used, all of them in one message; or no entry at all.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"'{path}' does not exist: name a JSONL file or a folder of text.")
    entries = list(_paragraphs(path) if path.is_dir() else _rows(path))
    if not entries:
        raise DataError(f"{path} holds no entry: write at least one row or one paragraph.")
    return entries


def _rows(path: Path) -> Iterator[Entry]:
    problems = []
    for number, row in read_rows(path, on_bad=lambda n, text: problems.append((n, text))):
        problem = _row_problem(row)
        if problem:
            problems.append((number, f"{problem} found {sorted(row)}."))
            continue
        text = str(row["text"])
        yield Entry(str(row.get("id", _id_of(text))), text, str(row.get("clue", text)))
    if problems:
        word = row_word(path)
        lines = [f"{path} {word} {number}: {text}" for number, text in problems[:20]]
        raise DataError(f"{len(problems)} rows cannot be used:\n" + "\n".join(lines))


def _row_problem(row: dict[str, Any]) -> str:
    for name in ("text", "clue", "id"):
        value = row.get(name, "" if name == "text" else "x")
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            return f"'{name}' must be a text that is not empty;"
    return ""


def _paragraphs(folder: Path) -> Iterator[Entry]:
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".md"))
    for file in files:
        try:
            blocks = file.read_text(encoding="utf-8-sig").split("\n\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8."
            ) from error
        paragraphs = [block.strip() for block in blocks if block.strip()]
        for number, text in enumerate(paragraphs, 1):
            yield Entry(f"{file.relative_to(folder)}#{number}", text, text)


def _id_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _packages() -> tuple[Any, Any]:
    try:
        import chromadb
        import chromadb.errors
        import sentence_transformers
    except ImportError as error:
        package = (error.name or "chromadb").partition(".")[0].replace("_", "-")
        raise MissingExtraError(package, "rag", "The RAG example") from error
    return chromadb, sentence_transformers


def _fingerprint(encoder: Path) -> str:
    """Of the encoder's weights and vocabulary: what decides which distances come out."""
    weights = sorted(encoder.glob("*.safetensors")) or sorted(encoder.glob("pytorch_model*.bin"))
    if not weights:
        raise MissingFileError(
            f"'{encoder}' holds no sentence encoder (no weights in it). `make assets` fetches the "
            f"one in {ENCODER}; or give the folder of another with --encoder."
        )
    digest = hashlib.sha256()
    for file in [*weights, *sorted(encoder.glob("tokenizer.json"))]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _refuse_other(
    client: Any, name: str, marks: dict[str, str], folder: str | Path, encoder: str | Path
) -> None:
    if name not in [collection.name for collection in client.list_collections()]:
        return
    built_with = client.get_collection(name).metadata or {}
    if built_with.get("encoder") != marks["encoder"]:
        raise ConfigError(
            f"the index '{name}' in {folder} was built with another encoder than '{encoder}': "
            "distances between the two mean nothing. Name that encoder, or build a new index in "
            "another folder."
        )
    if built_with.get("layout") != marks["layout"]:
        raise ConfigError(
            f"the index '{name}' in {folder} was built by another version of this example: build a "
            "new index in another folder."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["add", "list", "delete"])
    parser.add_argument("what", nargs="*", help="files or folders to add, ids to delete")
    parser.add_argument("--index", default="rag_index", help="folder of the index")
    parser.add_argument("--encoder", default=ENCODER)
    arguments = parser.parse_args()
    index = Index(arguments.index, arguments.encoder)
    if arguments.command == "add":
        for path in arguments.what:
            added, replaced, unchanged = index.add(read_entries(path))
            print(f"{path}: {added} added, {replaced} replaced, {unchanged} unchanged")
    elif arguments.command == "delete":
        index.delete(arguments.what)
    else:
        for entry in index.entries():
            print(json.dumps(entry._asdict(), ensure_ascii=False))
    print(f"{arguments.index}: {len(index)} entries")


if __name__ == "__main__":
    main()
