"""A map that keeps its old versions: a version handed out never changes, the next one shares with it.

A version is a short stack of dicts, the newest and smallest first, each at least twice as
large as the one before it; a change is a small dict in front, and layers that come too close in size are
merged (the logarithmic method of Bentley and Saxe, "Decomposable searching problems I", 1980). A
change costs O(log n) amortised, a look-up at most log2(n) dict look-ups, opening a stored map nothing
beyond its dict. `docs/performance.md` has the measurement against the libraries with hash tries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Generic, TypeVar, cast, overload

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

_MOSTLY_GONE: Final = 3  # places for each item that is left: as many changes have paid for a merge of all layers


class _Gone:
    """The mark of a removed key in a layer that lies over another one."""


_GONE: Final = _Gone()
_Layer = dict[K, V | _Gone]


class PersistentMap(Mapping[K, V]):
    """One version of a map: read-only. Safe to read from many threads."""

    __slots__ = ("_holed", "_layers", "_size")

    def __init__(self, items: dict[K, V] | None = None) -> None:
        """Take `items` over: the caller must not change it afterwards."""
        self._holed = False  # whether some layer marks a key as gone
        self._layers: tuple[_Layer[K, V], ...] = (cast("_Layer[K, V]", items),) if items else ()
        self._size = len(items) if items else 0

    def __getitem__(self, key: K) -> V:
        value = self._find(key)
        if isinstance(value, _Gone):
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        return self._find(cast("K", key)) is not _GONE

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | D) -> V | D: ...
    def get(self, key: K, /, default: V | D | None = None) -> V | D | None:
        """Return the value of `key`, `default` if it is not there."""
        value = self._find(key)
        return default if isinstance(value, _Gone) else value

    def _find(self, key: K) -> V | _Gone:
        for layer in self._layers:
            if key in layer:
                return layer[key]
        return _GONE

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[K]:
        return iter(self.as_dict())

    @property
    def slots(self) -> int:
        """How many places its layers have: those of its items, of what these lie over, of what is gone."""
        return sum(map(len, self._layers))

    def as_dict(self) -> dict[K, V]:
        """Return the whole map as one dict, which must not be changed; this version keeps it."""
        layers = self._layers
        if not layers:
            return {}
        if len(layers) > 1:
            merged = layers[-1]
            for layer in reversed(layers[:-1]):
                merged = merged | layer
            # One assignment of an equal value: a reader in another thread sees the old or the new.
            self._layers = (_without_gone(merged) if self._holed else merged,)
        return cast("dict[K, V]", self._layers[0])

    def with_item(self, key: K, value: V) -> PersistentMap[K, V]:
        """Return the next version, with `key` set to `value`."""
        draft = MapDraft(self)
        draft[key] = value
        return draft.freeze()

    def without(self, key: K) -> PersistentMap[K, V]:
        """Return the next version, without `key`; `KeyError` if it is not there."""
        draft = MapDraft(self)
        del draft[key]
        return draft.freeze()

    def _stacked(self, top: _Layer[K, V], size: int, holed: bool) -> PersistentMap[K, V]:
        layers, holed = self._layers, holed or self._holed
        while layers and 2 * len(top) > len(layers[0]):
            top = layers[0] | top
            layers = layers[1:]
        if holed and len(top) + sum(map(len, layers)) > _MOSTLY_GONE * size:
            while layers:  # else all that was removed would be kept by the layers below
                top = layers[0] | top
                layers = layers[1:]
        if holed and not layers:
            top, holed = _without_gone(top), False
        version: PersistentMap[K, V] = PersistentMap()
        version._layers = (top, *layers) if top else layers
        version._size = size
        version._holed = holed
        return version


class MapDraft(Generic[K, V]):
    """The changes towards the next version of a map; it belongs to one thread."""

    __slots__ = ("_base", "_holed", "_layers", "_size", "_top")

    def __init__(self, base: PersistentMap[K, V]) -> None:
        self._base = base
        self._layers = base._layers
        self._top: _Layer[K, V] = {}
        self._size = len(base)
        self._holed = False

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: K) -> bool:
        return self._find(key) is not _GONE

    def get(self, key: K) -> V | None:
        """Return the value of `key`, None if it is not there."""
        value = self._find(key)
        found: V | None = None if value is _GONE else value
        return found

    def _find(self, key: K) -> Any:  # a value or `_GONE`; written out, since every decision comes by several times
        if key in self._top:
            return self._top[key]
        for layer in self._layers:
            if key in layer:
                return layer[key]
        return _GONE

    def __setitem__(self, key: K, value: V) -> None:
        if self._find(key) is _GONE:
            self._size += 1
        self._top[key] = value

    def put(self, key: K, value: V) -> V | None:
        """Set `key`; return what it was before, None if it was not there."""
        before = self._find(key)
        self._top[key] = value
        if before is _GONE:
            self._size += 1
            return None
        found: V = before
        return found

    def __delitem__(self, key: K) -> None:
        if self._find(key) is _GONE:
            raise KeyError(key)
        self._size -= 1
        self._top[key] = _GONE
        self._holed = True

    def freeze(self) -> PersistentMap[K, V]:
        """Return the next version; the draft must not be used afterwards."""
        if not self._top:
            return self._base
        return self._base._stacked(self._top, self._size, self._holed)


def _without_gone(layer: _Layer[K, V]) -> _Layer[K, V]:
    return {key: value for key, value in layer.items() if value is not _GONE}
