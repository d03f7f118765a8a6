-- What filters can name: the GPUs of the run, and of its offers whatever is said of them.
SELECT DISTINCT
    'gpu' AS filter,
    gpu AS value
FROM setups
UNION
SELECT DISTINCT
    unnest(['provider', 'region', 'price_model', 'instance']),
    unnest([provider, region, price_model, instance_type])
FROM offers
WHERE rankable
ORDER BY filter, value;
