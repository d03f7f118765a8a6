"""Offers and exchange rates: what ranks, what does not and why, which price is the latest."""

from __future__ import annotations

import csv
import datetime as dt
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.catalogs.folder import catalog_folders, shipped_folder
from sweep.catalogs.hardware import load_gpus
from sweep.catalogs.offers import (
    ON_REQUEST_REASONS,
    PLACEHOLDER_PRICES,
    UNRANKABLE_REASONS,
    Offer,
    latest_offers,
    load_offers,
)
from sweep.catalogs.rates import Rate, load_rates, usd_rates
from sweep.errors import CatalogError

SHIPPED = (shipped_folder(),)


@pytest.fixture(scope="module")
def offers() -> list[Offer]:
    loaded, problems = load_offers(SHIPPED)
    assert problems == []
    return loaded


def raw_rows() -> list[dict[str, str]]:
    with (shipped_folder() / "offers.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def write_offers(folder: Path, *rows: dict[str, str]) -> None:
    with (folder / "offers.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


QUOTE = {
    "provider": "my-cloud",
    "instance_type": "node-8",
    "gpu": "H100-SXM-80GB",
    "gpu_count": "8",
    "region": "here",
    "price_model": "on_demand",
    "price_per_hour": "20",
    "currency": "USD",
    "as_of": "2026-11-01",
    "scope": "instance",
    "source": "karpenter-aws",
}


def test_counts_of_the_shipped_offers(offers: list[Offer]) -> None:
    dated = [offer for offer in offers if offer.as_of]
    assert len(dated) >= 2000
    assert len({offer.provider for offer in dated}) >= 25
    ranked = [offer for offer in offers if offer.rankable]
    assert len(ranked) >= 2000
    assert all(offer.as_of and offer.scope == "instance" for offer in ranked)
    asked_for = [offer for offer in offers if offer.unrankable_reason in ("", *ON_REQUEST_REASONS)]
    assert len({offer.provider for offer in asked_for if offer.as_of}) >= 25


def test_every_row_is_kept_and_marked(offers: list[Offer]) -> None:
    rows = raw_rows()
    assert len(offers) == len(rows)
    for offer, row in zip(offers, rows, strict=True):
        assert offer.rankable == (row["rankable"] == "y")
        assert offer.unrankable_reason == row["unrankable_reason"]
        assert offer.rankable == (offer.unrankable_reason == "")
    assert set(Counter(row["unrankable_reason"] for row in rows)) - {""} <= set(UNRANKABLE_REASONS)


def test_no_ranked_price_is_a_placeholder(offers: list[Offer]) -> None:
    assert all(offer.price_per_hour > 0 for offer in offers)
    assert not any(offer.price_per_hour in PLACEHOLDER_PRICES for offer in offers)


def test_ranked_offers_have_known_gpus_and_whole_counts(offers: list[Offer]) -> None:
    gpus, _ = load_gpus(SHIPPED)
    for offer in offers:
        if offer.rankable:
            assert offer.gpu in gpus
            assert offer.gpu_count >= 1
        if offer.unrankable_reason == "fractional_gpu":
            assert offer.gpu_count == 0
        if offer.unrankable_reason == "unknown_gpu":
            assert offer.gpu not in gpus


def test_google_machines_cost_host_and_gpu_together(offers: list[Offer]) -> None:
    a100 = [o for o in offers if o.provider == "gcp" and o.gpu == "A100-SXM-40GB" and o.rankable]
    on_demand = [o.price_per_hour / o.gpu_count for o in a100 if o.price_model == "on_demand"]
    assert min(on_demand) > 3
    assert not any(o.rankable for o in offers if o.provider == "gcp" and o.scope == "per_gpu")


def test_yuan_stays_yuan(offers: list[Offer]) -> None:
    yuan = [offer for offer in offers if offer.currency == "CNY"]
    assert len(yuan) == sum(row["currency"] == "CNY" for row in raw_rows()) > 200
    assert {offer.provider for offer in yuan} == {"alibaba", "aws-cn"}


def test_host_facts_come_from_the_instance(offers: list[Offer]) -> None:
    offer = next(o for o in offers if o.instance_type == "Standard_ND96isr_H100_v5")
    assert (offer.vcpus, offer.host_ram_gib, offer.local_nvme_gb) == (96, 1900, 30786)
    assert (offer.network_gbps, offer.rdma) == (3200, True)
    plain = next(o for o in offers if o.instance_type == "Standard_ND96is_H100_v5")
    assert not plain.rdma
    assert plain.network_gbps is None
    assert plain.fabric.startswith("none")


def test_search_bins_of_marketplaces_are_not_host_facts(offers: list[Offer]) -> None:
    for offer in offers:
        if offer.provider in ("runpod", "vast"):
            assert offer.vcpus is None
            assert offer.host_ram_gib is None


def test_the_offers_own_facts_win(tmp_path: Path) -> None:
    row = {**QUOTE, "provider": "aws", "instance_type": "p5.48xlarge", "vcpus": "100"}
    write_offers(tmp_path, row)
    offer = load_offers(catalog_folders([tmp_path]))[0][-1]
    assert offer.vcpus == 100
    assert offer.host_ram_gib == 2048


def test_a_quote_without_marks_ranks(tmp_path: Path) -> None:
    write_offers(tmp_path, QUOTE)
    loaded, problems = load_offers(catalog_folders([tmp_path]))
    assert problems == []
    assert loaded[-1].provider == "my-cloud"
    assert loaded[-1].rankable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"as_of": ""}, "undated"),
        ({"scope": "per_gpu"}, "per_gpu_price_list"),
        ({"gpu_count": "0.5"}, "fractional_gpu"),
    ],
)
def test_a_quote_that_cannot_rank_says_why(
    tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    write_offers(tmp_path, {**QUOTE, **change})
    offer = load_offers(catalog_folders([tmp_path]))[0][-1]
    assert (offer.rankable, offer.unrankable_reason) == (False, reason)


def test_a_loose_gpu_name_is_marked_assumed(tmp_path: Path) -> None:
    write_offers(tmp_path, {**QUOTE, "gpu": "H100"})
    offer = load_offers(catalog_folders([tmp_path]))[0][-1]
    assert (offer.gpu, offer.assumed) == ("H100-SXM-80GB", "gpu")


def test_an_unknown_gpu_is_a_problem_with_the_nearest_name(tmp_path: Path) -> None:
    write_offers(tmp_path, {**QUOTE, "gpu": "H100-SMX-80GB"})
    loaded, problems = load_offers(catalog_folders([tmp_path]))
    assert not any(offer.provider == "my-cloud" for offer in loaded)
    assert "did you mean 'H100-SXM-80GB'" in str(problems[0])


def test_the_newest_price_of_a_machine_stands(offers: list[Offer]) -> None:
    first = next(offer for offer in offers if offer.rankable)
    old, new = dt.date(2026, 1, 1), dt.date(2026, 6, 1)
    history = [replace(first, as_of=new, price_per_hour=2.0), replace(first, as_of=old)]
    assert latest_offers(history) == [history[0]]
    assert latest_offers(history, dt.date(2026, 3, 1)) == [history[1]]
    assert latest_offers(history, dt.date(2025, 3, 1)) == []
    same_day = [history[0], replace(first, as_of=new, price_per_hour=3.0)]
    assert latest_offers(same_day) == [same_day[1]]
    undated = replace(first, as_of=None)
    assert latest_offers([undated, history[1]]) == [history[1]]
    other_region = replace(first, as_of=old, region="elsewhere")
    assert latest_offers([*history, other_region]) == [history[0], other_region]


def test_latest_of_the_shipped_offers_has_one_row_per_machine(offers: list[Offer]) -> None:
    ranked = [offer for offer in offers if offer.rankable]
    latest = latest_offers(ranked)
    keys = Counter((o.provider, o.instance_type, o.region, o.price_model) for o in latest)
    assert set(keys.values()) == {1}
    newest: dict[tuple[str, str, str, str], dt.date] = {}
    for o in ranked:
        key = (o.provider, o.instance_type, o.region, o.price_model)
        newest[key] = max(newest.get(key, dt.date.min), o.as_of or dt.date.min)
    assert all(
        o.as_of == newest[o.provider, o.instance_type, o.region, o.price_model] for o in latest
    )


def test_rates_of_every_currency_in_the_offers(offers: list[Offer]) -> None:
    rates, problems = load_rates(SHIPPED)
    assert problems == []
    assert {offer.currency for offer in offers} <= set(usd_rates(rates))


def test_the_rate_of_a_day_is_the_newest_before_it() -> None:
    old = Rate("CNY", 0.14, dt.date(2024, 1, 1), "s", "")
    new = Rate("CNY", 0.15, dt.date(2026, 1, 1), "s", "")
    assert usd_rates([new, old]) == {"CNY": 0.15, "USD": 1.0}
    assert usd_rates([new, old], as_of=dt.date(2025, 1, 1))["CNY"] == 0.14
    assert usd_rates([new, old], as_of=dt.date(2020, 1, 1))["CNY"] == 0.14
    assert usd_rates([new, old], {"CNY": 0.2, "CHF": 1.1}) == {"CNY": 0.2, "USD": 1.0, "CHF": 1.1}


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(CatalogError, match="exchange rate of CNY"):
        usd_rates([], {"CNY": rate})
