"""The one door to pretrained weights, wherever they come from."""

import os
import shutil
from contextlib import suppress
from functools import cache as once
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256, fingerprint, folder_sha256, whole_folder
from stages.parts.run.params import AnyWeights, FolderWeights, HubWeights, PackageWeights
from stages.parts.run.paths import cache
from stages.parts.weights.gguf import dequantise
from stages.parts.weights.hub import snapshot
from stages.parts.weights.package import unpack_package


def fetch(weights: AnyWeights) -> Path:
    """Return a folder of safetensors, configuration and tokenizer: the user's own, or one in .cache/weights.

    What is there needs no network. GGUF is dequantised once. Raises UserError where weights can't be found, fetched
    or read, or have another hash than params.yaml names.
    """
    if isinstance(weights, FolderWeights):
        return own_folder(Path(weights.path).expanduser())
    kept = kept_folder(weights)
    if isinstance(weights, HubWeights):
        if Path(weights.repository).is_dir():
            raise UserError(
                f"{weights.repository} is a folder here, and weights.source is hub: write "
                f"{{source: folder, path: {weights.repository}}}"
            )
        done = kept.with_suffix(".complete")  # the hub's own resuming needs the folder in place from the start
        if not done.exists():
            snapshot(weights.repository, weights.revision, kept)
            done.touch()
        return kept
    if not kept.is_dir():
        with whole_folder(kept) as draft:
            draft.mkdir(parents=True)
            unpack_package(weights, draft)
            if packed := gguf_of(draft):
                # The draft takes its place with the plain weights only: the packed ones are used once.
                with TemporaryDirectory(dir=draft.parent) as scratch:
                    file = packed.rename(Path(scratch) / packed.name)
                    dequantise(file, draft)
            check_weights(draft)
    return kept


def kept_folder(weights: HubWeights | PackageWeights) -> Path:
    """Return where fetched weights are kept."""
    return cache() / "weights" / fingerprint(weights.model_dump_json(exclude={"origin", "license"}))


def is_fetched(weights: AnyWeights) -> bool:
    """Return whether `fetch` needs no network."""
    if isinstance(weights, FolderWeights):
        return True
    kept = kept_folder(weights)
    return kept.with_suffix(".complete").exists() if isinstance(weights, HubWeights) else kept.is_dir()


def own_folder(path: Path) -> Path:
    """Return the user's folder, or the one in .cache/weights that its GGUF file was dequantised into."""
    if path.is_dir() and any(path.glob("*.safetensors")):
        check_weights(path)
        return path
    packed = path if path.suffix == ".gguf" and path.is_file() else gguf_of(path) if path.is_dir() else None
    if not packed:
        raise UserError(f"{path} is no folder with *.safetensors and config.json, and no GGUF file: mend weights.path")
    plain = cache() / "weights" / file_sha256(packed)[:16]
    if not plain.is_dir():
        with whole_folder(plain) as draft:
            draft.mkdir(parents=True)
            dequantise(packed, draft)
    return plain


def gguf_of(folder: Path) -> Path | None:
    """Return the folder's GGUF file, None where it has safetensors or no GGUF; raises UserError for several."""
    found = sorted(folder.glob("*.gguf"))
    if any(folder.glob("*.safetensors")) or not found:
        return None
    if len(found) > 1:
        raise UserError(f"{folder} holds {len(found)} GGUF files: name one of them ({found[0]}) as weights.path")
    return found[0]


def check_weights(folder: Path) -> None:
    """Raise UserError where a folder is no model: transformers' own error would be a page about the hub."""
    if not any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no *.safetensors with a config.json: these are no weights that can be used")


def revision(weights: AnyWeights) -> str:
    """Return what names the weights' contents: the hub's commit, the package file's sha256, or the folder's."""
    if isinstance(weights, HubWeights):
        return weights.revision
    return weights.sha256 if isinstance(weights, PackageWeights) else folder_revision(fetch(weights))


@once
def folder_revision(folder: Path) -> str:
    return folder_sha256(folder)


def place(weights: AnyWeights, to: Path) -> None:
    """Put the weights into a stage's output folder: safetensors as hard links where the file system has them."""
    source = fetch(weights)
    with whole_folder(to) as draft:
        for file in sorted(file for file in source.rglob("*") if file.is_file()):
            relative = file.relative_to(source)
            if relative.parts[0] == ".cache":  # the hub's notes on its download: hashes would change with them
                continue
            target = draft / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            # Small files may be rewritten in place, and a user's files stay the user's alone.
            if file.suffix == ".safetensors" and not isinstance(weights, FolderWeights):
                with suppress(OSError):  # another file system
                    os.link(file, target)
            if not target.exists():
                shutil.copy(file, target)
