-- What rules of thumb say of each scenario's memory: bytes a parameter, and states + activations.
-- Several GPUs share a total and 10% more. sweep/evidence/sizing_rules.py has all of them.
CREATE OR REPLACE VIEW rules_of_thumb AS
WITH sized AS (
    SELECT
        s.*,
        s.total_parameters / 1073741824 AS giga,
        CASE WHEN s.gpu_count = 1 THEN 1 ELSE 1.1 / s.gpu_count END AS share,
        CAST(s.micro_batch AS DOUBLE) * s.seq_len * m.hidden_size * m.num_hidden_layers * 2
            / 1073741824 AS hidden_gib
    FROM scenarios AS s
    JOIN models AS m ON m.model = s.model
    WHERE s.allocated_gib IS NOT NULL
),

said AS (
    SELECT
        *,
        unnest([
            {'rule': 'full_12_bytes', 'of': 'full', 'low': 12 * giga, 'high': 12 * giga},
            {'rule': 'full_14_to_20_bytes', 'of': 'full', 'low': 14 * giga, 'high': 20 * giga},
            {'rule': 'lora_2_5_to_4_bytes', 'of': 'lora', 'low': 2.5 * giga, 'high': 4 * giga},
            {'rule': 'qlora_0_7_to_1_5_bytes', 'of': 'qlora', 'low': 0.7 * giga, 'high': 1.5 * giga},
            {'rule': 'hidden_states_times_2_to_3', 'of': method, 'low': 2 * hidden_gib / share,
             'high': 3 * hidden_gib / share}
        ]) AS it
    FROM sized
)

SELECT
    question,
    setup,
    knob,
    model,
    method,
    gpu,
    gpu_count,
    allocated_gib,
    it.rule AS rule,
    it.low * share AS low_gib,
    (it.low + it.high) / 2 * share AS expected_gib,
    it.high * share AS high_gib
FROM said
WHERE it.of = method;
