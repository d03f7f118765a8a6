-- What a node costs. Interruptible offers (spot) are kept apart: their jobs take longer, so another
-- number of nodes may be needed to meet the deadline.

-- Ranked offers whose names match; * and ? are wildcards, case does not count.
CREATE OR REPLACE MACRO offers_among(
    providers := '*', regions := '*', price_models := '*', instance_types := '*'
) AS TABLE
SELECT
    o.*,
    o.price_model = 'spot' AS interruptible,
    CASE WHEN o.price_model = 'spot' THEN 1 + r.spot_overhead ELSE 1 END AS time_factor
FROM offers AS o
CROSS JOIN run AS r
WHERE
    o.rankable
    AND o.shape IS NOT NULL
    AND lower(o.provider) GLOB lower(providers)
    AND lower(o.region) GLOB lower(regions)
    AND lower(o.price_model) GLOB lower(price_models)
    AND lower(o.instance_type) GLOB lower(instance_types);

-- Of those, the cheapest of each kind of node; among equals the first by provider, region, offer.
CREATE OR REPLACE MACRO best_offers_among(
    providers := '*', regions := '*', price_models := '*', instance_types := '*'
) AS TABLE
SELECT
    *,
    count(*) OVER (PARTITION BY shape, interruptible, usd_per_hour) AS same_price
FROM offers_among(
    providers := providers,
    regions := regions,
    price_models := price_models,
    instance_types := instance_types
)
QUALIFY
    row_number() OVER (
        PARTITION BY shape, interruptible ORDER BY usd_per_hour, provider, region, offer
    ) = 1;
