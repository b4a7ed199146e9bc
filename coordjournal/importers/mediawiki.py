"""A wiki's redirects as aliases, from the dumps that Wikimedia publishes of its tables.

The tables are MediaWiki's: https://www.mediawiki.org/wiki/Manual:Redirect_table and
https://www.mediawiki.org/wiki/Manual:Page_table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from coordjournal.entry import check_actor, check_space, check_time, format_time
from coordjournal.errors import CoordJournalError, InvalidEvent, InvalidName, KeyReused, NotFound
from coordjournal.events import AliasSet
from coordjournal.importers.report import Asked, Imported, Item, Reject
from coordjournal.importers.run import Import
from coordjournal.importers.sqldump import Value, read_rows
from coordjournal.log import DecisionLog

_REDIRECT: Final = ("rd_from", "rd_namespace", "rd_title", "rd_interwiki")
_PAGE: Final = ("page_id", "page_namespace", "page_title")

_MANY: Final = 10  # redirects without a page; fewer may be missing from a small wiki by chance

_Name = str | CoordJournalError
"""A name as the journal has it, or why a row gives none."""


class _Redirect(NamedTuple):
    page: int
    target: _Name


def import_redirects(
    log: DecisionLog,
    space: str,
    redirect: Path,
    page: Path,
    *,
    rejects: Callable[[Reject], None],
    progress: Callable[[int], None],
    dry_run: bool,
    actor: str,
    at: str | None = None,
) -> Imported:
    """Append to `space` the redirects of a wiki, from the dumps of its tables `redirect` and `page`.

    Each is one append of `alias.set` from the page's title to the redirect's target, by `actor`, decided
    `at` (now, if not given: the dump does not say), in the order of the page ids (`rd_from`), under the
    key `import:<SPACE>:<rd_from>`. Titles have spaces for underscores, `N:` before them for a namespace
    of number N other than 0, and `prefix:` before that for another wiki.

    Both dumps are read to their ends before the first append. What is skipped is told to `rejects`, in
    that order too, and `progress` how many appends are decided. Nothing is appended if `dry_run`, and
    all else is the same. `docs/import.md` has every corner.

    Raises `InvalidName` if `space` or `actor` is none, `NotFound` and `InvalidEvent` if a dump is not
    there, cut off, or not one of that table, or if most redirects have no page in the other dump; what
    `DecisionLog.append` and `DecisionLog.state` do but refusals: run again, the import then goes on where
    it was.
    """
    check_space(space)
    check_actor(actor)
    at = format_time(datetime.now(UTC)) if at is None else at
    check_time(at)
    redirects = _redirects(redirect)
    titles = _titles(page, {found.page for found in redirects})
    _check_together({found.page for found in redirects}, titles, redirect, page)

    def items() -> Iterator[Item]:
        return _items(space, redirects, titles, actor, at)

    return Import(log, space, dry_run=dry_run).carry_out(items, rejects=rejects, progress=progress)


def _items(space: str, redirects: list[_Redirect], titles: dict[int, _Name], actor: str, at: str) -> Iterator[Item]:
    """Yield an append for each redirect, in order, or why there can be none."""
    before: _Redirect | None = None
    bearers: dict[str, int] = {}
    for redirect in redirects:
        place, key = f"rd_from {redirect.page}", f"import:{space}:{redirect.page}"
        alias, target = titles.get(redirect.page) or NotFound(f"no page has the id {redirect.page}"), redirect.target
        if before and before.page == redirect.page:
            alias = KeyReused(f"the page {redirect.page} has another row in the dump, which counts")
        elif isinstance(alias, str) and (bearer := bearers.setdefault(alias, redirect.page)) != redirect.page:
            alias = InvalidName(f"the redirect of page {bearer} is written {alias!a} too, and counts")
        if isinstance(alias, str) and isinstance(target, str):
            yield Asked((AliasSet(alias, target),), key, actor, at, places=(place,))
        else:
            refusal = target if isinstance(alias, str) else alias
            assert isinstance(refusal, CoordJournalError)
            yield Reject(place, key, str(refusal), refusal.code)
        before = redirect


def _redirects(path: Path) -> list[_Redirect]:
    """Return the redirects by page id; rows of one id stay in the dump's order."""
    redirects = []
    for number, (page, namespace, title, prefix) in enumerate(read_rows(path, "redirect", _REDIRECT), 1):
        redirects.append(_Redirect(_id(page, "rd_from", path, number), _name(namespace, title, prefix)))
    redirects.sort(key=lambda redirect: redirect.page)
    return redirects


def _titles(path: Path, wanted: set[int]) -> dict[int, _Name]:
    """Return the names of the pages whose ids are `wanted`; the other rows are read and not kept."""
    titles: dict[int, _Name] = {}
    for number, (page, namespace, title) in enumerate(read_rows(path, "page", _PAGE), 1):
        if (found := _id(page, "page_id", path, number)) in wanted:
            name = _name(namespace, title)
            titles[found] = InvalidEvent(f"two pages have the id {found}") if found in titles else name
    return titles


def _check_together(pages: set[int], titles: dict[int, _Name], redirect: Path, page: Path) -> None:
    """Refuse dumps of two wikis: the ids of one are other pages' in the other, and most are none's."""
    missing = len(pages - titles.keys())
    if missing >= _MANY and 2 * missing > len(pages):
        raise InvalidEvent(
            f"the dumps do not belong together: of {len(pages):,} pages that redirect by {redirect}, "
            f"{missing:,} are not in {page}; take both of the same wiki and day"
        )


def _id(value: Value, column: str, path: Path, row: int) -> int:
    if not isinstance(value, int):
        raise InvalidEvent(f"{path}: row {row}: {column} is {value!a:.60}, which is no page's id")
    return value


def _name(namespace: Value, title: Value, prefix: Value = None) -> _Name:
    """Return the name that a row writes; whether it is a legal one is the journal's to judge."""
    if not isinstance(namespace, int) or not isinstance(title, bytes) or not isinstance(prefix, bytes | None):
        return InvalidEvent("the namespace is no number, or the title or the interwiki prefix no text")
    if not title and not prefix:
        return InvalidName("the title is empty")
    try:
        name = title.decode().replace("_", " ")
        if namespace:
            name = f"{namespace}:{name}"
        return f"{prefix.decode()}:{name}" if prefix else name
    except UnicodeDecodeError as error:
        return InvalidName(f"{error.object[:60]!a} is not UTF-8, from its byte {error.start + 1} on")
