"""What each route needs of a request, as the routes declare it, for the gate in front of them."""

import re
from collections.abc import Iterable

from fastapi import APIRouter

from ..principal import Need
from .operation import declared


class RouteNeeds:
    """Finds the route of a request.

    Args:
        routers: all of the application's, in their order.

    Raises:
        ValueError: a route declares nothing; the application is not to start then.
    """

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._fixed: dict[tuple[str, str], Need] = {}
        self._patterns: list[tuple[re.Pattern[str], frozenset[str], Need]] = []
        for route, operation in declared(routers):
            methods = frozenset(route.methods or ())
            if route.param_convertors:
                self._patterns.append((route.path_regex, methods, operation.needs))
            else:
                self._fixed |= {(method, route.path): operation.needs for method in methods}

    def of(self, method: str, path: str) -> Need:
        """What a request needs; where there is no route, a key, so that strangers do not learn which there are."""
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return fixed
        for pattern, methods, need in self._patterns:
            if method in methods and pattern.match(path):
                return need
        return "key"
