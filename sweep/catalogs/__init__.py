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


@dataclass(frozen=True)
class Catalogs:
    """The shipped catalogs with the user's folders laid over them."""

    folders: tuple[Path, ...]
    models: dict[str, Model]
    gpus: dict[str, Gpu]
    offers: list[Offer]
    rates: list[Rate]
    stacks: StackBook
    evidence_settings: tuple[EvidenceSetting, ...]


def load_catalogs(user_folders: Sequence[Path] = ()) -> Catalogs:
    """Load every catalog a plan needs; raises one CatalogError naming all problems."""
    from sweep.catalogs.evidence_settings import load_evidence_settings
    from sweep.catalogs.folder import catalog_folders
    from sweep.catalogs.hardware import load_gpus
    from sweep.catalogs.models import load_models
    from sweep.catalogs.offers import load_offers
    from sweep.catalogs.rates import load_rates
    from sweep.catalogs.stacks import load_stacks
    from sweep.catalogs.tables import raise_if

    folders = catalog_folders(user_folders)
    models, problems = load_models(folders)
    gpus, more = load_gpus(folders)
    problems = problems + more
    offers, more = load_offers(folders)
    problems += more
    rates, more = load_rates(folders)
    problems += more
    stacks, more = load_stacks(folders)
    problems += more
    settings, more = load_evidence_settings(folders)
    problems += more
    raise_if(problems)
    return Catalogs(folders, models, gpus, offers, rates, stacks, settings)
