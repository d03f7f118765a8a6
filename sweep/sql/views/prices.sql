-- What a node costs. Interruptible offers (spot) are kept apart: their jobs take longer, so another
-- number of nodes may be needed to meet the deadline.

-- The hours paid for: whole steps of the bill, at least its minimum. A millionth of a step beyond
-- whole ones is rounding of the arithmetic, not another step.
CREATE OR REPLACE MACRO billed(hours, granularity_s, minimum_s) AS
greatest(ceil(hours * 3600 / granularity_s - 1e-6) * granularity_s, minimum_s) / 3600;

CREATE OR REPLACE MACRO bill(hours, node_count, usd_per_hour, granularity_s, minimum_s) AS
billed(hours, granularity_s, minimum_s) * node_count * usd_per_hour;

-- Whether the evidence does not tell another choice from the best one, of which `measure` (usd or
-- hours) is the least. Under the same stack and method on the same GPU both predictions err together:
-- what is within two percent is a tie. Otherwise they err apart: it takes the best one's error towards
-- its high end and the other's towards its low end, as ratios, which add as squares of logarithms.
CREATE OR REPLACE MACRO tied(best, best_high, other, other_low, err_together) AS
other <= best * CASE
    WHEN err_together THEN 1.02
    ELSE exp(
        sqrt(
            coalesce(pow(ln(best_high / nullif(best, 0)), 2), 0)
            + coalesce(pow(ln(other / nullif(other_low, 0)), 2), 0)
        )
    )
END;

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

-- Of those, the cheapest of each kind of node and kind of bill (a dearer one in smaller steps may
-- cost less); among equals the first by provider, region, offer.
CREATE OR REPLACE MACRO best_offers_among(
    providers := '*', regions := '*', price_models := '*', instance_types := '*'
) AS TABLE
SELECT
    *,
    count(*) OVER (
        PARTITION BY shape, interruptible, billing_granularity_s, billing_minimum_s, usd_per_hour
    ) AS same_price
FROM offers_among(
    providers := providers,
    regions := regions,
    price_models := price_models,
    instance_types := instance_types
)
QUALIFY
    row_number() OVER (
        PARTITION BY shape, interruptible, billing_granularity_s, billing_minimum_s
        ORDER BY usd_per_hour, provider, region, offer
    ) = 1;
