-- The rows of best_by_shape for a range of workloads; the later inserts read the earlier ones.
INSERT INTO best_by_shape SELECT * FROM answers_of({first}, {last});

INSERT INTO best_by_shape SELECT * FROM answers_on_spot_of({first}, {last});

INSERT INTO best_by_shape SELECT * FROM near_misses_of({first}, {last});
