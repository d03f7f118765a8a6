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
    -- What has a place of its own in the ranking.
    b.shape,
    o.interruptible,
    CASE WHEN r.objective = 'hours' AND r.max_usd IS NOT NULL THEN b.setup ELSE 0 END AS apart,
    b.hours * o.time_factor AS job_hours,
    bill(
        job_hours, s.node_count, o.usd_per_hour, o.billing_granularity_s, o.billing_minimum_s
    ) AS job_usd,
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
    ON o.shape = b.shape
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
WITH kinds AS (
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
            )
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
    GROUP BY question, shape, interruptible, apart
),

-- The runner-up is looked at even where it is not asked for: it says whether the first is a tie.
lists AS (
    SELECT
        question,
        min(best, greatest(places, 2)) AS best
    FROM kinds
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
),

costed AS (
    {costed described: rank, same_price}
),

compared AS (
    SELECT
        c.*,
        c.rank > 1
        AND CASE
            WHEN r.objective = 'hours'
                THEN tied(
                    first_value(c.hours) OVER of_question,
                    first_value(c.hours_high) OVER of_question,
                    c.hours,
                    c.hours_low,
                    (c.stack, c.gpu) = first_value((c.stack, c.gpu)) OVER of_question
                )
            ELSE tied(
                first_value(c.usd) OVER of_question,
                first_value(c.usd_high) OVER of_question,
                c.usd,
                c.usd_low,
                (c.stack, c.gpu) = first_value((c.stack, c.gpu)) OVER of_question
            )
        END AS ties
    FROM costed AS c
    CROSS JOIN run AS r
    -- What else follows from the question is here so that a filter on it reaches the facts.
    WINDOW of_question AS (
        PARTITION BY c.question, c.workload, c.model, c.method, c.seq_len, c.train_tokens
        ORDER BY c.rank
    )
)

SELECT
    rank,
    CASE
        WHEN rank > 1 THEN ties
        ELSE bool_or(ties) OVER (
            PARTITION BY question, workload, model, method, seq_len, train_tokens
        )
    END AS tie,
    * EXCLUDE (rank, ties)
FROM compared
QUALIFY rank <= places;

-- The first ten places; cheapest_among(places := 100) has more.
CREATE OR REPLACE VIEW cheapest AS
SELECT * FROM cheapest_among();
