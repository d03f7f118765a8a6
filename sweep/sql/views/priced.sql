-- Scenarios that fit in memory, with each ranked offer of their kind of node. Hours of spot offers
-- include spot_overhead, and the verdict includes deadline and budget at that price.
CREATE OR REPLACE VIEW priced AS
WITH offered AS (
    SELECT
        s.*,
        o.offer,
        o.time_factor
    FROM scenarios AS s
    JOIN offers_among() AS o ON o.shape = s.shape
    WHERE s.verdict = 0
),

with_costs AS (
    {costed offered}
)

SELECT
    c.* REPLACE (
        CASE
            WHEN c.hours > r.deadline_hours THEN 'past_deadline'
            WHEN c.usd > r.max_usd THEN 'over_budget'
            ELSE 'fits'
        END AS verdict_text
    ),
    coalesce(c.hours > r.deadline_hours, false) AS past_deadline,
    coalesce(c.usd > r.max_usd, false) AS over_budget
FROM with_costs AS c
CROSS JOIN run AS r;
