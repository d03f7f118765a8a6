-- How many prices rank, and when they were seen.
SELECT
    count(*) AS offers,
    count(DISTINCT provider) AS providers,
    min(as_of) AS oldest,
    max(as_of) AS newest
FROM offers
WHERE rankable AND shape IS NOT NULL;
