"""A searchable index of clues: chromadb on disk, cosine distance, a sentence encoder from a folder.

    python examples/rag/index.py add examples/rag/policies.jsonl     # or a folder of .txt and .md
    python examples/rag/index.py list
    python examples/rag/index.py delete returns-1

A JSONL row is {"id": ..., "text": what a question is compared with, "clue": what the model is
told}; `clue` defaults to `text`, `id` to a number made of the text. Of a folder every paragraph is
an entry. Adding an id again replaces its entry; nothing is ever twice in the index.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from main.errors import ConfigError, DataError, MissingExtraError, MissingFileError
from main.loaders import read_rows, row_word

ENCODER = "models/all-MiniLM-L6-v2"


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
        ConfigError: the index was built with another encoder: its distances would mean nothing.
    """

    def __init__(self, folder: str | Path, encoder: str | Path = ENCODER, name: str = "knowledge"):
        chromadb, functions = _chromadb()
        fingerprint = _fingerprint(Path(encoder))
        settings = chromadb.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(folder), settings=settings)
        _refuse_other_encoder(client, name, fingerprint, folder, encoder)
        self._collection = client.get_or_create_collection(
            name,
            embedding_function=functions.SentenceTransformerEmbeddingFunction(str(encoder)),
            metadata={"hnsw:space": "cosine", "encoder": fingerprint},
        )

    def __len__(self) -> int:
        return self._collection.count()

    def add(self, entries: Sequence[Entry]) -> Changes:
        """Add or replace by id; of several entries with one id the last counts."""
        wanted = {entry.id: entry for entry in entries}
        known = {entry.id: entry for entry in self._get(list(wanted))}
        new = [entry for entry in wanted.values() if known.get(entry.id) != entry]
        if new:
            self._collection.upsert(
                ids=[entry.id for entry in new],
                documents=[entry.text for entry in new],
                metadatas=[{"clue": entry.clue} for entry in new],
            )
        replaced = sum(entry.id in known for entry in new)
        return Changes(len(new) - replaced, replaced, len(wanted) - len(new))

    def delete(self, ids: Sequence[str]) -> None:
        """Raises ConfigError when an id is not in the index; then nothing is deleted."""
        known = {entry.id for entry in self._get(list(ids))}
        missing = [one for one in ids if one not in known]
        if missing:
            raise ConfigError(f"not in the index: {missing}. `list` shows the ids that are.")
        self._collection.delete(ids=list(ids))

    def find(self, question: str, threshold: float = 0.1) -> Hit | None:
        """The nearest entry closer than `threshold`; None when none is, or the index is empty."""
        if not len(self):
            return None
        found = self._collection.query(query_texts=[question], n_results=1)
        hit = Hit(found["ids"][0][0], found["metadatas"][0][0]["clue"], found["distances"][0][0])
        return hit if hit.distance < threshold else None

    def entries(self) -> list[Entry]:
        """All of them, by id."""
        return sorted(self._get(None))

    def _get(self, ids: list[str] | None) -> list[Entry]:
        if ids is not None and not ids:
            return []
        found = self._collection.get(ids=ids, include=["documents", "metadatas"])
        columns = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        return [Entry(one, text, metadata["clue"]) for one, text, metadata in columns]


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
        wrong = [
            name for name in ("text", "clue", "id") if not isinstance(row.get(name, ""), str | int)
        ]
        if wrong or not str(row.get("text", "")).strip():
            found = f"found {sorted(row)}"
            problems.append((number, f"'{(wrong or ['text'])[0]}' must be a text; {found}."))
            continue
        text = str(row["text"])
        yield Entry(str(row.get("id", _id_of(text))), text, str(row.get("clue", text)))
    if problems:
        word = row_word(path)
        lines = [f"{path} {word} {number}: {text}" for number, text in problems[:20]]
        raise DataError(f"{len(problems)} rows cannot be used:\n" + "\n".join(lines))


def _paragraphs(folder: Path) -> Iterator[Entry]:
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".md"))
    for file in files:
        blocks = file.read_text(encoding="utf-8-sig").split("\n\n")
        paragraphs = [block.strip() for block in blocks if block.strip()]
        for number, text in enumerate(paragraphs, 1):
            yield Entry(f"{file.relative_to(folder)}#{number}", text, text)


def _id_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _chromadb() -> tuple[Any, Any]:
    try:
        import chromadb
        import sentence_transformers  # noqa: F401  (the embedding function needs it)
        from chromadb.utils import embedding_functions
    except ImportError as error:
        package = (error.name or "chromadb").partition(".")[0].replace("_", "-")
        raise MissingExtraError(package, "rag", "The RAG example") from error
    return chromadb, embedding_functions


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


def _refuse_other_encoder(
    client: Any, name: str, fingerprint: str, folder: str | Path, encoder: str | Path
) -> None:
    if name not in [collection.name for collection in client.list_collections()]:
        return
    built_with = (client.get_collection(name).metadata or {}).get("encoder")
    if built_with != fingerprint:
        raise ConfigError(
            f"the index '{name}' in {folder} was built with another encoder than '{encoder}': "
            "distances between the two mean nothing. Name that encoder, or build a new index in "
            "another folder."
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
