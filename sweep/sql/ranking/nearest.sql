-- What came nearest to each question that no setup of the run answers.
SELECT
    *,
    -- In whole nodes, if twice the GPUs were twice as fast.
    CASE WHEN limit_name = 'past_deadline' AND closest_by = 'usd'
        THEN ceil(gpu_count * short_ratio / gpus_per_node) * gpus_per_node
    END AS gpus_for_deadline
FROM nearest
WHERE question IN ($questions)
ORDER BY question, place;
