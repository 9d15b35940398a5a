-- What is looked at to say what is wrong. Each statement answers few rows, whatever the size of the tables.

-- process_errors --
SELECT process, code_version AS build, coalesce(error->>'kind', '') AS kind, count(*) AS runs,
       (array_agg(run_id ORDER BY run_id DESC))[1:10]::text[] AS subjects
FROM backburner.runs WHERE state = 'PROCESS_ERROR' GROUP BY 1, 2, 3 ORDER BY runs DESC LIMIT 50

-- halted --
SELECT process, coalesce(halt_reason, '') AS halt_reason, count(*) AS runs,
       (array_agg(run_id ORDER BY run_id DESC))[1:10]::text[] AS subjects
FROM backburner.runs WHERE state = 'HALTED' GROUP BY 1, 2 ORDER BY runs DESC LIMIT 50

-- queued --
-- The oldest effect that could have been dispatched, by namespace and first capability.
SELECT q.namespace, q.capabilities[1] AS capability, count(*) AS waiting,
       (array_agg(q.effect_id ORDER BY q.enqueued_at))[1]::text AS oldest_id,
       extract(epoch FROM clock_timestamp() - min(greatest(q.enqueued_at, q.not_before)))::float8 AS age_s
FROM backburner.dispatch_queue q JOIN backburner.run_heads h ON h.run_id = q.run_id
WHERE q.not_before <= clock_timestamp() AND h.state NOT IN ('HALTED', 'PROCESS_ERROR')
GROUP BY 1, 2 HAVING min(greatest(q.enqueued_at, q.not_before)) < clock_timestamp() - interval '60 s'
ORDER BY age_s DESC LIMIT 50

-- silent --
-- Running attempts whose executor should have ended them for their silence a minute ago.
SELECT e.effect_id::text AS effect_id, e.key, e.run_id::text AS run_id, e.executor_id,
       extract(epoch FROM clock_timestamp() - coalesce(e.last_activity_at, e.started_at, e.dispatched_at))::float8 AS silent_s,
       substring(j.data->'spec'->'timeouts'->>'silence' FROM '^[0-9.]+')::float8 AS limit_s
FROM backburner.effects e JOIN backburner.journal j ON j.run_id = e.run_id AND j.seq = e.requested_seq
WHERE e.state = 'RUNNING' AND j.data->'spec'->'timeouts' ? 'silence'
  AND clock_timestamp() - coalesce(e.last_activity_at, e.started_at, e.dispatched_at)
      > make_interval(secs => 60 + substring(j.data->'spec'->'timeouts'->>'silence' FROM '^[0-9.]+')::float8)
ORDER BY silent_s DESC LIMIT 50

-- executors --
-- Executors that are known and not long gone, with the attempts that they have by pool.
SELECT e.executor_id, e.state, e.version, e.address, e.clock_skew_s, e.ordered_drain, e.pools,
       coalesce(to_jsonb(e)->'harness_checks', '[]') AS harness_checks,  -- an older schema has none
       extract(epoch FROM clock_timestamp() - e.seen_at)::float8 AS silent_s,
       coalesce((SELECT jsonb_object_agg(p.pool, p.n) FROM (
           SELECT f.pool, count(*) AS n FROM backburner.effects f WHERE f.executor_id = e.executor_id
              AND f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING') GROUP BY f.pool) p), '{}') AS attempts
FROM backburner.executors e
WHERE e.seen_at > clock_timestamp() - interval '1 day' OR EXISTS (
    SELECT FROM backburner.effects f WHERE f.executor_id = e.executor_id
       AND f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING'))
ORDER BY e.executor_id LIMIT 1000

-- unowned --
SELECT s.shard, (SELECT count(*) FROM backburner.run_heads h WHERE h.shard = s.shard AND h.open) AS open_runs
FROM backburner.shards s WHERE s.owner IS NULL OR s.expires_at <= clock_timestamp() ORDER BY s.shard

-- schedulers --
SELECT s.scheduler_id, s.version, s.started_at > clock_timestamp() - interval '1 hour' AS young,
       s.seen_at > clock_timestamp() - interval '30 s' AS live,
       coalesce(to_jsonb(s)->'vitals', '{}') AS vitals  -- a schema that is to be migrated may not have them
FROM backburner.schedulers s ORDER BY seen_at DESC LIMIT 1000

-- timer_lag --
SELECT count(*) AS timers, extract(epoch FROM clock_timestamp() - min(t.fire_at))::float8 AS lag_s,
       (array_agg(t.run_id ORDER BY t.fire_at))[1:10]::text[] AS subjects
FROM backburner.timers t JOIN backburner.run_heads h ON h.run_id = t.run_id
WHERE t.fire_at < clock_timestamp() - interval '10 s' AND h.open AND h.state NOT IN ('HALTED', 'PROCESS_ERROR')

-- long_histories --
SELECT h.run_id::text AS run_id, h.seq FROM backburner.run_heads h
WHERE h.open AND h.history_warned ORDER BY h.seq DESC LIMIT 50

-- approvals --
SELECT count(*) AS waiting, extract(epoch FROM clock_timestamp() - min(requested_at))::float8 AS age_s,
       (array_agg(run_id || '/' || key ORDER BY requested_at))[1:10] AS subjects
FROM backburner.effects WHERE state = 'WAITING' AND kind = 'EXTERNAL'

-- sizes --
-- Ids of runs begin with the time of their making: what the runs of a day wrote is read without looking at the journal.
SELECT pg_total_relation_size('backburner.journal') AS journal, pg_total_relation_size('backburner.blobs') AS blobs,
       pg_total_relation_size('backburner.effect_output') AS output, pg_database_size(current_database()) AS database,
       (SELECT coalesce(sum(h.seq), 0)::float8 FROM backburner.run_heads h WHERE h.run_id >= (
           lpad(to_hex((extract(epoch FROM clock_timestamp() - interval '1 day') * 1000)::bigint), 12, '0')
           || repeat('0', 20))::uuid) AS day_rows,
       (SELECT pg_total_relation_size('backburner.journal') / greatest(t.n_live_tup, 1)::float8
           FROM pg_stat_user_tables t WHERE t.relid = 'backburner.journal'::regclass) AS row_bytes,
       w.wal_bytes::float8 AS wal_bytes, extract(epoch FROM clock_timestamp() - w.stats_reset)::float8 AS wal_s
FROM pg_stat_wal w

-- slots --
-- One that nobody reads holds WAL until the disk is full; one that is read may be behind for a while.
SELECT s.slot_name, s.active, s.held::float8 AS held FROM (
    SELECT slot_name, active, pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn) AS held
    FROM pg_replication_slots WHERE restart_lsn IS NOT NULL) s
WHERE s.held > CASE WHEN s.active THEN 4294967296 ELSE 67108864 END ORDER BY s.held DESC LIMIT 50

-- archiver --
SELECT last_failed_wal, extract(epoch FROM clock_timestamp() - last_failed_time)::float8 AS failed_for_s
FROM pg_stat_archiver
WHERE current_setting('archive_mode') <> 'off' AND last_failed_time > coalesce(last_archived_time, '-infinity')

-- dead_tuples --
SELECT relname AS name, n_dead_tup AS dead, n_live_tup AS live FROM pg_stat_user_tables
WHERE schemaname = 'backburner' AND n_dead_tup > 10000 AND n_dead_tup > n_live_tup ORDER BY n_dead_tup DESC LIMIT 20

-- schema --
SELECT max(version) AS version FROM backburner.schema_migrations
