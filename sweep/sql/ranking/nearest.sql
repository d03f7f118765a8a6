-- What came nearest to each question that no setup of the run answers.
SELECT *
FROM nearest
WHERE question IN (SELECT unnest($questions))
ORDER BY question, place;
