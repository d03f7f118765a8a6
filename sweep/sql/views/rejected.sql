-- Questions and setups without any scenario that fits in time: the limit that failed, what was
-- needed and available, and the knobs that came closest. Of several scenarios of a setup (keep other
-- than "best") the closest is the one past the deadline by least, else the one with the smallest
-- overshoot of memory.
CREATE OR REPLACE VIEW limited AS
SELECT
    s.*,
    s.verdict_text AS limit_name,
    CASE s.verdict_text
        WHEN 'past_deadline' THEN s.hours
        WHEN 'gpu_memory' THEN s.peak_gib
        WHEN 'host_memory' THEN s.host_ram_needed_gib
    END AS need,
    CASE s.verdict_text
        WHEN 'past_deadline' THEN r.deadline_hours
        WHEN 'gpu_memory' THEN s.limit_gib
        WHEN 'host_memory' THEN s.host_ram_gib
    END AS have,
    CASE s.verdict_text
        WHEN 'past_deadline' THEN 'hours'
        WHEN 'gpu_memory' THEN 'GiB'
        WHEN 'host_memory' THEN 'GiB'
        ELSE ''
    END AS need_unit,
    need - have AS short,
    need / have AS short_ratio
FROM scenarios AS s
CROSS JOIN run AS r;

CREATE OR REPLACE VIEW rejected AS
SELECT l.*
FROM limited AS l
SEMI JOIN (SELECT 1 AS one FROM run WHERE keep = 'best') AS k ON k.one = 1
WHERE l.verdict_text <> 'fits'
UNION ALL
SELECT unnest(closest)
FROM (
    SELECT
        arg_min(
            l,
            struct_pack(
                a := CASE WHEN l.verdict = 0 THEN 0 ELSE 1 END,
                b := coalesce(l.short_ratio, 'infinity'),
                knob := l.knob
            )
        ) AS closest,
        bool_or(l.verdict_text = 'fits') AS any_fits
    FROM limited AS l
    SEMI JOIN (SELECT 1 AS one FROM run WHERE keep <> 'best') AS k ON k.one = 1
    GROUP BY l.question, l.setup
)
WHERE NOT any_fits;
