-- How many of the questions have an answer among the matching setups and offers, without a budget: the
-- offer that loses least time decides, whatever it costs.
WITH on_sale AS (
    SELECT
        shape,
        min(time_factor) AS time_factor
    FROM
        best_offers_among(
            providers := $providers,
            regions := $regions,
            price_models := $price_models,
            instance_types := $instance_types
        )
    GROUP BY shape
)

SELECT count(DISTINCT b.question) AS answered
FROM best_by_shape AS b
JOIN setups AS s ON s.setup = b.setup
JOIN on_sale AS o ON o.shape = b.shape
CROSS JOIN run AS r
WHERE
    b.question IN ($questions)
    AND lower(s.gpu) GLOB lower($gpus)
    AND b.hours * o.time_factor <= coalesce(r.deadline_hours, 'infinity');
