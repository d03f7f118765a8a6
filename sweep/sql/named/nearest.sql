-- Questions without an answer: which limit failed, by how much, and what would work without it.
-- One row a question and limit, what is likeliest to be given way on first.
-- Variables: model, method (names or globs).
SELECT
    question,
    model,
    method,
    seq_len,
    train_tokens,
    limit_name,
    closest_by,
    need,
    have,
    short,
    short_ratio,
    need_unit,
    hours,
    hours / 24 AS days,
    usd,
    gpu,
    gpus_per_node,
    node_count,
    gpu_count,
    provider,
    instance_type,
    region,
    price_model,
    as_of,
    peak_gib,
    checkpointing,
    micro_batch,
    zero_stage,
    offload,
    tp,
    pp,
    cp,
    ep,
    setup,
    knob,
    offer
FROM nearest
WHERE
    lower(model) GLOB lower(coalesce(getvariable('model'), '*'))
    AND lower(method) GLOB lower(coalesce(getvariable('method'), '*'))
ORDER BY question, place;
