"""Make the environment, and say what happens while it does: `python tools/setup.py .venv`.

`--check` only looks for what has to be there first, and says how to get what is not; with `--site` it looks for what
the site needs, too. Needs Python alone.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOOR = (3, 11)
NODE = 20
QUIET = 15  # seconds after which a silent step says that it goes on
LARGE = 20  # megabytes
PACKAGE = re.compile(r"Collecting ([^=\s]+)==(\S+)|Processing \S*/([^/-]+)-([^-]+)-\S+\.whl|.*already satisfied: (\S+)")


def missing(site: bool, which: Callable[[str], str | None], python: tuple[int, ...], node: str) -> list[str]:
    """What is not there, a line each, with the way to get it.

    Args:
        site: the site will be built.
        which: where a program lies, or nothing.
        python: the version that runs this.
        node: what `node --version` says, such as "v20.11.1"; empty where it says nothing.
    """
    lines = []
    if python < FLOOR:
        wanted = ".".join(map(str, FLOOR))
        here = ".".join(map(str, python[:2]))
        lines.append(f"Python {wanted} or newer is needed, and this is {here}: get it from python.org or with your "
                     f"system's packages, then say `make book PYTHON=python{wanted}`")  # fmt: skip
    for program, packages in (("make", "make; on a Mac: xcode-select --install"), ("git", "git")):
        if not which(program):
            lines.append(f"{program} is needed: install it with your system's packages (Debian, Ubuntu: apt install "
                         f"{packages})")  # fmt: skip
    if site:
        found = re.match(r"v(\d+)", node)
        if not found or int(found[1]) < NODE or not which("npm"):
            here = f", and this is {node.strip()}" if found and int(found[1]) < NODE else ""
            lines.append(f"Node.js {NODE} or newer with npm is needed, for the site's browser files{here}: get it from "
                         "nodejs.org, or install it with your system's packages (apt install nodejs npm; on a Mac: "
                         "brew install node)")  # fmt: skip
    return lines


def check(site: bool) -> None:
    """Stop with one line for each thing that is missing."""
    fetched = (ROOT / "site_assets" / "vendor" / "STAMP").is_file()  # then Node.js has done its work
    node = ""
    if shutil.which("node"):
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    if lines := missing(site and not fetched, shutil.which, sys.version_info[:3], node):
        sys.exit("\n".join(lines))
    print(f"Python {sys.version.split()[0]}{f', Node.js {node.strip()}' if site and node else ''}: fine", flush=True)


def progress(line: str, number: int, total: int) -> str:
    """What to say on a line of pip's; empty for most.

    >>> progress("Collecting numpy==2.4.6 (from -r requirements.lock (line 78))", 12, 147)
    '  12 of 147: numpy 2.4.6'
    >>> progress("Processing /wheels/tqdm-4.70.1-py3-none-any.whl (from -r requirements.lock (line 2))", 1, 147)
    '  1 of 147: tqdm 4.70.1'
    >>> progress("  Downloading torch-2.13.0-cp311-none-any.whl (191.5 MB)", 12, 147)
    '          191.5 MB'
    >>> progress("  Downloading idna-3.20-py3-none-any.whl (70 kB)", 12, 147)
    ''
    """
    if found := PACKAGE.match(line):
        return f"  {number} of {total}: {' '.join(filter(None, found.groups()))}"
    size = re.match(r"\s+Downloading .+\((([\d.]+) (MB|GB))\)", line)
    if size and (size[3] == "GB" or float(size[2]) >= LARGE):
        return f"          {size[1]}"
    unpacked = number and line.startswith("Installing collected packages")
    return "  all are here; now they are unpacked" if unpacked else ""


def install(pip: list[str], total: int) -> None:
    """Run pip, with a line for each package and a sign of life in between; stop with its last lines if it fails."""
    work = subprocess.Popen([*pip, "--progress-bar=off"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last, heard, number = collections.deque(maxlen=12), [time.monotonic()], 0
    done = threading.Event()

    def alive() -> None:
        while not done.wait(1):
            if time.monotonic() - heard[0] > QUIET:
                heard[0] = time.monotonic()
                print("  ... still at it", flush=True)

    threading.Thread(target=alive, daemon=True).start()
    for line in work.stdout:
        last.append(line)
        number += bool(PACKAGE.match(line))
        if said := progress(line, number, total):
            heard[0] = time.monotonic()
            print(said, flush=True)
    done.set()
    if work.wait():
        sys.exit(f"{''.join(last)}pip could not install everything: see above; the same command tries again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".venv")
    parser.add_argument("--check", action="store_true", help="only look for what has to be there")
    parser.add_argument("--lean", action="store_true", help="leave out the pretrained teacher of chapter 11 (93 MB)")
    parser.add_argument("--site", action="store_true", help="look for what the site needs, too")
    options = parser.parse_args()
    check(options.site)
    if options.check:
        return
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    total = len(re.findall(r"^[^#\s]", lock, re.MULTILINE))
    print(f"making {options.folder}, and installing {total} packages into it: some minutes, once", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", options.folder], check=False)
    if made.returncode:
        sys.exit("Python's venv is missing: install it with your system's packages (Debian, Ubuntu: python3-venv)")
    scripts = options.folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    install([*pip, "-r", str(ROOT / "requirements.lock")], total)
    install([*pip, "--no-deps", "-e", str(ROOT)], total)
    if not options.lean:
        print("the pretrained teacher of chapter 11 (LEAN=1 leaves it out)", flush=True)
        install([*pip, "--no-deps", "--require-hashes", "-r", str(ROOT / "pretrained.lock")], 2)
    print("the environment is ready", flush=True)


if __name__ == "__main__":
    main()
