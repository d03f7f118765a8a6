-- Of each question that has no answer, the setups that come nearest to one, a row for each limit:
--   past_deadline  the cheapest without the deadline, and the fastest (closest_by usd, hours);
--                  within the budget if there is one that is
--   over_budget    the cheapest within the deadline
--   no_price       what would work but is not sold in a ranked offer
--   gpu_memory, host_memory   the smallest overshoot
--   unsupported, no_layout    the hardware lacks what was asked, no knobs divide the job over it
-- The order of that list is the order of `place`: what is likeliest to be given way on, first.
CREATE OR REPLACE VIEW nearest AS
WITH answered AS (
    SELECT DISTINCT question FROM payable_among()
),

open_rows AS (
    SELECT
        question,
        shape,
        'in_time' AS miss,
        setup,
        knob,
        hours
    FROM best_by_shape
    ANTI JOIN answered AS a USING (question)
    UNION ALL
    SELECT
        question,
        shape,
        miss,
        setup,
        knob,
        hours
    FROM near_misses
    ANTI JOIN answered AS a USING (question)
),

priced_rows AS (
    SELECT
        b.question,
        b.setup,
        b.knob,
        b.miss,
        o.offer,
        o.time_factor,
        b.hours * o.time_factor AS job_hours,
        bill(
            job_hours, s.node_count, o.usd_per_hour, o.billing_granularity_s, o.billing_minimum_s
        ) AS job_usd,
        coalesce(job_hours > r.deadline_hours, false) AS late,
        coalesce(job_usd > r.max_usd, false) AS over_budget
    FROM open_rows AS b
    JOIN setups AS s ON s.setup = b.setup
    JOIN best_offers_among() AS o ON o.shape = b.shape
    CROSS JOIN run AS r
    WHERE b.miss IN ('in_time', 'late_cheapest', 'late_fastest')
),

candidates AS (
    SELECT
        question,
        setup,
        knob,
        offer,
        time_factor,
        over_budget,
        -- Among equals in what is minimised, the cheaper or the faster.
        job_usd,
        job_hours,
        unnest(
            CASE WHEN late THEN [
                struct_pack(place := 1, limit_name := 'past_deadline', by := 'usd', size := job_usd),
                struct_pack(
                    place := 2, limit_name := 'past_deadline', by := 'hours', size := job_hours
                )
            ]
            ELSE [
                struct_pack(place := 3, limit_name := 'over_budget', by := 'usd', size := job_usd)
            ] END
        ) AS c
    FROM priced_rows
    UNION ALL
    SELECT
        b.question,
        b.setup,
        b.knob,
        NULL,
        1,
        false,
        0,
        0,
        CASE b.miss
            WHEN 'in_time' THEN struct_pack(
                place := 4,
                limit_name := 'no_price',
                by := 'node_hours',
                size := b.hours * s.node_count
            )
            WHEN 'gpu_memory' THEN struct_pack(
                place := 6,
                limit_name := 'gpu_memory',
                by := 'short_ratio',
                size := f.device_bytes / s.usable_bytes
            )
            WHEN 'host_memory' THEN struct_pack(
                place := 7,
                limit_name := 'host_memory',
                by := 'short_ratio',
                size := f.host_bytes / s.host_ram_bytes
            )
            WHEN 'unsupported' THEN struct_pack(
                place := 8, limit_name := 'unsupported', by := 'setup', size := 0
            )
            WHEN 'no_layout' THEN struct_pack(
                place := 9, limit_name := 'no_layout', by := 'setup', size := 0
            )
            ELSE struct_pack(
                place := 5,
                limit_name := 'past_deadline',
                by := 'node_hours',
                size := b.hours * s.node_count
            )
        END
    FROM open_rows AS b
    JOIN questions AS q ON q.question = b.question
    JOIN setups AS s ON s.setup = b.setup
    JOIN facts AS f ON f.workload = q.workload AND f.setup = b.setup AND f.knob = b.knob
    ANTI JOIN (
        SELECT DISTINCT
            question,
            setup,
            miss
        FROM priced_rows
    ) AS p ON p.question = b.question AND p.setup = b.setup AND p.miss = b.miss
),

closest AS (
    SELECT
        question,
        c.place AS place,
        min(
            struct_pack(
                over_budget := over_budget,
                size := coalesce(c.size, 'infinity'),
                usd := job_usd,
                hours := job_hours,
                setup := setup,
                knob := knob,
                offer := offer,
                time_factor := time_factor,
                limit_name := c.limit_name,
                by := c.by
            )
        ) AS nearest
    FROM candidates
    GROUP BY question, c.place
),

nearest_facts AS (
    SELECT
        f.*,
        c.question,
        c.place,
        c.nearest.offer AS offer,
        c.nearest.time_factor AS time_factor,
        c.nearest.limit_name AS limit_name,
        c.nearest.by AS closest_by
    FROM closest AS c
    JOIN questions AS q ON q.question = c.question
    JOIN facts AS f ON f.workload = q.workload AND f.setup = c.nearest.setup AND f.knob = c.nearest.knob
),

described AS (
    {widened nearest_facts: place, offer, time_factor, limit_name, closest_by}
),

with_costs AS (
    {costed described: place, limit_name, closest_by}
)

SELECT
    d.limit_name,
    d.closest_by,
    d.place,
    d.* EXCLUDE (place, limit_name, closest_by),
    coalesce(d.usd > r.max_usd, false) AS over_budget,
    CASE d.limit_name
        WHEN 'past_deadline' THEN d.hours
        WHEN 'over_budget' THEN d.usd
        WHEN 'gpu_memory' THEN d.peak_gib
        WHEN 'host_memory' THEN d.host_ram_needed_gib
    END AS need,
    CASE d.limit_name
        WHEN 'past_deadline' THEN r.deadline_hours
        WHEN 'over_budget' THEN r.max_usd
        WHEN 'gpu_memory' THEN d.limit_gib
        WHEN 'host_memory' THEN d.host_ram_gib
    END AS have,
    CASE d.limit_name
        WHEN 'past_deadline' THEN 'hours'
        WHEN 'over_budget' THEN 'usd'
        WHEN 'gpu_memory' THEN 'GiB'
        WHEN 'host_memory' THEN 'GiB'
        ELSE ''
    END AS need_unit,
    need - have AS short,
    need / have AS short_ratio
FROM with_costs AS d
CROSS JOIN run AS r;
