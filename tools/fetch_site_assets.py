"""Fetch the third-party browser files of the site into `site_assets/vendor/`, so that it works offline.

Usage: `python tools/fetch_site_assets.py`. Does nothing when all of them are there already.

MathJax comes from npm at a pinned version and hash. Nothing is half done: the files are gathered in a temporary folder
that then takes the place of the old one.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENDOR = ROOT / "site_assets" / "vendor"
HINT = "install Node.js 20+ (npm), or copy site_assets/vendor from another checkout"


class FetchError(Exception):
    """The files cannot be had; the message says why and what to do."""


@dataclass(frozen=True)
class Package:
    """What to take out of one npm tarball.

    Args:
        name: as npm knows it, with its version.
        sha512: of the tarball, base64, as in `npm view NAME@VERSION dist.integrity`.
        folder: where the files go, under `site_assets/vendor`.
        strip: the start of the paths in the tarball that is left out.
        files: patterns for the rest of the paths.
    """

    name: str
    sha512: str
    folder: str
    strip: str
    files: tuple[str, ...]

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives it."""
        return self.name.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"


PACKAGES = (
    Package(
        "mathjax@3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
        folder="mathjax",
        strip="package/es5/",
        files=("tex-mml-chtml.js", "output/chtml/fonts/woff-v2/*", "input/tex/extensions/*"),
    ),
)


def main() -> int:
    """Fetch what is missing; the exit status."""
    try:
        stamp = "".join(f"{p.name} {p.sha512}\n" for p in PACKAGES)
        if _read(VENDOR / "STAMP") == stamp:
            return 0
        (ROOT / "_build").mkdir(exist_ok=True)  # on the same disk as the goal, and ignored by git
        with tempfile.TemporaryDirectory(dir=ROOT / "_build", prefix="vendor-") as scratch:
            new = Path(scratch) / "vendor"
            _npm_pack([p.name for p in PACKAGES], Path(scratch))
            for package in PACKAGES:
                _unpack(package, Path(scratch) / package.tarball, new)
            (new / "STAMP").write_text(stamp, encoding="utf-8")
            if VENDOR.exists():
                VENDOR.rename(Path(scratch) / "old")
            new.rename(VENDOR)
    except FetchError as error:
        print(f"fetch_site_assets: {error}", file=sys.stderr)
        return 1
    print(f"fetched {', '.join(p.name for p in PACKAGES)} into {VENDOR.relative_to(ROOT)}")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _npm_pack(names: list[str], folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(f"npm is not on the PATH: {HINT}")
    command = [npm, "pack", "--loglevel=error", "--prefer-offline", "--fetch-retries=1", *names]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"npm did not answer within 300 s: {HINT}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "npm error" in line.lower()] or [
            f"exit status {done.returncode}"
        ]
        raise FetchError(f"npm cannot fetch {' '.join(names)} ({lines[0].strip()}): {HINT}")


def _unpack(package: Package, tarball: Path, vendor: Path) -> None:
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise FetchError(
            f"{package.name} is not the file pinned here (sha512 {found}): do not use it; check PACKAGES in this script"
        )
    taken = set()
    with tarfile.open(tarball) as tar:
        for member in tar.getmembers():
            path = member.name.removeprefix(package.strip)
            patterns = [p for p in package.files if fnmatch(path, p)]
            if member.isfile() and member.name.startswith(package.strip) and patterns and ".." not in Path(path).parts:
                taken.update(patterns)
                target = vendor / package.folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    if missing := sorted(set(package.files) - taken):
        raise FetchError(f"{package.name} has no {', '.join(missing)}: check PACKAGES in this script")


if __name__ == "__main__":
    sys.exit(main())
