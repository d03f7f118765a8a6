-- The best offers of each question: every matching offer once, at its best node count and knobs.
WITH wanted AS (
    SELECT
        offer,
        shape,
        usd_per_hour,
        time_factor,
        interruptible
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
        b.question,
        b.setup,
        b.knob,
        o.offer,
        b.hours * o.time_factor AS job_hours,
        b.hours * o.time_factor * s.node_count * o.usd_per_hour AS job_usd,
        CASE WHEN r.objective = 'hours' THEN job_hours ELSE job_usd END AS weight,
        CASE WHEN r.objective = 'hours' THEN job_usd ELSE job_hours END AS other_weight
    FROM best_by_shape AS b
    JOIN setups AS s ON s.setup = b.setup
    JOIN wanted AS o ON o.shape = b.shape AND (o.interruptible OR NOT b.on_spot)
    CROSS JOIN run AS r
    WHERE
        b.question IN ($questions)
        AND lower(s.gpu) GLOB lower($gpus)
        AND job_hours <= coalesce(r.deadline_hours, 'infinity')
        AND job_usd <= coalesce(r.max_usd, 'infinity')
),

best AS (
    SELECT *
    FROM payable
    QUALIFY
        row_number() OVER (
            PARTITION BY question, offer ORDER BY weight, other_weight, setup, knob
        ) = 1
),

places AS (
    SELECT
        *,
        row_number() OVER (
            PARTITION BY question ORDER BY weight, other_weight, setup, offer, knob
        ) AS rank
    FROM best
    QUALIFY rank <= $places
)

SELECT
    b.rank,
    p.*,
    1 AS same_price
FROM places AS b
JOIN
    priced AS p
    ON p.question = b.question AND p.setup = b.setup AND p.knob = b.knob AND p.offer = b.offer
WHERE p.question IN ($questions)
ORDER BY p.question, b.rank;
