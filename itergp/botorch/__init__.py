"""Models of this package as BoTorch models: posteriors with t-batches, samples of observations, fantasies."""

from __future__ import annotations

try:
    import botorch as _botorch  # noqa: F401 - only to say what is missing
except ImportError as error:
    raise ImportError(
        "`itergp.botorch` needs BoTorch. It is not installed. Install it with `pip install itergp[botorch]`."
    ) from error

from itergp.botorch.base import LatentModel
from itergp.botorch.fantasy import FantasyModel
from itergp.botorch.model import BotorchModel
from itergp.botorch.response import ResponsePosterior

__all__ = ["BotorchModel", "FantasyModel", "LatentModel", "ResponsePosterior"]
