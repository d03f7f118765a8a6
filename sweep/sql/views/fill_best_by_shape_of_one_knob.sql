-- The rows of best_by_shape for a range of workloads, where each question and setup has one row and each
-- setup a place of its own: as fill_best_by_shape.sql, without its grouping of what is one already.
INSERT INTO best_by_shape
WITH best AS (
    SELECT
        question,
        shape,
        setup,
        knob,
        hours,
        node_hours,
        node_hours_and_step,
        in_time_on_spot
    FROM weighed
    WHERE verdict = 0 AND in_time AND workload BETWEEN {first} AND {last}
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
    b.setup,
    b.knob,
    b.hours
FROM best AS b
JOIN least AS l ON l.question = b.question AND l.shape = b.shape
WHERE b.node_hours <= l.node_hours;
