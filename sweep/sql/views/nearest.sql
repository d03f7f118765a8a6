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
        b.*,
        s.node_count,
        s.usable_bytes,
        s.host_ram_bytes
    FROM best_by_shape AS b
    JOIN setups AS s ON s.setup = b.setup
    ANTI JOIN answered AS a ON a.question = b.question
),

priced_rows AS (
    SELECT
        b.question,
        b.setup,
        b.knob,
        b.role,
        o.offer,
        o.time_factor,
        b.hours * o.time_factor AS job_hours,
        b.hours * o.time_factor * b.node_count * o.usd_per_hour AS job_usd,
        coalesce(job_hours > r.deadline_hours, false) AS late,
        coalesce(job_usd > r.max_usd, false) AS over_budget
    FROM open_rows AS b
    JOIN best_offers_among() AS o ON o.shape = b.shape
    CROSS JOIN run AS r
    WHERE b.role IN ('best', 'best_on_spot', 'late_cheapest', 'late_fastest')
),

candidates AS (
    SELECT
        question,
        setup,
        knob,
        offer,
        time_factor,
        over_budget,
        unnest(
            CASE WHEN late THEN [
                struct_pack(place := 1, limit_name := 'past_deadline', by := 'usd', miss := job_usd),
                struct_pack(
                    place := 2, limit_name := 'past_deadline', by := 'hours', miss := job_hours
                )
            ]
            ELSE [
                struct_pack(place := 3, limit_name := 'over_budget', by := 'usd', miss := job_usd)
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
        CASE b.role
            WHEN 'gpu_memory' THEN struct_pack(
                place := 6,
                limit_name := 'gpu_memory',
                by := 'short_ratio',
                miss := f.device_bytes / b.usable_bytes
            )
            WHEN 'host_memory' THEN struct_pack(
                place := 7,
                limit_name := 'host_memory',
                by := 'short_ratio',
                miss := f.host_bytes / b.host_ram_bytes
            )
            WHEN 'unsupported' THEN struct_pack(
                place := 8, limit_name := 'unsupported', by := 'setup', miss := 0
            )
            WHEN 'no_layout' THEN struct_pack(
                place := 9, limit_name := 'no_layout', by := 'setup', miss := 0
            )
            WHEN 'best' THEN struct_pack(
                place := 4, limit_name := 'no_price', by := 'node_hours', miss := b.hours * b.node_count
            )
            ELSE struct_pack(
                place := 5, limit_name := 'past_deadline', by := 'node_hours', miss := b.hours * b.node_count
            )
        END
    FROM open_rows AS b
    JOIN questions AS q ON q.question = b.question
    JOIN facts AS f ON f.workload = q.workload AND f.setup = b.setup AND f.knob = b.knob
    ANTI JOIN (
        SELECT DISTINCT
            question,
            setup,
            role
        FROM priced_rows
    ) AS p ON p.question = b.question AND p.setup = b.setup AND p.role = b.role
),

closest AS (
    SELECT
        question,
        c.place AS place,
        min(
            struct_pack(
                over_budget := over_budget,
                miss := coalesce(c.miss, 'infinity'),
                setup := setup,
                knob := knob,
                offer := offer,
                time_factor := time_factor,
                limit_name := c.limit_name,
                by := c.by
            )
        ) AS miss
    FROM candidates
    GROUP BY question, c.place
),

nearest_facts AS (
    SELECT
        f.*,
        c.question,
        c.place,
        c.miss.offer AS offer,
        c.miss.time_factor AS time_factor,
        c.miss.limit_name AS limit_name,
        c.miss.by AS closest_by
    FROM closest AS c
    JOIN questions AS q ON q.question = c.question
    JOIN facts AS f ON f.workload = q.workload AND f.setup = c.miss.setup AND f.knob = c.miss.knob
),

described AS (
    {widened nearest_facts: place, offer, time_factor, limit_name, closest_by}
)

SELECT
    d.limit_name,
    d.closest_by,
    d.place,
    d.* EXCLUDE (place, offer, time_factor, limit_name, closest_by)
    REPLACE (d.hours * d.time_factor AS hours, d.node_hours * d.time_factor AS node_hours),
    o.offer,
    o.provider,
    o.instance_type,
    o.region,
    o.price_model,
    o.usd_per_hour,
    o.as_of,
    o.source,
    d.node_hours * d.time_factor * o.usd_per_hour AS usd,
    coalesce(usd > r.max_usd, false) AS over_budget,
    CASE d.limit_name
        WHEN 'past_deadline' THEN d.hours * d.time_factor
        WHEN 'over_budget' THEN usd
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
FROM described AS d
LEFT JOIN offers AS o ON o.offer = d.offer
CROSS JOIN run AS r;
