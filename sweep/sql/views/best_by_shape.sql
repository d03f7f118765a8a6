-- What each question can expect of each kind of node, whatever the prices. With objective hours and no
-- budget that is its fastest setup. Otherwise every number of nodes that some bill may make the
-- cheapest has a row: usd is node_hours times a price, but for the last step of the bill, which is an
-- hour at most (billing.csv). So a setup is left out if its node_hours are more than another's would
-- be with an hour more; that other one is in time on spot if any is.
--
-- With objective hours and a budget the price decides how many nodes can be afforded: every setup
-- then keeps a row.
--
-- near_misses says what came closest for questions that no kind of node on sale answers:
--   late_cheapest, late_fastest   past the deadline: fewest node hours, fewest hours (with a budget
--                                 for every question: an answer may turn out too expensive)
--   gpu_memory, host_memory       smallest overshoot of that memory
--   unsupported, no_layout        the hardware lacks what was asked, no knobs divide the job over it
--
-- Tables, not views: they are what makes ranking fast. They are filled by workloads (see
-- fill_*.sql), because one grouping of everything takes gigabytes.
CREATE OR REPLACE VIEW weighed AS
SELECT
    s.question,
    s.workload,
    s.shape,
    CASE WHEN r.objective = 'hours' AND r.max_usd IS NULL THEN 0 ELSE s.setup END AS apart,
    r.objective = 'hours' AS by_hours,
    s.verdict,
    s.hours,
    s.node_hours,
    (s.hours + 1) * s.node_count AS node_hours_and_step,
    s.setup,
    s.knob,
    s.peak_gib / s.limit_gib AS gpu_ratio,
    s.host_ram_needed_gib / s.host_ram_gib AS host_ratio,
    s.hours <= coalesce(r.deadline_hours, 'infinity') AS in_time,
    s.hours * (1 + r.spot_overhead) <= coalesce(r.deadline_hours, 'infinity') AS in_time_on_spot,
    CASE WHEN r.objective = 'hours' THEN s.hours ELSE s.node_hours END AS weight
FROM scenarios AS s
CROSS JOIN run AS r;

-- A weight in millionths and the scenario behind it in one number: the least is the same whatever
-- the number of threads, and comparing it costs a third of comparing structs.
CREATE OR REPLACE MACRO ordered(weight, setup, knob) AS
CAST(least(weight, 1e12) * 1e6 AS HUGEINT) * CAST(18446744073709551616 AS HUGEINT)
+ (CAST(setup AS HUGEINT) * 4294967296 + knob);

CREATE OR REPLACE MACRO packed(setup, knob) AS (CAST(setup AS UBIGINT) << 32) | knob;

CREATE OR REPLACE TABLE best_by_shape (
    question UINTEGER,
    shape UINTEGER,
    setup UINTEGER,
    knob UINTEGER,
    hours DOUBLE
);

CREATE OR REPLACE TABLE near_misses (
    question UINTEGER,
    shape UINTEGER,
    miss VARCHAR,
    setup UINTEGER,
    knob UINTEGER,
    hours DOUBLE
);

-- Questions of a range of workloads that no node on sale answers.
CREATE OR REPLACE MACRO unanswered_of(first_workload, last_workload) AS TABLE
WITH on_sale AS (
    SELECT DISTINCT
        shape,
        time_factor
    FROM offers_among()
)

SELECT q.question
FROM questions AS q
ANTI JOIN (
    SELECT b.question
    FROM best_by_shape AS b
    JOIN on_sale AS o ON o.shape = b.shape
    CROSS JOIN run AS r
    WHERE b.hours * o.time_factor <= coalesce(r.deadline_hours, 'infinity')
) AS a ON a.question = q.question
WHERE q.workload BETWEEN first_workload AND last_workload;

CREATE OR REPLACE MACRO near_misses_of(first_workload, last_workload) AS TABLE
WITH unanswered AS (
    SELECT * FROM unanswered_of(first_workload, last_workload)
),

missed AS (
    SELECT
        w.*,
        unnest(
            CASE verdict
                WHEN 0 THEN [
                    struct_pack(miss := 'late_cheapest', size := node_hours),
                    struct_pack(miss := 'late_fastest', size := hours)
                ]
                WHEN 1 THEN [struct_pack(miss := 'gpu_memory', size := gpu_ratio)]
                WHEN 2 THEN [struct_pack(miss := 'host_memory', size := host_ratio)]
                WHEN 3 THEN [struct_pack(miss := 'unsupported', size := CAST(0 AS DOUBLE))]
                ELSE [struct_pack(miss := 'no_layout', size := CAST(0 AS DOUBLE))]
            END
        ) AS by_limit
    FROM weighed AS w
    LEFT JOIN unanswered AS u ON u.question = w.question
    CROSS JOIN run AS r
    WHERE
        w.workload BETWEEN first_workload AND last_workload
        AND NOT (w.verdict = 0 AND w.in_time)
        AND (u.question IS NOT NULL OR (w.verdict = 0 AND r.max_usd IS NOT NULL))
),

sized AS (
    SELECT
        *,
        ordered(coalesce(by_limit.size, 'infinity'), setup, knob) AS place,
        -- As above: which late setup is the cheapest depends on the bill.
        CASE WHEN by_limit.miss = 'late_cheapest' THEN setup ELSE 0 END AS group_apart
    FROM missed
    QUALIFY
        by_limit.miss <> 'late_cheapest'
        OR node_hours <= min(node_hours_and_step) OVER (PARTITION BY question, shape, by_limit.miss)
),

closest AS (
    SELECT
        question,
        shape,
        by_limit.miss AS miss,
        arg_min(packed(setup, knob), place) AS scenario,
        arg_min(coalesce(hours, 0), place) AS hours
    FROM sized
    GROUP BY question, shape, by_limit.miss, group_apart
)

SELECT
    question,
    shape,
    miss,
    CAST(scenario >> 32 AS UINTEGER) AS setup,
    CAST(scenario & 4294967295 AS UINTEGER) AS knob,
    nullif(hours, 0) AS hours
FROM closest;
