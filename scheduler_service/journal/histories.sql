-- Whole journals, for replay.

-- page --
SELECT run_id FROM backburner.runs
 WHERE NOT client_driven
   AND (%(after)s::uuid IS NULL OR run_id > %(after)s::uuid)
   AND (%(run_ids)s::uuid[] IS NULL OR run_id = ANY (%(run_ids)s::uuid[]))
   AND (%(processes)s::text[] IS NULL OR process = ANY (%(processes)s::text[]))
   AND NOT (%(live)s::boolean AND ended_at IS NOT NULL)
 ORDER BY run_id LIMIT %(limit)s

-- events --
SELECT seq, type, recorded_at, cause, effect_id, effect_key, attempt, writer, data
  FROM backburner.journal WHERE run_id = %(run_id)s::uuid ORDER BY seq

-- blobs --
SELECT digest, content FROM backburner.blobs WHERE run_id = %(run_id)s::uuid AND digest = ANY (%(digests)s::text[])
