-- One row for each question, setup and knob combination kept: everything but prices.
CREATE OR REPLACE VIEW scenarios AS
WITH asked AS (
    SELECT
        q.question,
        f.*
    FROM facts AS f
    JOIN questions AS q ON q.workload = f.workload
)

SELECT * FROM (
    {widened asked}
);
