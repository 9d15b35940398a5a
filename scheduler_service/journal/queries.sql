-- Statements of the engine, by name. Writes are calls of functions; reads are plain SELECTs.

-- create_runs --
SELECT * FROM backburner.create_runs_v1(%(items)s::jsonb)

-- append --
SELECT * FROM backburner.append_v1(%(items)s::jsonb)

-- request_cancels --
SELECT * FROM backburner.request_cancels_v1(%(items)s::jsonb)

-- resolve_external --
SELECT * FROM backburner.resolve_external_v1(%(items)s::jsonb)

-- halt_runs --
SELECT * FROM backburner.halt_runs_v1(%(items)s::jsonb)

-- resume_runs --
SELECT * FROM backburner.resume_runs_v1(%(items)s::jsonb)

-- signal_runs --
SELECT * FROM backburner.signal_runs_v1(%(items)s::jsonb)

-- attempts_lost --
SELECT * FROM backburner.attempts_lost_v1(%(items)s::jsonb)

-- readopt --
SELECT * FROM backburner.readopt_v1(%(items)s::jsonb)

-- claim --
SELECT * FROM backburner.claim_v1(%(request)s::jsonb)

-- executor_hello --
SELECT * FROM backburner.executor_hello_v1(%(hello)s::jsonb)

-- executors_seen --
SELECT backburner.executors_seen_v1(%(items)s::jsonb)

-- executor_gone --
SELECT backburner.executor_gone_v1(%(executor_id)s, %(session_no)s)

-- claim_shards --
SELECT * FROM backburner.claim_shards_v1(%(scheduler_id)s, %(address)s, %(version)s, %(ttl_s)s, %(most)s)

-- renew_shards --
SELECT * FROM backburner.renew_shards_v1(%(scheduler_id)s, %(ttl_s)s) AS shard

-- release_shards --
SELECT backburner.release_shards_v1(%(scheduler_id)s)

-- adopt_runs --
SELECT * FROM backburner.adopt_runs_v1(%(scheduler_id)s, %(shard)s, %(epoch)s, %(after)s::uuid, %(most)s)

-- strike --
SELECT backburner.strike_v1(%(run_id)s::uuid, %(epoch)s) AS strikes

-- unadopted --
-- Shards of ours in which another replica has created runs.
SELECT DISTINCT h.shard FROM backburner.run_heads h JOIN backburner.shards s ON s.shard = h.shard
WHERE s.owner = %(scheduler_id)s AND h.open AND h.epoch < s.epoch

-- iteration --
SELECT iteration FROM backburner.run_heads WHERE run_id = %(run_id)s::uuid

-- now --
SELECT clock_timestamp() AS now

-- contract --
SELECT lowest, highest FROM backburner.contract_v1()

-- events --
SELECT seq, type, recorded_at, cause, effect_id, effect_key, attempt, writer, data
FROM backburner.journal WHERE run_id = %(run_id)s::uuid AND seq > %(after)s ORDER BY seq LIMIT %(most)s

-- heads --
SELECT run_id, seq FROM backburner.run_heads WHERE run_id = ANY (%(run_ids)s::uuid[])

-- open_attempts --
SELECT run_id, effect_id, key, attempt, state, executor_id, incarnation, session_no, pool, background,
       cancel_reason, cancel_message,
       extract(epoch FROM clock_timestamp() - dispatched_at)::float8 AS age_s, NULL::int AS executor_session
FROM backburner.effects
WHERE executor_id = %(executor_id)s AND state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')

-- stranded_attempts --
-- Live attempts whose executor has not been heard of, by anybody, for longer than the grace: neither a frame at any
-- replica, nor a commit of its own.
SELECT f.run_id, f.effect_id, f.key, f.attempt, f.state, f.executor_id, f.incarnation, f.session_no, f.pool,
       f.background, f.cancel_reason, f.cancel_message,
       extract(epoch FROM clock_timestamp() - f.dispatched_at)::float8 AS age_s, e.session_no AS executor_session
FROM backburner.executors e JOIN backburner.effects f ON f.executor_id = e.executor_id
WHERE f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')
  AND clock_timestamp() - make_interval(secs => %(grace_s)s)
      > greatest(f.dispatched_at, f.last_activity_at,
                 CASE WHEN f.incarnation = e.incarnation THEN e.seen_at ELSE e.connected_at END)
ORDER BY f.effect_id LIMIT 1000

-- flagged_attempts --
SELECT run_id, effect_id, attempt, executor_id, cancel_reason AS reason, cancel_message AS message
FROM backburner.effects WHERE executor_id = ANY (%(executor_ids)s) AND state = 'CANCELLING'

-- deadlines_due --
SELECT f.run_id, f.effect_id, f.key AS effect_key, f.attempt,
       CASE WHEN f.total_deadline <= clock_timestamp() THEN 'TIMEOUT_TOTAL' ELSE 'TIMEOUT_SCHEDULE_TO_START' END AS reason,
       h.open, h.epoch, h.iteration
FROM backburner.effects f JOIN backburner.run_heads h USING (run_id)
WHERE f.state IN ('QUEUED', 'WAITING', 'PARKED')
  AND least(f.queue_deadline, f.total_deadline) <= clock_timestamp()
  AND (f.total_deadline <= clock_timestamp() OR f.starts = 0)
  AND h.shard = ANY (%(shards)s) AND h.state NOT IN ('HALTED', 'PROCESS_ERROR')
ORDER BY least(f.queue_deadline, f.total_deadline) LIMIT 500

-- open_effects --
SELECT effect_id, key, state, on_run_end, cancel_reason
FROM backburner.effects WHERE run_id = %(run_id)s::uuid AND settled_seq IS NULL ORDER BY requested_seq

-- known_durations --
-- Medians of the latest successes, by name.
SELECT namespace, name, percentile_cont(0.5) WITHIN GROUP (ORDER BY elapsed_s) AS median
FROM (SELECT namespace, name, elapsed_s, row_number() OVER (PARTITION BY namespace, name ORDER BY settled_at DESC) AS n
      FROM (SELECT * FROM backburner.effects WHERE state = 'SUCCEEDED' AND elapsed_s IS NOT NULL AND kind <> 'FUNCTION'
            ORDER BY settled_at DESC LIMIT 20000) latest) ranked
WHERE n <= 21 GROUP BY namespace, name LIMIT 2000
