-- The rows of best_by_shape for a range of workloads.
INSERT INTO best_by_shape
WITH best AS (
    SELECT
        question,
        shape,
        any_value(by_hours) AS by_hours,
        arg_min(packed(setup, knob), ordered(weight, setup, knob)) AS scenario,
        arg_min(hours, ordered(weight, setup, knob)) AS hours,
        arg_min(node_hours, ordered(weight, setup, knob)) AS node_hours,
        arg_min(node_hours_and_step, ordered(weight, setup, knob)) AS node_hours_and_step,
        bool_or(in_time_on_spot) AS in_time_on_spot
    FROM weighed
    WHERE verdict = 0 AND in_time AND workload BETWEEN {first} AND {last}
    GROUP BY question, shape, apart
),

least AS (
    SELECT
        question,
        shape,
        coalesce(
            min(node_hours_and_step) FILTER (WHERE in_time_on_spot), min(node_hours_and_step)
        ) AS node_hours
    FROM best
    GROUP BY question, shape
)

SELECT
    b.question,
    b.shape,
    CAST(b.scenario >> 32 AS UINTEGER),
    CAST(b.scenario & 4294967295 AS UINTEGER),
    b.hours
FROM best AS b
JOIN least AS l ON l.question = b.question AND l.shape = b.shape
WHERE b.by_hours OR b.node_hours <= l.node_hours;
