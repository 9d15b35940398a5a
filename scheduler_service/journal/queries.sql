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

-- open_clients --
SELECT * FROM backburner.open_clients_v1(%(items)s::jsonb)

-- client_requests --
SELECT * FROM backburner.client_requests_v1(%(items)s::jsonb)

-- finish_runs --
SELECT * FROM backburner.finish_runs_v1(%(items)s::jsonb)

-- halt_idle --
SELECT * FROM backburner.halt_idle_v1(%(items)s::jsonb)

-- set_holds --
SELECT * FROM backburner.set_holds_v1(%(items)s::jsonb)

-- reset_breakers --
SELECT * FROM backburner.reset_breakers_v1(%(items)s::jsonb)

-- audit --
SELECT * FROM backburner.audit_v1(%(items)s::jsonb)

-- prune_runs --
SELECT * FROM backburner.prune_runs_v1(%(request)s::jsonb)

-- drain_executors --
SELECT * FROM backburner.drain_executors_v1(%(items)s::jsonb)

-- expire_executors --
SELECT * FROM backburner.expire_executors_v1(%(items)s::jsonb)

-- order_settlements --
SELECT * FROM backburner.order_settlements_v1(%(items)s::jsonb)

-- settle_by_hand --
SELECT * FROM backburner.settle_by_hand_v1(%(items)s::jsonb)

-- executor_orders --
-- What became of the sessions of these executors, and what operators want of them.
SELECT executor_id, incarnation, session_no, state, ordered_drain
FROM backburner.executors WHERE executor_id = ANY (%(executor_ids)s)

-- expired_attempts --
-- Live attempts, in these shards, of incarnations that an operator, or their successor, has declared dead since.
SELECT f.run_id, f.effect_id, f.attempt, f.executor_id, x.actor, x.reason
FROM backburner.executor_expiries x
     JOIN backburner.effects f ON f.executor_id = x.executor_id AND f.incarnation = x.incarnation
     JOIN backburner.run_heads h ON h.run_id = f.run_id
WHERE f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING') AND f.dispatched_at <= x.expired_at
  AND h.shard = ANY (%(shards)s)
ORDER BY f.effect_id LIMIT 1000

-- settle_orders --
-- Effects in these shards that an operator wants settled.
SELECT o.run_id, o.effect_id FROM backburner.settle_orders o JOIN backburner.run_heads h ON h.run_id = o.run_id
WHERE h.shard = ANY (%(shards)s) ORDER BY o.effect_id LIMIT 500

-- clients_seen --
SELECT * FROM backburner.clients_seen_v1(%(run_ids)s::uuid[])

-- attempts_lost --
SELECT * FROM backburner.attempts_lost_v1(%(items)s::jsonb)

-- readopt --
SELECT * FROM backburner.readopt_v1(%(items)s::jsonb)

-- claim --
SELECT * FROM backburner.claim_v1(%(request)s::jsonb)

-- executor_hello --
SELECT * FROM backburner.executor_hello_v1(%(hello)s::jsonb)

-- executor_found --
SELECT backburner.executor_found_v1(%(found)s::jsonb)

-- executors_seen --
SELECT backburner.executors_seen_v1(%(items)s::jsonb)

-- executor_gone --
SELECT backburner.executor_gone_v1(%(executor_id)s, %(session_no)s)

-- claim_shards --
SELECT * FROM backburner.claim_shards_v1(%(scheduler_id)s, %(address)s, %(version)s, %(ttl_s)s, %(most)s)

-- renew_shards --
SELECT * FROM backburner.renew_shards_v3(
    %(scheduler_id)s, %(address)s, %(version)s, %(ttl_s)s, %(draining)s, %(vitals)s::jsonb
)

-- release_shards --
SELECT backburner.release_shards_v2(%(scheduler_id)s, %(shards)s::int[])

-- adopt_runs --
SELECT * FROM backburner.adopt_runs_v1(%(scheduler_id)s, %(shard)s, %(epoch)s, %(after)s::uuid, %(most)s)

-- strike --
SELECT backburner.strike_v1(%(run_id)s::uuid, %(epoch)s) AS strikes

-- adopt_created --
SELECT * FROM backburner.adopt_created_v1(%(scheduler_id)s, %(run_ids)s::uuid[])

-- created_elsewhere --
SELECT h.run_id FROM backburner.shards s JOIN backburner.run_heads h ON h.shard = s.shard
WHERE s.owner = %(scheduler_id)s AND h.open AND h.epoch = 0 LIMIT %(most)s

-- quiet_runs --
SELECT run_id FROM backburner.run_heads
WHERE shard = %(shard)s AND open AND run_id > coalesce(%(after)s::uuid, '00000000-0000-0000-0000-000000000000')
  AND recorded_at < clock_timestamp() - make_interval(secs => %(quiet_s)s)
ORDER BY run_id LIMIT %(most)s

-- replicas --
SELECT scheduler_id, address, version, started_at, seen_at, lease_until, draining, live, shards::int
FROM backburner.v_schedulers ORDER BY scheduler_id

-- report_missing --
SELECT * FROM backburner.report_missing_v1(%(items)s::jsonb)

-- take_missing --
SELECT backburner.take_missing_v1(%(shards)s::int[]) AS item

-- owners --
SELECT shard, owner FROM backburner.shards WHERE owner IS NOT NULL AND expires_at > clock_timestamp()

-- iteration --
SELECT iteration FROM backburner.run_heads WHERE run_id = %(run_id)s::uuid

-- now --
SELECT clock_timestamp() AS now

