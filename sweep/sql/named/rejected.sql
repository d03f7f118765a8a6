-- What was rejected: each limit that failed, how often, and the setup that missed it by least.
-- One row a question and limit. setups counts what failed there; short is by how much the nearest did.
-- Variables: model, method, gpu (names or globs).
WITH misses AS (
    SELECT *
    FROM rejected
    WHERE
        lower(model) GLOB lower(coalesce(getvariable('model'), '*'))
        AND lower(method) GLOB lower(coalesce(getvariable('method'), '*'))
        AND lower(gpu) GLOB lower(coalesce(getvariable('gpu'), '*'))
)

SELECT
    question,
    model,
    method,
    seq_len,
    train_tokens,
    limit_name,
    count(*) OVER (PARTITION BY question, limit_name) AS setups,
    need,
    have,
    short,
    short_ratio,
    need_unit,
    gpu,
    gpus_per_node,
    node_count,
    checkpointing,
    micro_batch,
    zero_stage,
    offload,
    tp,
    pp,
    cp,
    ep,
    setup,
    knob
FROM misses
QUALIFY
    row_number() OVER (
        PARTITION BY question, limit_name ORDER BY coalesce(short_ratio, 'infinity'), setup, knob
    ) = 1
ORDER BY question, setups DESC, limit_name;
