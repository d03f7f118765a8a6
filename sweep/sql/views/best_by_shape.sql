-- What each question can expect of each kind of node, whatever the prices: on a given kind, usd is
-- node_hours times a price, so its best node_count and knobs do not depend on the price.
--   role 'best'          the answer within the deadline, by the run's objective
--   role 'best_on_spot'  the same with the extra time of spot machines, where it differs
-- and where a kind has no answer, what came closest on it:
--   role 'late_cheapest', 'late_fastest'   past the deadline: fewest node hours, fewest hours
--        (with a budget also where there is an answer: it may turn out too expensive)
--   role 'gpu_memory', 'host_memory'       smallest overshoot of that memory
--   role 'unsupported', 'no_layout'        the hardware lacks what was asked, no knobs divide it
-- With objective hours and a budget the price decides how many nodes can be afforded: every setup
-- then keeps a 'best' of its own.
--
-- A table, not a view: it is what makes ranking fast. It is filled by workloads (see the inserts in
-- fill_best_by_shape.sql), because one grouping of everything takes gigabytes.
CREATE OR REPLACE VIEW weighed AS
SELECT
    s.question,
    s.workload,
    s.shape,
    CASE WHEN r.objective = 'hours' AND r.max_usd IS NOT NULL THEN s.setup ELSE 0 END AS apart,
    s.verdict,
    s.hours,
    s.node_hours,
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
    role VARCHAR,
    setup UINTEGER,
    knob UINTEGER,
    hours DOUBLE
);

CREATE OR REPLACE MACRO answers_of(first_workload, last_workload) AS TABLE
WITH chosen AS (
    SELECT
        question,
        shape,
        apart,
        arg_min(packed(setup, knob), ordered(weight, setup, knob)) AS scenario,
        arg_min(hours, ordered(weight, setup, knob)) AS hours
    FROM weighed
    WHERE verdict = 0 AND in_time AND workload BETWEEN first_workload AND last_workload
    GROUP BY question, shape, apart
)

SELECT
    question,
    shape,
    'best' AS role,
    CAST(scenario >> 32 AS UINTEGER) AS setup,
    CAST(scenario & 4294967295 AS UINTEGER) AS knob,
    hours
FROM chosen;

CREATE OR REPLACE MACRO answers_on_spot_of(first_workload, last_workload) AS TABLE
WITH strained AS (
    SELECT
        b.question,
        b.shape
    FROM best_by_shape AS b
    CROSS JOIN run AS r
    WHERE b.hours * (1 + r.spot_overhead) > r.deadline_hours
),

chosen AS (
    SELECT
        w.question,
        w.shape,
        w.apart,
        arg_min(packed(w.setup, w.knob), ordered(w.weight, w.setup, w.knob)) AS scenario,
        arg_min(w.hours, ordered(w.weight, w.setup, w.knob)) AS hours
    FROM weighed AS w
    SEMI JOIN strained AS s ON s.question = w.question AND s.shape = w.shape
    WHERE
        w.verdict = 0
        AND w.in_time_on_spot
        AND w.workload BETWEEN first_workload AND last_workload
    GROUP BY w.question, w.shape, w.apart
)

SELECT
    question,
    shape,
    'best_on_spot' AS role,
    CAST(scenario >> 32 AS UINTEGER) AS setup,
    CAST(scenario & 4294967295 AS UINTEGER) AS knob,
    hours
FROM chosen;

CREATE OR REPLACE MACRO near_misses_of(first_workload, last_workload) AS TABLE
WITH unanswered AS (
    SELECT
        q.question,
        s.shape
    FROM questions AS q
    CROSS JOIN (SELECT DISTINCT shape FROM setups) AS s
    ANTI JOIN best_by_shape AS b ON b.question = q.question AND b.shape = s.shape
    WHERE q.workload BETWEEN first_workload AND last_workload
),

misses AS (
    SELECT
        w.*,
        unnest(
            CASE verdict
                WHEN 0 THEN [
                    struct_pack(role := 'late_cheapest', miss := node_hours),
                    struct_pack(role := 'late_fastest', miss := hours)
                ]
                WHEN 1 THEN [struct_pack(role := 'gpu_memory', miss := gpu_ratio)]
                WHEN 2 THEN [struct_pack(role := 'host_memory', miss := host_ratio)]
                WHEN 3 THEN [struct_pack(role := 'unsupported', miss := CAST(0 AS DOUBLE))]
                ELSE [struct_pack(role := 'no_layout', miss := CAST(0 AS DOUBLE))]
            END
        ) AS as_a
    FROM weighed AS w
    LEFT JOIN unanswered AS u ON u.question = w.question AND u.shape = w.shape
    CROSS JOIN run AS r
    WHERE
        w.workload BETWEEN first_workload AND last_workload
        AND (
            u.question IS NOT NULL
            OR (w.verdict = 0 AND NOT w.in_time AND r.max_usd IS NOT NULL)
        )
),

closest AS (
    SELECT
        question,
        shape,
        as_a.role AS role,
        arg_min(packed(setup, knob), ordered(coalesce(as_a.miss, 'infinity'), setup, knob)) AS scenario,
        arg_min(coalesce(hours, 0), ordered(coalesce(as_a.miss, 'infinity'), setup, knob)) AS hours
    FROM misses
    GROUP BY question, shape, as_a.role
)

SELECT
    question,
    shape,
    role,
    CAST(scenario >> 32 AS UINTEGER) AS setup,
    CAST(scenario & 4294967295 AS UINTEGER) AS knob,
    nullif(hours, 0) AS hours
FROM closest;