-- contract --
SELECT lowest, highest, (SELECT max(version) FROM backburner.schema_migrations) AS schema_version
FROM backburner.contract_v1()

-- events --
SELECT seq, type, recorded_at, cause, effect_id, effect_key, attempt, writer, data
FROM backburner.journal WHERE run_id = %(run_id)s::uuid AND seq > %(after)s ORDER BY seq LIMIT %(most)s

-- blobs --
SELECT digest, content FROM backburner.blobs WHERE run_id = %(run_id)s::uuid AND digest = ANY (%(digests)s)

-- heads --
SELECT run_id, seq FROM backburner.run_heads WHERE run_id = ANY (%(run_ids)s::uuid[])

-- open_attempts --
SELECT run_id, effect_id, key, name, attempt, state, executor_id, incarnation, session_no, pool, background,
       cancel_reason, cancel_message,
       extract(epoch FROM clock_timestamp() - dispatched_at)::float8 AS age_s, NULL::int AS executor_session,
       EXISTS (SELECT FROM backburner.executor_expiries x WHERE x.executor_id = f.executor_id
               AND x.incarnation = f.incarnation AND f.dispatched_at <= x.expired_at) AS expired
FROM backburner.effects f
WHERE executor_id = %(executor_id)s AND state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')

-- stranded_attempts --
-- Live attempts whose executor has not been heard of, by anybody, for longer than the grace: neither a frame at any
-- replica, nor a commit of its own.
SELECT f.run_id, f.effect_id, f.key, f.name, f.attempt, f.state, f.executor_id, f.incarnation, f.session_no, f.pool,
       f.background, f.cancel_reason, f.cancel_message,
       extract(epoch FROM clock_timestamp() - f.dispatched_at)::float8 AS age_s, e.session_no AS executor_session
FROM backburner.executors e JOIN backburner.effects f ON f.executor_id = e.executor_id
WHERE f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')
  AND clock_timestamp() - make_interval(secs => %(grace_s)s)
      > greatest(f.dispatched_at, f.last_activity_at,
                 CASE WHEN f.incarnation = e.incarnation THEN e.seen_at
                      ELSE (e.earlier->>f.incarnation)::timestamptz END)
ORDER BY f.effect_id LIMIT 1000

-- flagged_attempts --
SELECT run_id, effect_id, attempt, executor_id, cancel_reason AS reason, cancel_message AS message
FROM backburner.effects WHERE executor_id = ANY (%(executor_ids)s) AND state = 'CANCELLING'

-- deadlines_due --
-- Effects that nobody runs and whose time is over; timers that are due, of runs that have ended without them; and queued
-- effects whose budget is spent and is none that asks.
(SELECT f.run_id, f.effect_id, f.key AS effect_key, f.attempt, f.kind,
       CASE WHEN f.total_deadline <= clock_timestamp() THEN 'TIMEOUT_TOTAL' ELSE 'TIMEOUT_SCHEDULE_TO_START' END AS reason,
       h.open, h.epoch, h.iteration, NULL::jsonb AS spent
FROM backburner.effects f JOIN backburner.run_heads h USING (run_id)
WHERE f.state IN ('QUEUED', 'WAITING', 'PARKED') AND f.cancel_reason IS NULL
  AND least(f.queue_deadline, f.total_deadline) <= clock_timestamp()
  AND (f.total_deadline <= clock_timestamp() OR f.starts = 0)
  AND h.shard = ANY (%(shards)s) AND h.state NOT IN ('HALTED', 'PROCESS_ERROR')
ORDER BY least(f.queue_deadline, f.total_deadline) LIMIT 500)
UNION ALL
(SELECT f.run_id, f.effect_id, f.key, f.attempt, f.kind, '', h.open, h.epoch, h.iteration, NULL
FROM backburner.effects f JOIN backburner.run_heads h USING (run_id)
WHERE f.kind = 'TIMER' AND f.state = 'WAITING' AND f.not_before <= clock_timestamp() AND f.cancel_reason IS NULL
  AND h.shard = ANY (%(shards)s) AND NOT h.open
ORDER BY f.not_before LIMIT 500)
UNION ALL
SELECT s.run_id, s.effect_id, s.effect_key, s.attempt, s.kind, 'BUDGET', s.open, s.epoch, s.iteration, s.spent
FROM backburner.spent_effects_v1(%(shards)s::int[]) s

-- set_budgets --
SELECT * FROM backburner.set_budgets_v1(%(items)s::jsonb)

-- idle_clients --
-- Client-driven runs in these shards whose client has been silent for too long, or that are watched for nothing.
SELECT c.run_id FROM backburner.client_runs c JOIN backburner.run_heads h USING (run_id)
WHERE c.idle_at <= clock_timestamp() AND h.shard = ANY (%(shards)s) ORDER BY c.idle_at LIMIT 500

-- open_effects --
SELECT effect_id, key, state, on_run_end, cancel_reason
FROM backburner.effects WHERE run_id = %(run_id)s::uuid AND settled_seq IS NULL ORDER BY requested_seq

-- known_durations --
-- How long the latest successes took, by name, oldest first. Functions are left out: they are many, and over soon.
SELECT namespace, name, elapsed_s
FROM (SELECT namespace, name, elapsed_s, settled_at,
             row_number() OVER (PARTITION BY namespace, name ORDER BY settled_at DESC) AS n
      FROM (SELECT * FROM backburner.effects WHERE state = 'SUCCEEDED' AND elapsed_s IS NOT NULL AND kind <> 'FUNCTION'
            ORDER BY settled_at DESC LIMIT 20000) latest) ranked
WHERE n <= 21 ORDER BY settled_at
