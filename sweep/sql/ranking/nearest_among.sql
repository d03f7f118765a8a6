-- The same among the matching setups and offers, where others do answer the question: what works but
-- for the deadline or the budget, and of each other limit the smallest miss.
WITH wanted AS (
    SELECT
        offer,
        shape
    FROM
        offers_among(
            providers := $providers,
            regions := $regions,
            price_models := $price_models,
            instance_types := $instance_types
        )
),

late_or_dear AS (
    SELECT
        p.*,
        CASE WHEN p.past_deadline THEN 'past_deadline' ELSE 'over_budget' END AS limit_name,
        CASE WHEN p.past_deadline THEN p.hours ELSE p.usd END AS need,
        CASE WHEN p.past_deadline THEN r.deadline_hours ELSE r.max_usd END AS have,
        CASE WHEN p.past_deadline THEN 'hours' ELSE 'usd' END AS need_unit
    FROM priced AS p
    SEMI JOIN wanted AS o ON o.offer = p.offer
    CROSS JOIN run AS r
    WHERE
        p.question IN ($questions)
        AND lower(p.gpu) GLOB lower($gpus)
        AND (p.past_deadline OR p.over_budget)
),

misses AS (
    SELECT
        *,
        CASE limit_name WHEN 'past_deadline' THEN 1 ELSE 3 END AS place,
        'usd' AS closest_by
    FROM late_or_dear
    QUALIFY
        row_number() OVER (
            PARTITION BY question, limit_name ORDER BY usd, hours, setup, knob, offer
        ) = 1
    UNION ALL BY NAME
    SELECT
        *,
        2 AS place,
        'hours' AS closest_by
    FROM late_or_dear
    WHERE limit_name = 'past_deadline'
    QUALIFY row_number() OVER (PARTITION BY question ORDER BY hours, usd, setup, knob, offer) = 1
    UNION ALL BY NAME
    SELECT
        * EXCLUDE (short, short_ratio),
        CASE limit_name WHEN 'gpu_memory' THEN 6 WHEN 'host_memory' THEN 7 ELSE 8 END AS place,
        'short_ratio' AS closest_by
    FROM rejected
    WHERE
        question IN ($questions)
        AND lower(gpu) GLOB lower($gpus)
        AND shape IN (SELECT shape FROM wanted)
        AND limit_name <> 'past_deadline'
    QUALIFY
        row_number() OVER (
            PARTITION BY question, limit_name
            ORDER BY coalesce(short_ratio, 'infinity'), gpu_count, setup, knob
        ) = 1
)

SELECT
    *,
    need - have AS short,
    need / have AS short_ratio,
    CASE WHEN limit_name = 'past_deadline' AND closest_by = 'usd'
        THEN ceil(gpu_count * short_ratio / gpus_per_node) * gpus_per_node
    END AS gpus_for_deadline
FROM misses
ORDER BY question, place;
