"""Forget packages whose installation was cut off, so that pip installs them again.

pip copies a package's files first and writes INSTALLER and the final RECORD last. A `*.dist-info` folder without them
belongs to an installation that was killed half-way, and pip would call it "already satisfied". Removing the
folder makes pip start over.
"""

import shutil
import sys
import sysconfig
from pathlib import Path


def half_installed(site: Path) -> list[Path]:
    """The ``*.dist-info`` folders of cut-off installations in the ``site-packages`` folder ``site``, and leftovers."""
    cut_off = [folder for folder in sorted(site.glob("*.dist-info")) if not _whole(folder)]
    return cut_off + sorted(site.glob("~*"))  # pip renames to ~ame while it replaces a package


def _whole(folder: Path) -> bool:
    record = folder / "RECORD"
    return (
        (folder / "INSTALLER").is_file()
        and record.is_file()
        and f"{folder.name}/INSTALLER" in record.read_text("utf-8")
    )


def main() -> int:
    for folder in half_installed(Path(sysconfig.get_paths()["purelib"])):
        print(f"cut off earlier, installed again: {folder.name}")
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
