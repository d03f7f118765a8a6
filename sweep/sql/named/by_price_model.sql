-- The cheapest setup under each price model.
-- What commitment or interruption saves; jobs on spot take spot_overhead longer.
-- One row a question and price model, the cheapest first (by the run's objective); ratio compares it with
-- the best of all.
-- Variables: model, method (names or globs).
WITH wanted AS (
    SELECT *
    FROM questions_among(
        models := coalesce(getvariable('model'), '*'),
        methods := coalesce(getvariable('method'), '*')
    )
),

sold AS (
    SELECT *
    FROM offers_among()
    QUALIFY
        row_number() OVER (
            PARTITION BY price_model, shape, interruptible, billing_granularity_s, billing_minimum_s
            ORDER BY usd_per_hour, provider, region, offer
        ) = 1
),

payable AS (
    SELECT
        b.question,
        b.setup,
        b.knob,
        o.offer,
        o.price_model,
        b.hours * o.time_factor AS hours,
        bill(
            b.hours * o.time_factor,
            s.node_count,
            o.usd_per_hour,
            o.billing_granularity_s,
            o.billing_minimum_s
        ) AS usd,
        CASE WHEN r.objective = 'hours' THEN b.hours * o.time_factor ELSE usd END AS weight
    FROM best_by_shape AS b
    SEMI JOIN wanted AS q ON q.question = b.question
    JOIN setups AS s ON s.setup = b.setup
    JOIN sold AS o ON o.shape = b.shape
    CROSS JOIN run AS r
    WHERE
        b.hours * o.time_factor <= coalesce(r.deadline_hours, 'infinity')
        AND usd <= coalesce(r.max_usd, 'infinity')
),

best AS (
    SELECT
        question,
        price_model,
        min(
            struct_pack(
                weight := weight, hours := hours, usd := usd, setup := setup, offer := offer,
                knob := knob
            )
        ) AS choice
    FROM payable
    GROUP BY question, price_model
)

SELECT
    b.question,
    q.model,
    q.method,
    q.seq_len,
    q.train_tokens,
    b.price_model,
    o.provider,
    o.instance_type,
    o.region,
    s.gpu,
    s.gpus_per_node,
    s.node_count,
    b.choice.hours AS hours,
    b.choice.usd AS usd,
    b.choice.weight / min(b.choice.weight) OVER (PARTITION BY b.question) AS ratio,
    o.usd_per_hour,
    o.as_of,
    b.choice.setup AS setup,
    b.choice.knob AS knob,
    b.choice.offer AS offer
FROM best AS b
JOIN wanted AS q ON q.question = b.question
JOIN setups AS s ON s.setup = b.choice.setup
JOIN offers AS o ON o.offer = b.choice.offer
ORDER BY b.question, b.choice.weight, b.price_model;
