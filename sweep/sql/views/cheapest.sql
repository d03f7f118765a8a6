-- The ranking of each question: one row for each kind of node and kind of price (spot or not) that
-- works, at its best node_count and knobs and its cheapest offer. Rank 1 is the answer, rank 2 the
-- runner-up. Filters apply before the ranking, so that ranks start at 1 again; * and ? are wildcards.
CREATE OR REPLACE MACRO questions_among(models := '*', methods := '*') AS TABLE
SELECT
    q.*,
    w.model,
    w.method,
    w.seq_len
FROM questions AS q
JOIN workloads AS w ON w.workload = q.workload
WHERE lower(w.model) GLOB lower(models) AND lower(w.method) GLOB lower(methods);

CREATE OR REPLACE MACRO payable_among(
    models := '*',
    methods := '*',
    gpus := '*',
    providers := '*',
    regions := '*',
    price_models := '*',
    instance_types := '*'
) AS TABLE
SELECT
    b.question,
    b.setup,
    b.knob,
    o.offer,
    o.same_price,
    o.time_factor,
    b.hours * o.time_factor AS job_hours,
    b.hours * o.time_factor * s.node_count * o.usd_per_hour AS job_usd,
    CASE WHEN r.objective = 'hours' THEN job_hours ELSE job_usd END AS weight,
    CASE WHEN r.objective = 'hours' THEN job_usd ELSE job_hours END AS other_weight
FROM best_by_shape AS b
JOIN setups AS s ON s.setup = b.setup
SEMI JOIN questions_among(models := models, methods := methods) AS q ON q.question = b.question
JOIN
    best_offers_among(
        providers := providers,
        regions := regions,
        price_models := price_models,
        instance_types := instance_types
    ) AS o
    ON o.shape = b.shape AND (o.interruptible OR NOT b.on_spot)
CROSS JOIN run AS r
WHERE
    lower(s.gpu) GLOB lower(gpus)
    AND job_hours <= coalesce(r.deadline_hours, 'infinity')
    AND job_usd <= coalesce(r.max_usd, 'infinity');

-- A list of the least in place of a window over all: it takes a quarter of the time, and a filter
-- on a model or a question reaches the facts through it.
CREATE OR REPLACE MACRO cheapest_among(
    models := '*',
    methods := '*',
    gpus := '*',
    providers := '*',
    regions := '*',
    price_models := '*',
    instance_types := '*',
    places := 10
) AS TABLE
WITH lists AS (
    SELECT
        question,
        min(
            struct_pack(
                a := weight,
                b := other_weight,
                setup := setup,
                offer := offer,
                knob := knob,
                same_price := same_price,
                time_factor := time_factor
            ),
            places
        ) AS best
    FROM payable_among(
        models := models,
        methods := methods,
        gpus := gpus,
        providers := providers,
        regions := regions,
        price_models := price_models,
        instance_types := instance_types
    )
    GROUP BY question
),

ranked AS (
    SELECT
        question,
        unnest(best) AS place,
        unnest(range(1, len(best) + 1)) AS rank
    FROM lists
),

ranked_facts AS (
    SELECT
        f.*,
        r.question,
        r.rank,
        r.place.offer AS offer,
        r.place.same_price AS same_price,
        r.place.time_factor AS time_factor
    FROM ranked AS r
    JOIN questions AS q ON q.question = r.question
    JOIN
        facts AS f
        ON f.workload = q.workload AND f.setup = r.place.setup AND f.knob = r.place.knob
),

described AS (
    {widened ranked_facts: rank, offer, same_price, time_factor}
)

SELECT
    d.rank,
    d.* EXCLUDE (rank, offer, same_price, time_factor)
    REPLACE (d.hours * d.time_factor AS hours, d.node_hours * d.time_factor AS node_hours),
    o.offer,
    o.provider,
    o.instance_type,
    o.region,
    o.price_model,
    o.usd_per_hour,
    o.price_per_hour,
    o.currency,
    o.as_of,
    o.source,
    o.scope,
    o.notes,
    d.same_price,
    d.node_hours * d.time_factor * o.usd_per_hour AS usd,
    usd / (d.train_tokens * r.epochs) * 1e6 AS usd_per_million_tokens
FROM described AS d
JOIN offers AS o ON o.offer = d.offer
CROSS JOIN run AS r;

-- The first ten places; cheapest_among(places := 100) has more.
CREATE OR REPLACE VIEW cheapest AS
SELECT * FROM cheapest_among();
