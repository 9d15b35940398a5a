-- For people with psql.

CREATE VIEW v_queue AS
    SELECT namespace, pool, background, capabilities, count(*) AS waiting, min(enqueued_at) AS oldest,
           count(*) FILTER (WHERE not_before > clock_timestamp()) AS not_yet
    FROM dispatch_queue GROUP BY namespace, pool, background, capabilities;
CREATE VIEW v_executors AS
    SELECT e.*, clock_timestamp() - seen_at AS silent_for,
           (SELECT count(*) FROM effects f WHERE f.executor_id = e.executor_id
              AND f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')) AS attempts
    FROM executors e;
CREATE VIEW v_stuck_runs AS
    SELECT run_id, namespace, process, state, created_at, error->>'kind' AS kind, error->>'message' AS message
    FROM runs WHERE state IN ('PROCESS_ERROR', 'HALTED');
CREATE VIEW v_open_approvals AS
    SELECT e.run_id, e.key, e.effect_id, e.requested_at, j.data->'spec'->'external' AS asks
    FROM effects e JOIN journal j ON j.run_id = e.run_id AND j.seq = e.requested_seq
    WHERE e.kind = 'EXTERNAL' AND e.state = 'WAITING';
CREATE VIEW v_shards AS
    SELECT s.*, s.expires_at > clock_timestamp() AS live,
           (SELECT count(*) FROM run_heads h WHERE h.shard = s.shard AND h.open) AS open_runs
    FROM shards s;
