-- What was rejected: each limit that failed, how often, and the setup that missed it by least.
-- One row a question and limit. setups counts what failed there; short is by how much the nearest did.
-- Variables: model, method, gpu (names or globs).
WITH misses AS (
    SELECT
        question,
        limit_name,
        count(*) AS setups,
        min(
            struct_pack(
                size := coalesce(short_ratio, 'infinity'),
                setup := setup,
                knob := knob,
                need := need,
                have := have,
                short := short,
                short_ratio := short_ratio,
                need_unit := need_unit
            )
        ) AS nearest
    FROM rejected
    WHERE
        lower(model) GLOB lower(coalesce(getvariable('model'), '*'))
        AND lower(method) GLOB lower(coalesce(getvariable('method'), '*'))
        AND lower(gpu) GLOB lower(coalesce(getvariable('gpu'), '*'))
    GROUP BY question, limit_name
)

SELECT
    m.question,
    w.model,
    w.method,
    w.seq_len,
    q.train_tokens,
    m.limit_name,
    m.setups,
    m.nearest.need AS need,
    m.nearest.have AS have,
    m.nearest.short AS short,
    m.nearest.short_ratio AS short_ratio,
    m.nearest.need_unit AS need_unit,
    s.gpu,
    s.gpus_per_node,
    s.node_count,
    k.checkpointing,
    k.micro_batch,
    k.zero_stage,
    k.offload,
    k.tp,
    k.pp,
    k.cp,
    k.ep,
    m.nearest.setup AS setup,
    m.nearest.knob AS knob
FROM misses AS m
JOIN questions AS q ON q.question = m.question
JOIN workloads AS w ON w.workload = q.workload
JOIN setups AS s ON s.setup = m.nearest.setup
LEFT JOIN knobs AS k ON k.knob = m.nearest.knob
ORDER BY m.question, m.setups DESC, m.limit_name;
