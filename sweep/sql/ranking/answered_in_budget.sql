-- How many of the questions have an answer among the matching setups and offers, with a budget: bill by
-- bill. Without one answered.sql says the same sooner.
SELECT count(DISTINCT question) AS answered
FROM
    payable_among(
        gpus := $gpus,
        providers := $providers,
        regions := $regions,
        price_models := $price_models,
        instance_types := $instance_types
    )
WHERE question IN ($questions);
