-- Cost against hours: the setups than which no other is both cheaper and faster.
-- Fastest first; each further row costs less and takes longer.
-- Variables: model, method, gpu, provider, region, price_model (names or globs).
SELECT
    question,
    model,
    method,
    seq_len,
    train_tokens,
    hours,
    hours_low,
    hours_high,
    usd,
    usd_low,
    usd_high,
    provider,
    instance_type,
    region,
    price_model,
    gpu,
    gpus_per_node,
    node_count,
    gpu_count,
    peak_gib,
    headroom_gib,
    as_of,
    setup,
    knob,
    offer
FROM
    frontier_among(
        models := coalesce(getvariable('model'), '*'),
        methods := coalesce(getvariable('method'), '*'),
        gpus := coalesce(getvariable('gpu'), '*'),
        providers := coalesce(getvariable('provider'), '*'),
        regions := coalesce(getvariable('region'), '*'),
        price_models := coalesce(getvariable('price_model'), '*')
    )
ORDER BY question, hours;
