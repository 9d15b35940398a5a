-- What the checks read of a run. Payloads are left in the database: no rule looks into one, and blobs are hashed there.

-- page_of_runs --
SELECT run_id FROM backburner.run_heads
 WHERE %(after)s::uuid IS NULL OR run_id > %(after)s::uuid ORDER BY run_id LIMIT %(limit)s

-- head --
SELECT * FROM backburner.run_heads WHERE run_id = %(run_id)s

-- run --
SELECT state, ended_at, end_seq FROM backburner.runs WHERE run_id = %(run_id)s

-- journal --
SELECT run_id, seq, type, cause, effect_id, effect_key, attempt, recorded_at, writer,
       CASE WHEN type = 'EFFECT_REQUESTED' THEN
                 jsonb_build_object('spec', jsonb_build_object(
                     coalesce((SELECT kind FROM unnest('{external,run,timer}'::text[]) kind
                                WHERE data->'spec' ? kind), 'work'), true),
                     'due', coalesce(data->'spec'->'sleep_until', data->'spec'->'timer'->'fire_at'))
            WHEN type IN ('EFFECT_RESOLVED', 'EFFECT_ATTEMPT_FAILED', 'RUN_RESUMED') THEN
                 jsonb_build_object('state', data->'state', 'reason', data->'error'->'reason',
                                    'due', data->'next_attempt_at', 'next_harness', data->'next_harness')
            WHEN type = 'EFFECT_PARKED' THEN jsonb_build_object(
                     'untouched', data->'untouched', 'due', data->'until', 'reason', data->'error'->'reason')
            WHEN type = 'EFFECT_ATTEMPT_LOST' THEN
                 jsonb_build_object('never_started', data->'never_started', 'due', data->'next_attempt_at')
            WHEN type IN ('TIMER_SET', 'TIMER_FIRED') THEN
                 jsonb_build_object('ordinal', data->'ordinal', 'due', data->'fire_at')
            ELSE '{}' END AS data
  FROM backburner.journal WHERE run_id = %(run_id)s ORDER BY seq

-- effects --
SELECT effect_id, key, state, attempt, starts, max_attempts, requested_seq, settled_seq, on_run_end,
       group_id, group_max
  FROM backburner.effects WHERE run_id = %(run_id)s

-- open_work --
SELECT ARRAY(SELECT q.effect_id FROM backburner.effects e JOIN backburner.dispatch_queue q USING (effect_id)
              WHERE e.run_id = %(run_id)s) AS queued,
       ARRAY(SELECT ordinal FROM backburner.timers WHERE run_id = %(run_id)s) AS timers

-- groups --
SELECT group_id, strategy, max_concurrency, limit_, successes FROM backburner.run_groups WHERE run_id = %(run_id)s

-- blobs --
WITH referred AS (
    SELECT j.seq, coalesce(j.effect_key, '') AS effect_key, ref->>'digest' AS digest,
           (ref->>'size_bytes')::numeric AS size_bytes
    FROM backburner.journal j CROSS JOIN LATERAL unnest(
             CASE WHEN j.effect_id IS NULL THEN ARRAY[j.data->'result'->'blob']
                  ELSE ARRAY[j.data->'result'->'value'->'blob', j.data->'partial'->'value'->'blob',
                             j.data->'refused_data'->'result'->'value'->'blob'] END) ref
    WHERE j.run_id = %(run_id)s AND ref IS NOT NULL
), kept AS (
    SELECT digest, octet_length(content) AS size_bytes, encode(sha256(content), 'hex') = digest AS sound
    FROM backburner.blobs WHERE run_id = %(run_id)s
)
SELECT coalesce(r.seq, 0) AS seq, coalesce(r.effect_key, '') AS effect_key, digest,
       CASE WHEN k.size_bytes IS NULL THEN 'is not kept' WHEN r.seq IS NULL THEN 'is kept, and no row refers to it'
            WHEN NOT k.sound THEN 'is not what its digest says'
            ELSE format('has %%s bytes, not %%s', k.size_bytes, r.size_bytes) END AS problem
  FROM referred r FULL JOIN kept k USING (digest)
 WHERE (r.size_bytes = k.size_bytes AND k.sound) IS NOT TRUE ORDER BY 1, 3

-- usage --
-- What is counted of attempts, against the rows that ended them; and a run's budget against what is counted.
WITH ended AS (
    SELECT DISTINCT ON (j.effect_id, j.attempt) j.seq, j.effect_id, j.effect_key, j.attempt,
           coalesce(j.data->'result'->'usage', j.data->'partial'->'usage') AS usage
    FROM backburner.journal j
    WHERE j.run_id = %(run_id)s AND j.attempt > 0 AND NOT j.data ? 'never_started'
      AND j.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_PARKED', 'EFFECT_RESOLVED', 'EFFECT_CANCELLED')
    ORDER BY j.effect_id, j.attempt, j.seq
), counted AS (
    SELECT u.* FROM backburner.attempt_usage u WHERE u.run_id = %(run_id)s
)
SELECT coalesce(e.seq, 0) AS seq, coalesce(e.effect_key, '') AS effect_key,
       CASE WHEN c.effect_id IS NULL THEN format('the usage of attempt %%s is not counted', e.attempt)
            WHEN e.effect_id IS NULL THEN format('attempt %%s of %%s is counted, and has not ended', c.attempt, c.effect_id)
            ELSE format('of attempt %%s other tokens are counted than its end says', e.attempt) END AS problem
  FROM ended e FULL JOIN counted c ON c.effect_id = e.effect_id AND c.attempt = e.attempt
 WHERE e.effect_id IS NULL
    OR (e.usage IS NOT NULL AND (c.input_tokens + c.output_tokens IS DISTINCT FROM
        coalesce((e.usage->>'input_tokens')::float8, 0) + coalesce((e.usage->>'output_tokens')::float8, 0)))
UNION ALL
SELECT 0, '', format('the budget has %%s tokens used, and %%s are counted', b.used[1], s.tokens)
  FROM backburner.run_budgets b,
       (SELECT coalesce(sum(c.input_tokens + c.output_tokens), 0) AS tokens FROM counted c) s
 WHERE b.run_id = %(run_id)s AND b.used[1] <> s.tokens
   AND NOT EXISTS (SELECT FROM backburner.runs r WHERE r.run_id = b.run_id AND r.previous_run_id IS NOT NULL)
 ORDER BY 1, 3
