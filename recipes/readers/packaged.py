"""Data that lies in installed packages, found by their metadata, so that no package is imported."""

import dataclasses
import importlib.metadata
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """A file, or a folder, in an installed package."""

    path: Path
    package: str
    version: str
    licence: str
    """As the package's metadata name it."""

    def __str__(self) -> str:
        """Returns package, version and licence in a few words."""
        return f"{self.package} {self.version} ({self.licence})"


def find(package: str, name: str) -> PackagedFile | None:
    """Returns a file of a package; `None` if the package is not installed or has no such file.

    Args:
        package: as `pip install` calls it.
        name: path of the file from where packages are installed, with slashes.
    """
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(found.locate_file(name)))
    return PackagedFile(path, package, found.version, _licence(found)) if path.exists() else None


def _licence(found: importlib.metadata.Distribution) -> str:
    """Returns the licence in the metadata, which have had three places for it."""
    metadata = found.metadata
    for key in ("License-Expression", "License"):
        text = "".join(metadata.get_all(key) or []).strip()
        if text not in ("", "UNKNOWN") and "\n" not in text:  # some packages put all of the licence there
            return text
    classifiers = [text for text in metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    return classifiers[0].rpartition(" :: ")[2] if classifiers else "no licence stated"
