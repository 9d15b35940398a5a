"""What tokens cost, for CLIs that do not say: a table of data, `prices.json`, and one of the user's over it.

A model that is not in the table has no known cost: nobody guesses.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from executor_service.errors import StartError
from executor_service.harness.cli.events import Tokens

_SHIPPED: Final = Path(__file__).with_name("prices.json")
_MILLION: Final = 1e6
_DATE: Final = re.compile(r"-(?:\d{8}|\d{4}-\d{2}-\d{2}|latest)$")


@dataclass(frozen=True, slots=True)
class _Rate:
    """US dollars per million tokens."""

    input: float
    output: float
    cached: float
    cache_write: float


class Prices:
    """The price of a model's tokens."""

    def __init__(self, rates: Mapping[str, _Rate]) -> None:
        self._rates = rates

    def cost(self, model: str, tokens: Tokens) -> float | None:
        """US dollars; None when the model has no known price."""
        rate = self._rates.get(model) or self._rates.get(_DATE.sub("", model))
        if rate is None:
            return None
        plain = max(0.0, tokens.input - tokens.cached - tokens.cache_write)
        dollars = plain * rate.input + tokens.cached * rate.cached + tokens.cache_write * rate.cache_write
        return (dollars + tokens.output * rate.output) / _MILLION


def load_prices(path: str) -> Prices:
    """The shipped table with the one of the user over it. Raises StartError that names the file and the entry."""
    rates = _read(_SHIPPED)
    if path:
        rates |= _read(Path(path))
    return Prices(rates)


def _read(path: Path) -> dict[str, _Rate]:
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StartError(f"the price table {str(path)!r} cannot be read: {error}") from error
    models = table.get("models") if isinstance(table, dict) else None
    if not isinstance(models, dict):
        raise StartError(f"the price table {str(path)!r} has no object `models`: name to four prices")
    return {name: _rate(name, prices, path) for name, prices in models.items()}


def _rate(name: str, prices: Any, path: Path) -> _Rate:
    fits = isinstance(prices, list) and len(prices) == 4
    if not fits or any(isinstance(price, bool) or not isinstance(price, (int, float)) or price < 0 for price in prices):
        raise StartError(
            f"the price table {str(path)!r} has no prices for {name!r}: expected four numbers, US dollars per million "
            "tokens of input, output, cached input and input written to the cache"
        )
    return _Rate(*map(float, prices))
