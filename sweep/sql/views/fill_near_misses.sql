-- The rows of near_misses for a range of workloads whose best_by_shape is filled.
INSERT INTO near_misses SELECT * FROM near_misses_of({first}, {last});
