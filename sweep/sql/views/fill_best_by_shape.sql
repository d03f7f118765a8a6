-- The rows of best_by_shape for a range of workloads.
CREATE OR REPLACE TEMP TABLE in_time_rows AS
SELECT
    question,
    shape,
    apart,
    packed(setup, knob) AS scenario,
    ordered(weight, setup, knob) AS place,
    hours,
    in_time_on_spot
FROM weighed
WHERE verdict = 0 AND in_time AND workload BETWEEN {first} AND {last};

INSERT INTO best_by_shape
SELECT
    question,
    shape,
    false,
    CAST(scenario >> 32 AS UINTEGER),
    CAST(scenario & 4294967295 AS UINTEGER),
    hours
FROM (
    SELECT
        question,
        shape,
        arg_min(scenario, place) AS scenario,
        arg_min(hours, place) AS hours
    FROM in_time_rows
    GROUP BY question, shape, apart
);

-- Where the best is not in time on spot, the best that is.
INSERT INTO best_by_shape
SELECT
    question,
    shape,
    true,
    CAST(scenario >> 32 AS UINTEGER),
    CAST(scenario & 4294967295 AS UINTEGER),
    hours
FROM (
    SELECT
        i.question,
        i.shape,
        arg_min(i.scenario, i.place) AS scenario,
        arg_min(i.hours, i.place) AS hours
    FROM in_time_rows AS i
    SEMI JOIN (
        SELECT
            b.question,
            b.shape
        FROM best_by_shape AS b
        CROSS JOIN run AS r
        WHERE b.hours * (1 + r.spot_overhead) > r.deadline_hours
    ) AS strained ON strained.question = i.question AND strained.shape = i.shape
    WHERE i.in_time_on_spot
    GROUP BY i.question, i.shape, i.apart
);

DROP TABLE in_time_rows;
