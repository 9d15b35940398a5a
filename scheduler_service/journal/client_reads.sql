-- What clients see of runs and effects. Read by client_reads.py; every statement is a plain SELECT.
-- Payloads come with their size summed up in page order, so that a page ends before it outgrows an answer.

-- run --
-- One run by id or by key. The event that ended it is the last of its kind up to end_seq.
SELECT r.run_id, r.namespace, r.key, r.process, r.client_driven, r.state, r.labels, r.parent_run_id,
       r.parent_effect_id, r.created_at, r.ended_at, r.cancel_requested_at, r.cancel_reason, r.halt_reason, r.report, r.error,
       r.previous_run_id, r.next_run_id, r.unobserved_failures, h.seq AS head_seq, h.shard, h.recorded_at AS updated_at,
       coalesce(c.epoch, 0) AS client_epoch, coalesce(c.idle_halt AND r.state = 'HALTED', false) AS client_idle,
       created.data -> 'input' AS input, ended.result,
       (SELECT CASE WHEN count(*) > 0 THEN jsonb_strip_nulls(jsonb_build_object(
            'input_tokens', sum(u.input_tokens), 'output_tokens', sum(u.output_tokens),
            'cached_input_tokens', sum(u.cached_input_tokens), 'cost_usd', sum(u.cost_usd), 'turns', sum(u.turns),
            'costs_unknown', count(*) FILTER (WHERE u.cost_unknown))) END
        FROM (SELECT a.input_tokens, a.output_tokens, a.cached_input_tokens, a.cost_usd, a.turns, a.cost_unknown
              FROM backburner.attempt_usage a WHERE a.run_id = r.run_id
                  AND (a.input_tokens + a.output_tokens + a.turns + coalesce(a.cost_usd, 0) > 0 OR a.cost_unknown)
              UNION ALL
              SELECT coalesce((o.usage->>'input_tokens')::float8, 0), coalesce((o.usage->>'output_tokens')::float8, 0),
                     coalesce((o.usage->>'cached_input_tokens')::float8, 0), (o.usage->>'cost_usd')::float8,
                     coalesce((o.usage->>'turns')::int, 0), NOT o.usage ? 'cost_usd'
              FROM backburner.effects o WHERE o.run_id = r.run_id AND o.settled_seq IS NULL AND o.usage IS NOT NULL
                  AND o.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')) u) AS usage,
       (SELECT jsonb_object_agg(s.state, s.n) FROM (
           SELECT e.state, count(*) AS n FROM backburner.effects e WHERE e.run_id = r.run_id GROUP BY e.state
       ) s) AS counts
FROM backburner.runs r
JOIN backburner.run_heads h USING (run_id)
LEFT JOIN backburner.client_runs c USING (run_id)
LEFT JOIN backburner.journal created ON %(full)s AND created.run_id = r.run_id AND created.seq = 1
LEFT JOIN LATERAL (
    SELECT j.data -> 'result' AS result FROM backburner.journal j
    WHERE %(full)s AND j.run_id = r.run_id AND j.seq <= r.end_seq AND j.type = 'RUN_COMPLETED'
    ORDER BY j.seq DESC LIMIT 1
) ended ON r.state = 'COMPLETED'
WHERE r.namespace = %(namespace)s
  AND ((%(run_id)s::uuid IS NOT NULL AND r.run_id = %(run_id)s::uuid)
    OR (%(key)s::text IS NOT NULL AND r.key = %(key)s::text AND r.state <> 'CONTINUED'));

-- progress_of --
-- State and head of a run.
SELECT r.state, h.seq AS head_seq FROM backburner.runs r JOIN backburner.run_heads h USING (run_id)
WHERE r.namespace = %(namespace)s AND r.run_id = %(run_id)s::uuid;

-- runs --
-- A page of runs, newest first.
WITH page AS (
    SELECT r.*, row_number() OVER (ORDER BY r.run_id DESC) AS n
    FROM backburner.runs r
    WHERE r.namespace = %(namespace)s
      AND (%(before)s::uuid IS NULL OR r.run_id < %(before)s::uuid)
      AND (%(states)s::text[] IS NULL OR r.state = ANY (%(states)s::text[]))
      AND (%(processes)s::text[] IS NULL OR r.process = ANY (%(processes)s::text[]))
      AND (%(labels)s::jsonb IS NULL OR r.labels @> %(labels)s::jsonb)
      AND (%(created_after)s::timestamptz IS NULL OR r.created_at >= %(created_after)s::timestamptz)
      AND (%(created_before)s::timestamptz IS NULL OR r.created_at < %(created_before)s::timestamptz)
    ORDER BY r.run_id DESC
    LIMIT %(limit)s
), filled AS (
    SELECT p.*, created.data -> 'input' AS input, ended.result
    FROM page p
    LEFT JOIN backburner.journal created ON %(full)s AND created.run_id = p.run_id AND created.seq = 1
    LEFT JOIN LATERAL (
        SELECT j.data -> 'result' AS result FROM backburner.journal j
        WHERE %(full)s AND j.run_id = p.run_id AND j.seq <= p.end_seq AND j.type = 'RUN_COMPLETED'
        ORDER BY j.seq DESC LIMIT 1
    ) ended ON p.state = 'COMPLETED'
), sized AS (
    SELECT f.*, count(*) OVER () AS found,
           sum(octet_length(coalesce(f.input::text, '')) + octet_length(coalesce(f.result::text, ''))
               + octet_length(f.labels::text) + octet_length(coalesce(f.report::text, ''))
               + octet_length(coalesce(f.error::text, '')) + 500) OVER (ORDER BY f.n) AS bytes
    FROM filled f
)
SELECT s.run_id, s.namespace, s.key, s.process, s.client_driven, s.state, s.labels, s.parent_run_id,
       s.parent_effect_id, s.created_at, s.ended_at, s.cancel_requested_at, s.cancel_reason, s.halt_reason, s.report, s.error,
       s.previous_run_id, s.next_run_id, s.unobserved_failures, h.seq AS head_seq, h.shard, h.recorded_at AS updated_at, s.input, s.result,
       coalesce(c.epoch, 0) AS client_epoch, coalesce(c.idle_halt AND s.state = 'HALTED', false) AS client_idle,
       (SELECT CASE WHEN count(*) > 0 THEN jsonb_strip_nulls(jsonb_build_object(
            'input_tokens', sum(u.input_tokens), 'output_tokens', sum(u.output_tokens),
            'cached_input_tokens', sum(u.cached_input_tokens), 'cost_usd', sum(u.cost_usd), 'turns', sum(u.turns),
            'costs_unknown', count(*) FILTER (WHERE u.cost_unknown))) END
        FROM (SELECT a.input_tokens, a.output_tokens, a.cached_input_tokens, a.cost_usd, a.turns, a.cost_unknown
              FROM backburner.attempt_usage a WHERE a.run_id = s.run_id
                  AND (a.input_tokens + a.output_tokens + a.turns + coalesce(a.cost_usd, 0) > 0 OR a.cost_unknown)
              UNION ALL
              SELECT coalesce((o.usage->>'input_tokens')::float8, 0), coalesce((o.usage->>'output_tokens')::float8, 0),
                     coalesce((o.usage->>'cached_input_tokens')::float8, 0), (o.usage->>'cost_usd')::float8,
                     coalesce((o.usage->>'turns')::int, 0), NOT o.usage ? 'cost_usd'
              FROM backburner.effects o WHERE o.run_id = s.run_id AND o.settled_seq IS NULL AND o.usage IS NOT NULL
                  AND o.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')) u) AS usage,
       NULL::jsonb AS counts, s.found
FROM sized s
JOIN backburner.run_heads h USING (run_id)
LEFT JOIN backburner.client_runs c USING (run_id)
WHERE s.n = 1 OR s.bytes <= %(bytes_max)s
ORDER BY s.n;

-- effects --
-- A page of effects, newest first. `keys`: the effects of one run by key, whatever their number.
WITH page AS (
    SELECT e.*, h.state AS run_state, h.shard,
           row_number() OVER (ORDER BY e.requested_at DESC, e.effect_id DESC) AS n
    FROM backburner.effects e
    JOIN backburner.run_heads h USING (run_id)
    WHERE e.namespace = %(namespace)s
      AND (%(effect_id)s::uuid IS NULL OR e.effect_id = %(effect_id)s::uuid)
      AND (%(run_id)s::uuid IS NULL OR e.run_id = %(run_id)s::uuid)
      AND (%(keys)s::text[] IS NULL OR e.key = ANY (%(keys)s::text[]))
      AND (%(states)s::text[] IS NULL OR e.state = ANY (%(states)s::text[]))
      AND (%(kinds)s::text[] IS NULL OR e.kind = ANY (%(kinds)s::text[]))
      AND (%(harnesses)s::text[] IS NULL OR e.harness = ANY (%(harnesses)s::text[]))
      AND (%(labels)s::jsonb IS NULL OR e.labels @> %(labels)s::jsonb)
      AND (NOT %(open_only)s OR e.settled_seq IS NULL)
      AND (%(requested_after)s::timestamptz IS NULL OR e.requested_at >= %(requested_after)s::timestamptz)
      AND (%(requested_before)s::timestamptz IS NULL OR e.requested_at < %(requested_before)s::timestamptz)
      AND (%(before_time)s::timestamptz IS NULL
           OR (e.requested_at, e.effect_id) < (%(before_time)s::timestamptz, %(before_id)s::uuid))
    ORDER BY e.requested_at DESC, e.effect_id DESC
    LIMIT %(limit)s
), sized AS (
    SELECT p.*, asked.data -> 'spec' AS spec,
           CASE WHEN %(full)s THEN settled.data ELSE settled.data - 'result' - 'partial' END AS settled,
           settled.type AS settled_type, count(*) OVER () AS found,
           sum(octet_length(coalesce((asked.data -> 'spec')::text, ''))
               + octet_length(coalesce((CASE WHEN %(full)s THEN settled.data
                                        ELSE settled.data - 'result' - 'partial' END)::text, ''))
               + octet_length(p.labels::text) + octet_length(coalesce(p.progress::text, '')) + 500)
               OVER (ORDER BY p.n) AS bytes
    FROM page p
    LEFT JOIN backburner.journal asked ON %(full)s AND asked.run_id = p.run_id AND asked.seq = p.requested_seq
    LEFT JOIN backburner.journal settled ON settled.run_id = p.run_id AND settled.seq = p.settled_seq
)
SELECT s.effect_id, s.run_id, s.key, s.namespace, s.kind, s.name, s.harness, s.pool, s.background, s.state,
       s.attempt, s.capabilities, s.executor_id, s.incarnation, s.executor_labels, s.cancel_reason, s.requested_seq,
       s.settled_seq, s.requested_at, s.dispatched_at, s.started_at, s.settled_at, s.not_before, s.group_id,
       s.group_max, s.continues_on, s.labels, s.poll_interval_s, s.progress, backburner.add_usage(s.usage_before, s.usage) AS usage,
       s.usage_before, CASE WHEN s.state IN ('QUEUED', 'PARKED') AND (s.budget IS NOT NULL OR EXISTS (
           SELECT FROM backburner.label_budgets l WHERE l.namespace = s.namespace
       )) THEN backburner.budget_awaited_v1(s.effect_id) END AS budget,
       CASE WHEN s.state = 'QUEUED' AND s.not_before IS NOT NULL THEN (
           SELECT l.data ->> 'message' FROM backburner.journal l
           WHERE l.effect_id = s.effect_id AND l.attempt = s.attempt AND l.type = 'EFFECT_ATTEMPT_LOST'
             AND l.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_PARKED')  -- for its index
             AND l.data ->> 'reason' = 'EFFECT_REASON_WORKSPACE_BUSY'
       ) END AS busy,
       s.last_activity_at, s.elapsed_s,
       s.run_state, s.shard, s.spec, s.settled, s.settled_type, s.found, child.run_id AS child_run_id,
       child.state AS child_state,
       CASE WHEN s.group_id IS NOT NULL AND s.state = 'QUEUED' THEN least(s.group_max, (
           SELECT l.limit_ FROM backburner.run_groups l WHERE l.run_id = s.run_id AND l.group_id = s.group_id
       )) END AS group_limit,
       CASE WHEN s.group_id IS NOT NULL AND s.state = 'QUEUED' THEN (
           SELECT count(*) FROM backburner.effects g
           WHERE g.run_id = s.run_id AND g.group_id = s.group_id AND g.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')
       ) ELSE 0 END AS group_open
FROM sized s
LEFT JOIN backburner.runs child ON s.kind = 'RUN' AND child.parent_effect_id = s.effect_id AND child.state <> 'CONTINUED'
WHERE s.n = 1 OR s.bytes <= %(bytes_max)s
ORDER BY s.n;

-- causes --
-- The newest open effects of each of some runs, at most so many of each. No payloads, and nothing settled.
SELECT e.effect_id, e.run_id, e.key, e.namespace, e.kind, e.name, e.harness, e.pool, e.background, e.state,
       e.attempt, e.capabilities, e.executor_id, e.incarnation, e.executor_labels, e.cancel_reason, e.requested_seq,
       e.settled_seq, e.requested_at, e.dispatched_at, e.started_at, e.settled_at, e.not_before, e.group_id,
       e.group_max, e.continues_on, e.labels, e.poll_interval_s, e.progress, backburner.add_usage(e.usage_before, e.usage) AS usage,
       e.usage_before, CASE WHEN e.state IN ('QUEUED', 'PARKED') AND (e.budget IS NOT NULL OR EXISTS (
           SELECT FROM backburner.label_budgets l WHERE l.namespace = e.namespace
       )) THEN backburner.budget_awaited_v1(e.effect_id) END AS budget,
       CASE WHEN e.state = 'QUEUED' AND e.not_before IS NOT NULL THEN (
           SELECT l.data ->> 'message' FROM backburner.journal l
           WHERE l.effect_id = e.effect_id AND l.attempt = e.attempt AND l.type = 'EFFECT_ATTEMPT_LOST'
             AND l.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_PARKED')  -- for its index
             AND l.data ->> 'reason' = 'EFFECT_REASON_WORKSPACE_BUSY'
       ) END AS busy,
       e.last_activity_at, e.elapsed_s,
       h.state AS run_state, h.shard, NULL::jsonb AS spec, NULL::jsonb AS settled, NULL::text AS settled_type,
       CASE WHEN e.group_id IS NOT NULL AND e.state = 'QUEUED' THEN least(e.group_max, (
           SELECT l.limit_ FROM backburner.run_groups l WHERE l.run_id = e.run_id AND l.group_id = e.group_id
       )) END AS group_limit,
       child.run_id AS child_run_id, child.state AS child_state,
       CASE WHEN e.group_id IS NOT NULL AND e.state = 'QUEUED' THEN (
           SELECT count(*) FROM backburner.effects g
           WHERE g.run_id = e.run_id AND g.group_id = e.group_id AND g.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')
       ) ELSE 0 END AS group_open
FROM backburner.run_heads h
CROSS JOIN LATERAL (
    SELECT * FROM backburner.effects o
    WHERE o.run_id = h.run_id AND o.settled_seq IS NULL
    ORDER BY o.requested_at DESC, o.effect_id DESC
    LIMIT %(each)s
) e
LEFT JOIN backburner.runs child ON e.kind = 'RUN' AND child.parent_effect_id = e.effect_id AND child.state <> 'CONTINUED'
WHERE h.run_id = ANY (%(run_ids)s::uuid[])
ORDER BY e.run_id, e.requested_at DESC, e.effect_id DESC;

-- tallies --
-- The next timer of each of some runs, and its effects by state.
SELECT h.run_id,
       (SELECT min(t.fire_at) FROM backburner.timers t WHERE t.run_id = h.run_id) AS next_timer,
       (SELECT jsonb_object_agg(s.state, s.n) FROM (
           SELECT e.state, count(*) AS n FROM backburner.effects e WHERE e.run_id = h.run_id GROUP BY e.state
       ) s) AS counts
FROM backburner.run_heads h
WHERE h.run_id = ANY (%(run_ids)s::uuid[]);

-- unsettled --
-- How many of the named effects exist, and how many of them have not settled.
SELECT count(*) AS known, count(*) FILTER (WHERE e.settled_seq IS NULL) AS unsettled
FROM backburner.effects e
WHERE e.run_id = %(run_id)s::uuid AND e.key = ANY (%(keys)s::text[]);

-- events --
-- Journal rows after a position, in order, at most so many and so many bytes.
SELECT p.run_id, p.seq, p.type, p.cause, p.effect_id, p.effect_key, p.attempt, p.recorded_at, p.writer, p.data,
       p.found
FROM (
    SELECT j.*, count(*) OVER () AS found, row_number() OVER (ORDER BY j.seq) AS n,
           sum(octet_length(j.data::text) + 200) OVER (ORDER BY j.seq) AS bytes
    FROM (
        SELECT * FROM backburner.journal
        WHERE run_id = %(run_id)s::uuid AND seq > %(after_seq)s
        ORDER BY seq
        LIMIT %(limit)s
    ) j
) p
WHERE p.bytes <= %(bytes_max)s OR p.n = 1
ORDER BY p.seq;

-- timers --
-- The next timers of a run.
SELECT fire_at FROM backburner.timers WHERE run_id = %(run_id)s::uuid ORDER BY fire_at LIMIT 1;

-- executors --
-- Executors by name, after a name.
SELECT x.*, x.seen_at > now() - interval '1 minute' AS fresh
FROM (SELECT e.executor_id, e.incarnation, e.session_no, e.holder, e.address, e.namespace, e.pools, e.capabilities,
             e.labels, e.version, e.connected_at, e.seen_at, e.clock_skew_s, e.harness_checks,
             CASE WHEN e.state = 'CONNECTED' AND e.ordered_drain IS NOT NULL THEN 'DRAINING' ELSE e.state END AS state
      FROM backburner.executors e) x
WHERE (%(after)s::text IS NULL OR x.executor_id > %(after)s::text)
  AND (%(states)s::text[] IS NULL OR x.state = ANY (%(states)s::text[]))
  AND (%(executor_id)s::text IS NULL OR x.executor_id = %(executor_id)s::text)
ORDER BY x.executor_id
LIMIT %(limit)s;

-- pruned --
-- The tombstone of a run, by id or by key.
SELECT run_id, ended_at, pruned_at FROM backburner.pruned_runs
WHERE namespace = %(namespace)s
  AND ((%(run_id)s::uuid IS NOT NULL AND run_id = %(run_id)s::uuid)
    OR (%(key)s::text IS NOT NULL AND key = %(key)s::text AND state <> 'CONTINUED'));

-- matching --
-- Runs for a bulk action, newest first, and how many follow them.
SELECT r.run_id, count(*) OVER () AS found
FROM backburner.runs r
WHERE r.namespace = %(namespace)s AND r.state = ANY (%(states)s::text[])
  AND (%(before)s::uuid IS NULL OR r.run_id < %(before)s::uuid)
  AND (%(processes)s::text[] IS NULL OR r.process = ANY (%(processes)s::text[]))
  AND (%(labels)s::jsonb IS NULL OR r.labels @> %(labels)s::jsonb)
  AND NOT (%(uncancelled)s AND r.cancel_requested_at IS NOT NULL)
ORDER BY r.run_id DESC
LIMIT %(limit)s;

-- holds --
-- Holds in force, oldest first.
SELECT hold_id, namespace, harness, executor_id, labels, until, reason, actor, created_at
FROM backburner.dispatch_holds
WHERE coalesce(until, 'infinity') > clock_timestamp()
ORDER BY created_at, hold_id;

-- breakers --
SELECT namespace, harness, account, executor_id, reason, message, opened_at, failed_at, until, reset_known,
       coalesce((to_jsonb(b)->>'selective')::boolean, false) AS selective  -- doctor reads older schemas too
FROM backburner.provider_breakers b
ORDER BY namespace, harness, account, executor_id
LIMIT 1000;

-- audit --
-- What operators did, newest first, before a position.
SELECT audit_id, recorded_at, action, subject, actor, reason, detail
FROM backburner.operator_audit
WHERE (%(before)s::bigint IS NULL OR audit_id < %(before)s::bigint)
  AND (%(subject)s::text IS NULL OR subject = %(subject)s::text)
ORDER BY audit_id DESC
LIMIT %(limit)s;

-- usage --
-- What attempts consumed, by a group; the row whose key is NULL is the total. Of what retention has removed, days.
WITH counted AS (
    SELECT a.run_id, a.process, a.harness, a.model, a.labels, 1::bigint AS attempts, 0 AS open, a.input_tokens,
           a.output_tokens, a.cached_input_tokens, a.cost_usd, a.cost_unknown::int::bigint AS unknown, a.turns::bigint, a.wall_s
    FROM backburner.attempt_usage a
    WHERE a.namespace = %(namespace)s AND (%(run_id)s::uuid IS NULL OR a.run_id = %(run_id)s::uuid)
      AND (%(since)s::timestamptz IS NULL OR a.ended_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR a.ended_at < %(until)s::timestamptz)
    UNION ALL
    SELECT e.run_id, r.process, e.harness, coalesce(e.usage->>'model', ''), r.labels || e.labels, 0, 1,
           coalesce((e.usage->>'input_tokens')::float8, 0), coalesce((e.usage->>'output_tokens')::float8, 0),
           coalesce((e.usage->>'cached_input_tokens')::float8, 0), (e.usage->>'cost_usd')::float8,
           (e.usage IS NOT NULL AND NOT e.usage ? 'cost_usd')::int, coalesce((e.usage->>'turns')::int, 0),
           extract(epoch FROM clock_timestamp() - coalesce(e.started_at, e.dispatched_at))::float8
    FROM backburner.effects e JOIN backburner.runs r ON r.run_id = e.run_id
    WHERE %(until)s::timestamptz IS NULL AND e.namespace = %(namespace)s AND e.executor_id IS NOT NULL
      AND e.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING') AND (e.kind <> 'FUNCTION' OR e.usage IS NOT NULL)
      AND (%(run_id)s::uuid IS NULL OR e.run_id = %(run_id)s::uuid)
    UNION ALL
    SELECT NULL, d.process, d.harness, d.model, d.labels, d.attempts, 0, d.input_tokens, d.output_tokens,
           d.cached_input_tokens, d.cost_usd, d.costs_unknown, d.turns, d.wall_s
    FROM backburner.usage_daily d
    WHERE d.namespace = %(namespace)s AND %(run_id)s::uuid IS NULL
      AND (%(since)s::timestamptz IS NULL OR d.day >= (%(since)s::timestamptz AT TIME ZONE 'UTC')::date)
      AND (%(until)s::timestamptz IS NULL OR d.day < (%(until)s::timestamptz AT TIME ZONE 'UTC')::date)
), keyed AS (
    SELECT c.*, coalesce(CASE %(group_by)s::text WHEN 'RUN' THEN c.run_id::text WHEN 'PROCESS' THEN c.process
                         WHEN 'HARNESS' THEN c.harness WHEN 'MODEL' THEN c.model
                         WHEN 'LABEL' THEN c.labels->>%(label)s::text END, '') AS key
    FROM counted c WHERE %(labels)s::jsonb IS NULL OR c.labels @> %(labels)s::jsonb
), summed AS (
    SELECT k.key, coalesce(sum(k.attempts), 0)::bigint AS attempts, coalesce(sum(k.open), 0)::bigint AS open,
           coalesce(sum(k.input_tokens), 0) AS input_tokens, coalesce(sum(k.output_tokens), 0) AS output_tokens,
           coalesce(sum(k.cached_input_tokens), 0) AS cached_input_tokens, sum(k.cost_usd) AS cost_usd,
           coalesce(sum(k.unknown), 0)::bigint AS costs_unknown, coalesce(sum(k.turns), 0)::bigint AS turns,
           coalesce(sum(k.wall_s), 0) AS wall_s
    FROM keyed k GROUP BY GROUPING SETS ((k.key), ())
)
SELECT s.*, count(*) OVER () - 1 AS groups FROM summed s
ORDER BY s.key IS NOT NULL, s.cost_usd DESC NULLS LAST, s.input_tokens + s.output_tokens DESC, s.key
LIMIT %(limit)s;

-- label_budgets --
-- Budgets of labels, and of one run when it is named.
SELECT l.namespace, l.label || '=' || l.value AS label, NULL::uuid AS run_id, l.limits,
       CASE WHEN l.per_day AND l.day < (clock_timestamp() AT TIME ZONE 'UTC')::date
            THEN '{0,0,0,0}'::float8[] ELSE l.used END AS used,
       l.costs_unknown, l.asks, l.per_day, l.reason, l.actor, l.created_at
FROM backburner.label_budgets l WHERE %(namespace)s::text IS NULL OR l.namespace = %(namespace)s::text
UNION ALL
SELECT r.namespace, '', b.run_id, b.limits, b.used, b.costs_unknown, b.asks, false, '', '', r.created_at
FROM backburner.run_budgets b JOIN backburner.runs r ON r.run_id = b.run_id WHERE b.run_id = %(run_id)s::uuid
ORDER BY 1, 2;

-- live_shards --
-- Shards whose lease has not run out.
SELECT shard FROM backburner.shards WHERE owner IS NOT NULL AND expires_at > now();

-- blob_size --
-- Bytes of a blob; no row: there is none.
SELECT octet_length(content) AS size FROM backburner.blobs WHERE run_id = %(run_id)s::uuid AND digest = %(digest)s;

-- blob_piece --
-- Bytes of a blob from an offset, at most so many.
SELECT substring(content FROM %(offset)s::int + 1 FOR %(limit)s::int) AS data
FROM backburner.blobs WHERE run_id = %(run_id)s::uuid AND digest = %(digest)s;

-- output --
-- Captured chunks of one stream that end after an offset, in order, at most so many.
SELECT offset_ AS "offset", data
FROM backburner.effect_output
WHERE effect_id = %(effect_id)s::uuid AND attempt = %(attempt)s AND stream = %(stream)s
  AND offset_ + octet_length(data) > %(offset)s
ORDER BY offset_
LIMIT %(limit)s;

-- output_size --
-- First byte after everything that was recorded of a stream.
SELECT coalesce(max(offset_ + octet_length(data)), 0) AS size
FROM backburner.effect_output
WHERE effect_id = %(effect_id)s::uuid AND attempt = %(attempt)s AND stream = %(stream)s;
