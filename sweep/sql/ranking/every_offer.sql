-- The best offers of each question: every matching offer once, at its best node count and knobs.
WITH wanted AS (
    SELECT offer
    FROM
        offers_among(
            providers := $providers,
            regions := $regions,
            price_models := $price_models,
            instance_types := $instance_types
        )
),

payable AS (
    SELECT
        p.*,
        CASE WHEN r.objective = 'hours' THEN p.hours ELSE p.usd END AS weight,
        CASE WHEN r.objective = 'hours' THEN p.usd ELSE p.hours END AS other_weight
    FROM priced AS p
    SEMI JOIN wanted AS o ON o.offer = p.offer
    CROSS JOIN run AS r
    WHERE
        p.question IN (SELECT unnest($questions))
        AND lower(p.gpu) GLOB lower($gpus)
        AND NOT p.past_deadline
        AND NOT p.over_budget
),

best AS (
    SELECT *
    FROM payable
    QUALIFY
        row_number() OVER (
            PARTITION BY question, offer ORDER BY weight, other_weight, setup, knob
        ) = 1
)

SELECT
    row_number() OVER (
        PARTITION BY question ORDER BY weight, other_weight, setup, offer, knob
    ) AS rank,
    * EXCLUDE (weight, other_weight),
    1 AS same_price
FROM best
QUALIFY rank <= $places
ORDER BY question, rank;
