"""Real texts of mixed length: WordNet's glosses, and paragraphs of English and German manual pages.

They come from Debian's packages, which are downloaded and unpacked into build/: no root, nothing is installed.
`python -m tests.bench.corpus 5000` tells how long the texts are.
"""

import functools
import gzip
import itertools
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.bench.results import CACHE

PACKAGES = ("wordnet-base", "manpages", "manpages-de")
SHORTEST, LONGEST = 25, 5_000
"""Characters: what is shorter is a heading or a file's name, what is longer a list without paragraphs."""
SEED = 1
REMEDY = (
    "the texts come from the Debian packages wordnet-base, manpages and manpages-de: run this where `apt-get download` "
    "works (Debian, Ubuntu, their containers; after `apt-get update`), or put the three .deb files into "
    f"{CACHE / 'debian'}"
)


@functools.cache
def corpus(rows: int) -> tuple[str, ...]:
    """So many distinct texts, always the same: half of them glosses, a quarter English, a quarter German paragraphs.

    A shorter corpus is the beginning of a longer one; where the paragraphs end, glosses go on.
    """
    glosses, english, german = (_shuffled(texts) for texts in _texts())
    mixed = itertools.chain.from_iterable(itertools.zip_longest(glosses[::2], english, glosses[1::2], german))
    texts = tuple(itertools.islice((text for text in mixed if text is not None), rows))
    if len(texts) < rows:
        raise SystemExit(f"there are {len(texts)} texts, not {rows}")
    return texts


def describe(texts: Sequence[str]) -> dict[str, float]:
    """Lengths in characters: the mean and quantiles."""
    lengths = [len(text) for text in texts]
    quantiles = np.quantile(lengths, [0.1, 0.5, 0.9, 0.99, 1])
    return {"mean": float(np.mean(lengths))} | dict(
        zip(("p10", "median", "p90", "p99", "longest"), map(float, quantiles), strict=True)
    )


def _shuffled(texts: Iterator[str]) -> list[str]:
    """Each text once, in an order that is random and always the same."""
    distinct = sorted(set(texts))
    random.Random(SEED).shuffle(distinct)
    return distinct


def _texts() -> tuple[Iterator[str], Iterator[str], Iterator[str]]:
    """Glosses, English and German paragraphs."""
    share = _unpacked() / "usr" / "share"
    german = share / "man" / "de"
    return _glosses(share / "wordnet"), _paragraphs(share / "man"), _paragraphs(german)


def _unpacked() -> Path:
    """The folder that holds the packages' files."""
    folder = CACHE / "debian"
    complete = folder / "files"
    if complete.exists():
        return complete
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SystemExit(REMEDY)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PACKAGES if not any(folder.glob(f"{name}_*.deb"))]
    if missing:
        _run(folder, "apt-get", "download", *missing)
    draft = folder / "files.new"
    for name in PACKAGES:
        _run(folder, "dpkg-deb", "-x", str(next(folder.glob(f"{name}_*.deb"))), draft.name)
    return draft.rename(complete)


def _run(folder: Path, *command: str) -> None:
    result = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {result.stderr.strip()}\n{REMEDY}")


def _glosses(folder: Path) -> Iterator[str]:
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            gloss = line.partition(" | ")[2].strip()
            if len(gloss) >= SHORTEST:
                yield gloss


def _paragraphs(folder: Path) -> Iterator[str]:
    """The paragraphs of the manual pages of one language."""
    for path in sorted(folder.glob("man[1-8]/*.gz")):
        if path.is_file():
            page = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
            yield from filter(_is_prose, _paragraphs_of_page(page))


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return SHORTEST <= len(paragraph) <= LONGEST and letters > 0.85 * len(paragraph)


_FONT = re.compile(r"^\.(?:B|I|SM|SB|BR|RB|IR|RI|BI|IB)\s+(.*)$")
_BREAK = re.compile(r"^[.'] *(?:PP?|LP|TP|TQ|IP|HP|SH|SS|RS|RE|sp|nf|fi|EX|EE|TS|TE|UE|TH)\b")
_VERBATIM = {".nf": ".fi", ".EX": ".EE", ".TS": ".TE"}
_ESCAPES = (
    (re.compile(r'\\".*$'), ""),
    (re.compile(r"\\f(?:\[\w*\]|\(..|.)"), ""),
    (re.compile(r"\\(?:s[-+]?\d|m\[\w*\]|[ud])"), ""),
    (re.compile(r"\\[(\[](?:aq|cq|oq)\]?"), "'"),
    (re.compile(r"\\(?:\*\(|\*\[|\(|\[)(?:lq|rq|dq|Bq|Fo|Fc|bq)\]?"), '"'),
    (re.compile(r"\\\((?:em|en)"), "–"),
    (re.compile(r"\\\[[^]]*\]|\\\(..|\\\*.|\\[&%:,/|^c]"), ""),
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\e"), r"\\"),
    (re.compile(r"\\(.)"), r"\1"),
)


def _paragraphs_of_page(page: str) -> Iterator[str]:
    """The running text of a page in the man macros, without tables and examples."""
    lines: list[str] = []
    end: str | None = None
    for line in page.splitlines():
        if end:
            end = None if line.startswith(end) else end
        elif line.startswith((".", "'")) and not _FONT.match(line):
            if _BREAK.match(line) and lines:
                yield " ".join(lines)
                lines = []
            end = _VERBATIM.get(line[:3])
        elif text := _plain(line):
            lines.append(text)
    if lines:
        yield " ".join(lines)


def _plain(line: str) -> str:
    """A line without its markup."""
    font = _FONT.match(line)
    if font:
        words = font[1].replace('"', "")
        line = words if line[2] == " " else words.replace("\\ ", "\0").replace(" ", "").replace("\0", " ")
    for pattern, replacement in _ESCAPES:
        line = pattern.sub(replacement, line)
    return " ".join(line.split())


if __name__ == "__main__":
    chosen = corpus(int(sys.argv[1]))
    print(describe(chosen), *chosen[:12], sep="\n")  # noqa: T201 - what it is for
