-- Cost against time: of each question the setups, each at its cheapest offer (spot or not), than
-- which no other is both cheaper and faster. Fastest first.
CREATE OR REPLACE MACRO frontier_among(
    models := '*',
    methods := '*',
    gpus := '*',
    providers := '*',
    regions := '*',
    price_models := '*',
    instance_types := '*'
) AS TABLE
WITH payable AS (
    SELECT
        s.question,
        -- These follow from the question. They are here and below so that a filter on them reaches
        -- the facts instead of waiting for all frontiers.
        s.workload,
        s.model,
        s.method,
        s.seq_len,
        s.train_tokens,
        s.setup,
        s.knob,
        s.hours * o.time_factor AS job_hours,
        bill(
            job_hours, s.node_count, o.usd_per_hour, o.billing_granularity_s, o.billing_minimum_s
        ) AS job_usd,
        o.offer,
        o.same_price,
        o.time_factor
    FROM scenarios AS s
    JOIN
        best_offers_among(
            providers := providers,
            regions := regions,
            price_models := price_models,
            instance_types := instance_types
        ) AS o
        ON o.shape = s.shape
    CROSS JOIN run AS r
    WHERE
        s.verdict = 0
        AND lower(s.model) GLOB lower(models)
        AND lower(s.method) GLOB lower(methods)
        AND lower(s.gpu) GLOB lower(gpus)
        AND job_hours <= coalesce(r.deadline_hours, 'infinity')
        AND job_usd <= coalesce(r.max_usd, 'infinity')
),

unbeaten AS (
    SELECT *
    FROM payable
    QUALIFY
        job_usd < coalesce(
            min(job_usd) OVER (
                PARTITION BY question, workload, model, method, seq_len, train_tokens
                ORDER BY job_hours, job_usd, setup, offer, knob
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            'infinity'
        )
),

unbeaten_facts AS (
    SELECT
        f.*,
        u.question,
        u.offer,
        u.same_price,
        u.time_factor
    FROM unbeaten AS u
    JOIN facts AS f ON f.workload = u.workload AND f.setup = u.setup AND f.knob = u.knob
),

described AS (
    {widened unbeaten_facts: offer, same_price, time_factor}
)

{costed described: same_price};

CREATE OR REPLACE VIEW frontier AS
SELECT * FROM frontier_among();
