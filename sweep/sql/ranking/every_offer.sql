-- The best offers of each question: every matching offer once, at its best node count and knobs.
WITH wanted AS (
    SELECT
        offer,
        shape,
        usd_per_hour,
        billing_granularity_s,
        billing_minimum_s,
        time_factor
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
        bill(
            job_hours, s.node_count, o.usd_per_hour, o.billing_granularity_s, o.billing_minimum_s
        ) AS job_usd,
        CASE WHEN r.objective = 'hours' THEN job_hours ELSE job_usd END AS weight,
        CASE WHEN r.objective = 'hours' THEN job_usd ELSE job_hours END AS other_weight
    FROM best_by_shape AS b
    JOIN setups AS s ON s.setup = b.setup
    JOIN wanted AS o ON o.shape = b.shape
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
    QUALIFY rank <= greatest($places, 2)
),

compared AS (
    SELECT
        b.rank,
        p.*,
        b.rank > 1
        AND CASE
            WHEN r.objective = 'hours'
                THEN tied(
                    first_value(p.hours) OVER of_question,
                    first_value(p.hours_high) OVER of_question,
                    p.hours,
                    p.hours_low,
                    (p.stack, p.gpu) = first_value((p.stack, p.gpu)) OVER of_question
                )
            ELSE tied(
                first_value(p.usd) OVER of_question,
                first_value(p.usd_high) OVER of_question,
                p.usd,
                p.usd_low,
                (p.stack, p.gpu) = first_value((p.stack, p.gpu)) OVER of_question
            )
        END AS ties
    FROM places AS b
    JOIN
        priced AS p
        ON p.question = b.question AND p.setup = b.setup AND p.knob = b.knob AND p.offer = b.offer
    CROSS JOIN run AS r
    WHERE p.question IN ($questions)
    WINDOW of_question AS (PARTITION BY p.question ORDER BY b.rank)
)

SELECT
    rank,
    CASE WHEN rank > 1 THEN ties ELSE bool_or(ties) OVER (PARTITION BY question) END AS tie,
    * EXCLUDE (rank, ties),
    1 AS same_price
FROM compared
QUALIFY rank <= $places
ORDER BY question, rank;
