"""One headless Chromium for all checks of the site."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE_PACKAGES = ("playwright-core@1.65.1", "@axe-core/playwright@4.13.0")


@pytest.fixture(scope="session")
def browse() -> Callable[..., list[dict]]:
    """Run a script of this folder with headless Chromium; what it reports, a line each."""
    chromium, node, npm = _chromium(), shutil.which("node"), shutil.which("npm")
    if not (chromium and node and npm):
        pytest.skip("browser checks need Chromium, Node.js and npm: install them (Debian: chromium, nodejs, npm)")
    home = ROOT / "_build" / "node"
    if not (home / "node_modules" / "@axe-core").exists():
        home.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-save", "--ignore-scripts", "--silent", "--prefix", str(home), *NODE_PACKAGES]
        if subprocess.run(command, check=False).returncode:
            pytest.skip(f"browser checks need the npm packages {', '.join(NODE_PACKAGES)}: connect to npm once")

    def run(script: str, *arguments: Path | str) -> list[dict]:
        command = [node, str(Path(__file__).with_name(script)), chromium, *map(str, arguments)]
        environment = {**os.environ, "NODE_HOME": str(home)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
            try:
                subprocess.run(command, check=False, timeout=300, capture_output=True)
            except subprocess.TimeoutExpired:
                return None
        found = shutil.which("chromium")
    return found
