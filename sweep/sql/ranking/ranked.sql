-- The best kinds of node of each question, each at its cheapest matching offer.
SELECT *
FROM
    cheapest_among(
        gpus := $gpus,
        providers := $providers,
        regions := $regions,
        price_models := $price_models,
        instance_types := $instance_types,
        places := $places
    )
WHERE question IN ($questions)
ORDER BY question, rank;
