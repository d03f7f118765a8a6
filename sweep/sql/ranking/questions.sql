-- Every question with its workload, in the order of the spec.
SELECT
    q.question,
    w.model,
    w.method,
    w.seq_len,
    q.train_tokens,
    q.train_text_gb,
    w.images_per_sample,
    w.image_size,
    w.axes,
    w.total_parameters,
    w.trained_parameters,
    m.hf_id
FROM questions AS q
JOIN workloads AS w ON w.workload = q.workload
LEFT JOIN models AS m ON m.model = w.model
ORDER BY q.question;
