"""Filters of the view by group of failures, one after the other."""

from __future__ import annotations

from orchestrator.api.overview import Overview

Only = tuple[str, ...]


class FailureFilters:
    """Goes through the groups of failures that the filter of before shows, and then back to that filter."""

    def __init__(self) -> None:
        self._before: Only = ()
        self._groups: list[str] = []

    def after(self, found: Overview) -> Only:
        """Return the selectors that show the next group.

        Args:
            found: what is shown now.
        """
        filters = self._filters()
        if found.only in filters:
            number = filters.index(found.only) + 1
        else:
            number, self._before = 0, found.only
            self._groups = [each.selector for each in found.troubles]
            filters = self._filters()
        return [*filters, self._before][number]

    def _filters(self) -> list[Only]:
        # Words of one selector must all hold, and one of several selectors.
        return [tuple(f"{word} {group}" for word in self._before) or (group,) for group in self._groups]
