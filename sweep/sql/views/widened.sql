-- Facts in wide, named columns: every formula of time, memory and host needs stands here, once.
-- A fragment, not a statement: other files name it as {widened ROWS: COLUMNS}, where ROWS has the
-- columns of facts, a question, and further COLUMNS that are handed on.
-- (A table macro over the name of ROWS would say the same, but DuckDB then joins all facts before
-- it applies what ROWS leaves out.)
WITH timed AS (
    SELECT
        f.*,
        q.train_tokens,
        q.train_text_gb,
        q.data_bytes,
        w.task,
        w.model,
        w.method,
        w.seq_len,
        w.images_per_sample,
        w.image_size,
        w.image_tokens,
        w.axes,
        w.weights_bytes,
        w.checkpoint_bytes,
        w.total_parameters,
        w.active_parameters,
        w.trained_parameters,
        s.shape,
        s.gpu,
        s.gpus_per_node,
        s.node_count,
        s.gpu_count,
        s.link,
        s.rdma,
        s.network_assumed,
        s.usable_bytes,
        s.network_bytes_per_s,
        s.host_ram_bytes,
        s.vcpus,
        s.local_nvme_bytes,
        s.time_measured,
        k.* EXCLUDE (knob),
        w.expert_time_low * CASE
            WHEN s.time_measured THEN k.measured_time_low ELSE k.unmeasured_time_low
        END AS time_low,
        w.expert_time_high * CASE
            WHEN s.time_measured THEN k.measured_time_high ELSE k.unmeasured_time_high
        END AS time_high,
        r.deadline_hours,
        r.memory_headroom,
        r.cores_per_gpu,
        r.vcpus_per_core,
        r.checkpoints_kept,
        -- Optimizer steps are whole: the last one is filled up.
        ceil(q.train_tokens * r.epochs / (CAST(k.global_batch AS DOUBLE) * w.seq_len)) AS steps,
        nullif(CAST(f.seconds_per_token AS DOUBLE), 0) AS token_s,
        steps * k.global_batch * w.seq_len * token_s / 3600 AS train_hours,
        train_hours * r.eval_fraction AS eval_hours,
        -- Each node reads all of the weights; checkpoints are written by all nodes together.
        w.weights_bytes / r.storage_bytes_per_s / 3600 AS load_hours,
        r.provision_hours + load_hours + r.compile_hours AS startup_hours,
        r.checkpoints_per_job * w.checkpoint_bytes
        / (r.storage_bytes_per_s * s.node_count) / 3600 AS saving_hours,
        startup_hours + saving_hours + (train_hours + eval_hours) AS hours,
        -- What the band is of: the step, and with it evaluation.
        startup_hours + saving_hours + (train_hours + eval_hours) * time_low AS hours_low,
        startup_hours + saving_hours + (train_hours + eval_hours) * time_high AS hours_high
    FROM {rows} AS f
    JOIN questions AS q ON q.question = f.question
    JOIN workloads AS w ON w.workload = f.workload
    JOIN setups AS s ON s.setup = f.setup
    LEFT JOIN knobs AS k ON k.knob = f.knob
    CROSS JOIN run AS r
)
SELECT
    {columns}
    question,
    workload,
    setup,
    shape,
    knob,
    task,
    model,
    method,
    seq_len,
    images_per_sample,
    image_size,
    train_tokens,
    train_text_gb,
    gpu,
    gpus_per_node,
    node_count,
    gpu_count,
    CASE
        WHEN verdict = 0 AND hours > deadline_hours THEN 'past_deadline'
        WHEN verdict = 0 THEN 'fits'
        WHEN verdict = 1 THEN 'gpu_memory'
        WHEN verdict = 2 THEN 'host_memory'
        WHEN verdict = 3 THEN 'unsupported'
        ELSE 'no_layout'
    END AS verdict_text,
    hours,
    hours_low,
    hours_high,
    hours * node_count AS node_hours,
    startup_hours,
    load_hours,
    train_hours,
    eval_hours,
    saving_hours,
    steps,
    time_low,
    time_high,
    time_measured,
    1 / token_s AS tokens_per_s,
    1 / token_s / gpu_count AS tokens_per_s_per_gpu,
    nullif(CAST(device_bytes AS DOUBLE), 0) / 1073741824 AS peak_gib,
    usable_bytes / 1073741824 AS usable_gib,
    usable_bytes * (1 - memory_headroom) / 1073741824 AS limit_gib,
    usable_gib - peak_gib AS headroom_gib,
    nullif(CAST(allocated_bytes AS DOUBLE), 0) / 1073741824 AS allocated_gib,
    allocated_gib * memory_low AS allocated_low_gib,
    allocated_gib * memory_high AS allocated_high_gib,
    stack,
    precision,
    quantization,
    lora_rank,
    lora_target,
    lora_dropout,
    checkpointing,
    attention,
    cross_entropy,
    optimizer,
    global_batch,
    micro_batch,
    CAST(gpu_count // (tp * pp * cp) AS UINTEGER) AS dp,
    CAST(global_batch // (micro_batch * dp) AS UINTEGER) AS gradient_accumulation,
    zero_stage,
    offload,
    tp,
    pp,
    cp,
    ep,
    sequence_parallel,
    cores_per_gpu * gpus_per_node AS cpu_cores_needed,
    vcpus / vcpus_per_core AS cpu_cores,
    cpu_cores >= cpu_cores_needed AS cpu_ok,
    nullif(CAST(host_bytes AS DOUBLE), 0) / 1073741824 AS host_ram_needed_gib,
    host_ram_bytes / 1073741824 AS host_ram_gib,
    host_ram_gib >= host_ram_needed_gib AS host_ram_ok,
    (weights_bytes + data_bytes + checkpoints_kept * checkpoint_bytes) / 1e9 AS disk_needed_gb,
    local_nvme_bytes / 1e9 AS local_nvme_gb,
    local_nvme_gb >= disk_needed_gb AS disk_ok,
    network_bytes_per_token / token_s * 8 / 1e9 AS network_needed_gbps,
    network_bytes_per_s * 8 / 1e9 AS network_gbps,
    CASE
        WHEN network_needed_gbps = 0 THEN true
        WHEN NOT network_assumed THEN network_gbps >= network_needed_gbps
    END AS network_ok,
    link,
    rdma,
    network_assumed,
    weights_bytes,
    checkpoint_bytes,
    total_parameters,
    active_parameters,
    trained_parameters,
    axes,
    verdict,
    seconds_per_token,
    allocated_bytes,
    device_bytes,
    host_bytes,
    network_bytes_per_token
FROM timed
