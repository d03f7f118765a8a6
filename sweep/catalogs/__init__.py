"""Catalog files as checked, frozen values with provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.catalogs.evidence_settings import EvidenceSetting
    from sweep.catalogs.hardware import Gpu
    from sweep.catalogs.models import Model
    from sweep.catalogs.offers import Offer
    from sweep.catalogs.rates import Rate
    from sweep.catalogs.stacks import StackBook
    from sweep.errors import Problem


@dataclass(frozen=True)
class PriceCatalogs:
    """What new prices of a finished run need: the catalogs without models and evidence."""

    folders: tuple[Path, ...]
    gpus: dict[str, Gpu]
    offers: list[Offer]
    rates: list[Rate]
    stacks: StackBook


@dataclass(frozen=True)
class Catalogs(PriceCatalogs):
    """The shipped catalogs with the user's folders laid over them."""

    models: dict[str, Model]
    evidence_settings: tuple[EvidenceSetting, ...]


def load_catalogs(user_folders: Sequence[Path] = ()) -> Catalogs:
    """Load every catalog a plan needs; raises one CatalogError naming all problems."""
    from sweep.catalogs.evidence_settings import load_evidence_settings
    from sweep.catalogs.folder import catalog_folders
    from sweep.catalogs.models import load_models
    from sweep.catalogs.tables import raise_if

    folders = catalog_folders(user_folders)
    models, problems = load_models(folders)
    prices, more = _price_catalogs(folders)
    settings, still_more = load_evidence_settings(folders)
    raise_if([*problems, *more, *still_more])
    return Catalogs(**vars(prices), models=models, evidence_settings=settings)


def load_price_catalogs(user_folders: Sequence[Path] = ()) -> PriceCatalogs:
    """Load what prices need alone; raises one CatalogError naming all problems."""
    from sweep.catalogs.folder import catalog_folders
    from sweep.catalogs.tables import raise_if

    prices, problems = _price_catalogs(catalog_folders(user_folders))
    raise_if(problems)
    return prices


def _price_catalogs(folders: tuple[Path, ...]) -> tuple[PriceCatalogs, list[Problem]]:
    from sweep.catalogs.hardware import load_gpus
    from sweep.catalogs.offers import load_offers
    from sweep.catalogs.rates import load_rates
    from sweep.catalogs.stacks import load_stacks

    gpus, problems = load_gpus(folders)
    offers, more = load_offers(folders)
    problems = problems + more
    rates, more = load_rates(folders)
    problems += more
    stacks, more = load_stacks(folders)
    problems += more
    return PriceCatalogs(folders, gpus, offers, rates, stacks), problems
