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
        s.* REPLACE (
            s.hours * o.time_factor AS hours, s.node_hours * o.time_factor AS node_hours
        ),
        o.* EXCLUDE (shape, rankable, unrankable_reason, interruptible, time_factor),
        s.node_hours * o.time_factor * o.usd_per_hour AS usd,
        usd / (s.train_tokens * r.epochs) * 1e6 AS usd_per_million_tokens
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
        AND s.hours * o.time_factor <= coalesce(r.deadline_hours, 'infinity')
        AND usd <= coalesce(r.max_usd, 'infinity')
)

-- The further partition columns follow from the question: they let filters on them pass.
SELECT *
FROM payable
QUALIFY
    usd < coalesce(
        min(usd) OVER (
            PARTITION BY question, workload, model, method, seq_len, train_tokens
            ORDER BY hours, usd, setup, offer, knob
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ),
        'infinity'
    );

CREATE OR REPLACE VIEW frontier AS
SELECT * FROM frontier_among();
