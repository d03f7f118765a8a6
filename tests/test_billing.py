"""By what steps providers bill: the row that holds, an offer's own, and wrong rows told."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from sweep.catalogs.billing import load_billing
from sweep.catalogs.folder import catalog_folders, shipped_folder
from sweep.catalogs.offers import load_offers, load_quotes
from sweep.catalogs.sources import load_sources

HEADER = "provider,instance_type,granularity_s,minimum_s,source,locator,checked,notes,assumed"
GENERAL = "*,*,60,60,sweep-assumed,,2026-11-21,,"
TODAY = dt.date(2026, 11, 21)
QUOTE = "provider,instance_type,gpu,gpu_count,price_per_hour"


def test_the_shipped_rows_are_clean_and_name_their_sources() -> None:
    book, problems = load_billing((shipped_folder(),))
    assert problems == []
    sources, _ = load_sources((shipped_folder(),))
    assert {row.source for row in book.rows} <= set(sources)
    # What nobody states says that it is assumed.
    general = book.find("nobody-has-heard-of-it", "x")
    assert general.source == "sweep-assumed"
    assert set(general.assumed.split(";")) == {"granularity_s", "minimum_s"}


@pytest.mark.parametrize(
    ("provider", "instance", "step_s", "least_s"),
    [
        ("aws", "p5.48xlarge", 1, 60),
        ("gcp", "a3-highgpu-8g", 1, 60),
        ("lambda", "gpu_8x_h100_sxm5", 60, 60),
        ("vultr", "anything", 3600, 3600),
        # Bare metal is billed for an hour at least, virtual machines for a minute.
        ("oci", "VM.GPU.A10.2", 1, 60),
        ("oci", "BM.GPU.H100.8", 1, 3600),
        ("scaleway", "H100-1-80G", 60, 0),
        ("scaleway", "RENDER-S", 3600, 0),
    ],
)
def test_published_steps(provider: str, instance: str, step_s: float, least_s: float) -> None:
    row = load_billing((shipped_folder(),))[0].find(provider, instance)
    assert (row.granularity_s, row.minimum_s) == (step_s, least_s)


def test_every_offer_has_the_steps_of_its_provider() -> None:
    book, _ = load_billing((shipped_folder(),))
    offers, problems = load_offers((shipped_folder(),))
    assert problems == []
    assert len({offer.billing_granularity_s for offer in offers}) > 1
    for offer in offers[::37]:
        row = book.find(offer.provider, offer.instance_type)
        assert offer.billing_granularity_s == row.granularity_s
        assert offer.billing_minimum_s == row.minimum_s


@pytest.mark.parametrize(
    ("columns", "cells", "step_s", "least_s"),
    [
        ("", "", 1, 60),
        (",billing_granularity_s", ",3600", 3600, 0),
        (",billing_granularity_s,billing_minimum_s", ",60,600", 60, 600),
        # A minimum alone is laid over the provider's.
        (",billing_minimum_s", ",3600", 1, 3600),
    ],
)
def test_a_quote_may_say_how_it_is_billed(
    tmp_path: Path, columns: str, cells: str, step_s: float, least_s: float
) -> None:
    path = tmp_path / "quotes.csv"
    path.write_text(f"{QUOTE}{columns}\naws,p5.48xlarge,H100-SXM-80GB,8,60.0{cells}\n")
    (offer,), problems = load_quotes([path], catalog_folders(), TODAY)
    assert problems == []
    assert (offer.billing_granularity_s, offer.billing_minimum_s) == (step_s, least_s)


@pytest.mark.parametrize("step", ["0", "0.5", "86400", "an hour"])
def test_a_step_out_of_range_is_told(tmp_path: Path, step: str) -> None:
    path = tmp_path / "quotes.csv"
    path.write_text(f"{QUOTE},billing_granularity_s\naws,p5.48xlarge,H100-SXM-80GB,8,60,{step}\n")
    offers, problems = load_quotes([path], catalog_folders(), TODAY)
    assert offers == []
    assert f"quotes.csv:2, billing_granularity_s: value: found '{step}'" in str(problems[0])


FAULTS = {
    "a step of a day": ("mine,*,86400,0,sweep-assumed,,2026-11-21,,", "granularity_s: value"),
    "no step": ("mine,*,,0,sweep-assumed,,2026-11-21,,", "granularity_s: value: found nothing"),
    "less than nothing": ("mine,*,1,-60,sweep-assumed,,2026-11-21,,", "minimum_s: value"),
    "no provider": (",*,1,60,sweep-assumed,,2026-11-21,,", "provider: value: found nothing"),
    "a row twice": (GENERAL, "provider+instance_type: key: found ('*', '*') again"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_stands(tmp_path: Path, fault: str) -> None:
    row, message = FAULTS[fault]
    (tmp_path / "billing.csv").write_text(f"{HEADER}\n{GENERAL}\n{row}\n")
    _, problems = load_billing((tmp_path,))
    assert message in "\n".join(map(str, problems))
    assert f"{tmp_path / 'billing.csv'}:3" in str(problems[0])


def test_without_a_general_row_nothing_is_known_of_other_providers(tmp_path: Path) -> None:
    (tmp_path / "billing.csv").write_text(f"{HEADER}\naws,*,1,60,sweep-assumed,,2026-11-21,,\n")
    _, problems = load_billing((tmp_path,))
    assert [problem.allowed for problem in problems] == ["a row with *, *"]
