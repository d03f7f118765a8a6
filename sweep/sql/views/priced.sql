-- Scenarios that fit in memory, with each ranked offer of their kind of node. Hours of spot offers
-- include spot_overhead, and the verdict includes deadline and budget at that price.
CREATE OR REPLACE VIEW priced AS
SELECT
    s.* REPLACE (
        s.hours * o.time_factor AS hours,
        s.node_hours * o.time_factor AS node_hours,
        CASE
            WHEN s.hours * o.time_factor > r.deadline_hours THEN 'past_deadline'
            WHEN s.node_hours * o.time_factor * o.usd_per_hour > r.max_usd THEN 'over_budget'
            ELSE 'fits'
        END AS verdict_text
    ),
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
    s.node_hours * o.time_factor * o.usd_per_hour AS usd,
    usd / (s.train_tokens * r.epochs) * 1e6 AS usd_per_million_tokens,
    coalesce(s.hours * o.time_factor > r.deadline_hours, false) AS past_deadline,
    coalesce(usd > r.max_usd, false) AS over_budget
FROM scenarios AS s
JOIN offers_among() AS o ON o.shape = s.shape
CROSS JOIN run AS r
WHERE s.verdict = 0;
