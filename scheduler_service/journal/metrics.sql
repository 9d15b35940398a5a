-- What metrics show beside what a diagnosis looks at. Each statement answers few rows, whatever the size of the tables.

-- queue --
-- What waits in the queue, in classes whose members wait for the same, the largest classes first; one member of each,
-- the oldest. `due_s`: for how long that one could have been dispatched; NULL: its time has not come.
SELECT q.namespace, e.harness, e.state, count(*) AS waiting,
       (array_agg(q.effect_id ORDER BY greatest(q.enqueued_at, q.not_before)))[1]::text AS oldest_id,
       CASE WHEN min(q.not_before) <= clock_timestamp()
            THEN extract(epoch FROM clock_timestamp() - min(greatest(q.enqueued_at, q.not_before)))::float8 END AS due_s
FROM backburner.dispatch_queue q JOIN backburner.effects e ON e.effect_id = q.effect_id
     JOIN backburner.run_heads h ON h.run_id = q.run_id
GROUP BY q.namespace, e.harness, e.state, q.capabilities, q.executor_labels, q.pool, q.group_id IS NOT NULL,
         e.continues_on, e.budget IS NOT NULL, q.not_before > clock_timestamp(),
         CASE WHEN h.state IN ('HALTED', 'PROCESS_ERROR') THEN h.state END
ORDER BY waiting DESC, q.namespace, e.harness LIMIT %(most)s

-- queue_size --
SELECT count(*) AS waiting FROM backburner.dispatch_queue

-- examples --
-- Effects of the queue by id, as `effects` of client_reads.sql has them, without payloads.
SELECT e.effect_id, e.run_id, e.key, e.namespace, e.kind, e.name, e.harness, e.pool, e.background, e.state,
       e.attempt, e.capabilities, e.executor_id, e.incarnation, e.executor_labels, e.cancel_reason, e.requested_seq,
       e.settled_seq, e.requested_at, e.dispatched_at, e.started_at, e.settled_at, e.not_before, e.group_id,
       e.group_max, e.continues_on, e.labels, e.poll_interval_s, NULL::jsonb AS progress, NULL::jsonb AS usage,
       NULL::jsonb AS usage_before, CASE WHEN e.budget IS NOT NULL OR EXISTS (
           SELECT FROM backburner.label_budgets l WHERE l.namespace = e.namespace
       ) THEN backburner.budget_awaited_v1(e.effect_id) END AS budget,
       e.last_activity_at, e.elapsed_s,
       h.state AS run_state, h.shard, NULL::jsonb AS spec, NULL::jsonb AS settled, NULL::text AS settled_type,
       NULL::uuid AS child_run_id, NULL::text AS child_state,
       CASE WHEN e.state = 'QUEUED' AND e.not_before IS NOT NULL THEN (
           SELECT l.data ->> 'message' FROM backburner.journal l
           WHERE l.effect_id = e.effect_id AND l.attempt = e.attempt AND l.type = 'EFFECT_ATTEMPT_LOST'
             AND l.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_PARKED')  -- for its index
             AND l.data ->> 'reason' = 'EFFECT_REASON_WORKSPACE_BUSY'
       ) END AS busy,
       CASE WHEN e.group_id IS NOT NULL AND e.state = 'QUEUED' THEN least(e.group_max, (
           SELECT l.limit_ FROM backburner.run_groups l WHERE l.run_id = e.run_id AND l.group_id = e.group_id
       )) END AS group_limit,
       CASE WHEN e.group_id IS NOT NULL AND e.state = 'QUEUED' THEN (
           SELECT count(*) FROM backburner.effects g
           WHERE g.run_id = e.run_id AND g.group_id = e.group_id AND g.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')
       ) ELSE 0 END AS group_open
FROM backburner.effects e JOIN backburner.run_heads h ON h.run_id = e.run_id
WHERE e.effect_id = ANY (%(effect_ids)s::uuid[]) AND e.state IN ('QUEUED', 'PARKED')

-- parked --
SELECT q.namespace, e.harness, count(*) AS effects
FROM backburner.dispatch_queue q JOIN backburner.effects e ON e.effect_id = q.effect_id
WHERE e.state = 'PARKED' GROUP BY 1, 2 ORDER BY effects DESC, 1, 2 LIMIT 1000

-- runs --
SELECT r.namespace, r.state, count(*) AS runs
FROM backburner.runs r WHERE r.ended_at IS NULL GROUP BY 1, 2 ORDER BY runs DESC, 1, 2 LIMIT 1000

-- approvals --
SELECT e.namespace, count(*) AS waiting
FROM backburner.effects e WHERE e.state = 'WAITING' AND e.kind = 'EXTERNAL'
GROUP BY 1 ORDER BY waiting DESC, 1 LIMIT 1000

-- timer_lag --
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(t.fire_at)), 0)::float8 AS lag_s
FROM backburner.timers t JOIN backburner.run_heads h ON h.run_id = t.run_id
WHERE t.fire_at < clock_timestamp() AND h.open AND h.state NOT IN ('HALTED', 'PROCESS_ERROR')

-- usage_hour --
-- What attempts consumed that ended within the hour. The namespaces are looked up one by one, each by the index that
-- begins with them: the hour is read, and not the table.
WITH RECURSIVE spaces AS (
    (SELECT a.namespace, 1 AS n FROM backburner.attempt_usage a ORDER BY a.namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT a.namespace FROM backburner.attempt_usage a WHERE a.namespace > s.namespace
            ORDER BY a.namespace LIMIT 1), s.n + 1
    FROM spaces s WHERE s.namespace IS NOT NULL AND s.n < 1000
)
SELECT u.namespace, u.harness, u.model, sum(u.input_tokens) AS input, sum(u.output_tokens) AS output,
       sum(u.cached_input_tokens) AS cached_input, coalesce(sum(u.cost_usd), 0) AS cost_usd,
       count(*) FILTER (WHERE u.cost_unknown) AS costs_unknown, count(*) AS attempts
FROM spaces s CROSS JOIN LATERAL (
    SELECT * FROM backburner.attempt_usage a
    WHERE a.namespace = s.namespace AND a.ended_at >= clock_timestamp() - interval '1 hour'
) u
GROUP BY 1, 2, 3 ORDER BY cost_usd DESC, sum(u.input_tokens + u.output_tokens) DESC, 1, 2, 3 LIMIT 1000

-- budgets --
-- How much of each label's budget is used, of the unit that it has used most of.
SELECT l.namespace, l.label || '=' || l.value AS label, max(v.used / v.limit_) AS spent
FROM backburner.label_budgets l
     CROSS JOIN LATERAL unnest(l.limits, CASE WHEN l.per_day AND l.day < (clock_timestamp() AT TIME ZONE 'UTC')::date
                                              THEN '{0,0,0,0}'::float8[] ELSE l.used END) AS v(limit_, used)
WHERE v.limit_ > 0
GROUP BY 1, 2 ORDER BY spent DESC, 1, 2 LIMIT %(most)s
