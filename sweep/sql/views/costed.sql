-- Described scenarios, each at its offer: what is paid, with its band. A fragment, not a statement:
-- other files name it as {costed ROWS: COLUMNS}, where ROWS has the columns of widened.sql, an offer,
-- its time_factor, and further COLUMNS that are handed on.
SELECT
    {columns}
    d.* EXCLUDE ({columns} offer, time_factor)
    REPLACE (
        d.hours * d.time_factor AS hours,
        d.hours_low * d.time_factor AS hours_low,
        d.hours_high * d.time_factor AS hours_high,
        d.node_hours * d.time_factor AS node_hours
    ),
    o.offer,
    o.provider,
    o.instance_type,
    o.region,
    o.price_model,
    o.usd_per_hour,
    o.price_per_hour,
    o.currency,
    o.billing_granularity_s,
    o.billing_minimum_s,
    o.as_of,
    o.source,
    o.scope,
    o.notes,
    d.node_count * o.usd_per_hour AS job_usd_per_hour,
    billed(d.hours * d.time_factor, o.billing_granularity_s, o.billing_minimum_s) AS billed_hours,
    billed_hours * job_usd_per_hour AS usd,
    billed(d.hours_low * d.time_factor, o.billing_granularity_s, o.billing_minimum_s)
    * job_usd_per_hour AS usd_low,
    billed(d.hours_high * d.time_factor, o.billing_granularity_s, o.billing_minimum_s)
    * job_usd_per_hour AS usd_high,
    usd / (d.train_tokens * r.epochs) * 1e6 AS usd_per_million_tokens,
    coalesce(d.hours_high * d.time_factor > r.deadline_hours, false) AS may_be_late,
    coalesce(usd_high > r.max_usd, false) AS may_be_dear
FROM {rows} AS d
LEFT JOIN offers AS o ON o.offer = d.offer
CROSS JOIN run AS r
