"""Real documents of three kinds, cut to one length and split by work: half for choosing, half for reporting."""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LICENCES = Path("/usr/share/common-licenses")
# Versions of one licence share most of their text: a family lies in one half.
CHOOSING = ("GPL-1", "GPL-2", "GPL-3", "LGPL-2", "LGPL-3")
REPORTING = ("Apache-2.0", "Artistic", "GFDL-1.2", "MPL-1.1", "MPL-2.0")
_WIKI = re.compile(r"<title>(?P<title>.*?)</title>.*?<text[^>]*>(?P<text>.*?)</text>", re.DOTALL)


class Document(NamedTuple):
    """Token numbers of one excerpt, with the work it is from."""

    kind: str
    work: str
    tokens: list[int]


def documents(
    tokenizer: Any, length: int, books: Path | None, wiki: Path | None
) -> tuple[list[Document], list[Document]]:
    """Return (choosing, reporting): no work is in both halves."""
    halves: tuple[list[Document], list[Document]] = ([], [])
    for half, names in zip(halves, (CHOOSING, REPORTING), strict=True):
        half += _excerpts(tokenizer, length, "licence", ((name, (LICENCES / name).read_text()) for name in names))
    for kind, works in (("book", _books(books)), ("article", _articles(wiki))):
        for i, document in enumerate(_excerpts(tokenizer, length, kind, works)):
            halves[i % 2].append(document)
    return halves


def _excerpts(tokenizer: Any, length: int, kind: str, works: Iterator[tuple[str, str]]) -> Iterator[Document]:
    """Yield one excerpt a work, from where the text has come under way, and leave out works that are too short."""
    for name, text in works:
        start = text.find(" ", len(text) // 4)
        inner = tokenizer(text[start : start + 12 * length], add_special_tokens=False)["input_ids"][: length - 2]
        if len(inner) == length - 2:
            yield Document(kind, name, [tokenizer.cls_token_id, *inner, tokenizer.sep_token_id])


def _books(folder: Path | None) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*_gut.txt")) if folder else ():
        yield path.stem, path.read_text(encoding="utf-8", errors="strict")


def _articles(path: Path | None) -> Iterator[tuple[str, str]]:
    if path is None:
        return
    with bz2.open(path, "rt", encoding="utf-8") as file:
        for match in _WIKI.finditer(file.read()):
            text = plain(html.unescape(match["text"]))
            if len(text) > 8000:  # redirects and stubs are no documents
                yield match["title"], text


def plain(markup: str) -> str:
    """Strip wiki markup: templates, tables, references, pictures, and the brackets of links, from the inside out."""
    text = re.sub(r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|\{\|.*?\|\}", " ", markup, flags=re.DOTALL)
    before = None
    while text != before:
        before = text
        text = re.sub(r"\{\{[^{}]*\}\}|\[\[(?:File|Image):[^\[\]]*\]\]", " ", text)
        text = re.sub(r"\[\[(?!File:|Image:)(?:[^|\[\]]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+\s*([^\]]*)\]", r"\1", text)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>|'{2,}|={2,}", " ", text)).strip()
