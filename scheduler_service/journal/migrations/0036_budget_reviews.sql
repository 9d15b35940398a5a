-- What reviews found in 0003 to 0031: a settlement for a spent budget is judged again under the lock; a rate limit that
-- parks is one for adaptive groups too; and attempts whose work never began consumed nothing that could be counted.

-- Whether a budget of an effect is spent that does not ask. Its run's head is locked, so no raise of the run's budget or
-- of its own is under way; one of a label that commits after this look comes after the settlement.
CREATE FUNCTION is_spent(e effects) RETURNS boolean
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT coalesce((SELECT v.verdict = 'spent' AND NOT (v.bounds->>'ask')::boolean FROM budget_verdict(e, '{}') v), false)
$$;

-- Cancels, and settlements of effects that no executor has: see 0003. One for a spent budget holds only while that is
-- spent: it may have been raised since the owner looked.
CREATE OR REPLACE FUNCTION settle_idle(h run_heads, INOUT rws jsonb, after_seq bigint, ts timestamptz, actor text,
                            OUT more jsonb, OUT detail jsonb, OUT settled int)
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record; e effects; cancels jsonb := '[]'; refused jsonb := '[]'; elsewhere jsonb := '[]'; row_ jsonb; raised boolean;
BEGIN
    more := '[]';
    settled := 0;
    PERFORM 1 FROM effects WHERE effect_id IN (
        SELECT (i->>'effect_id')::uuid FROM jsonb_array_elements(rws) i
        WHERE i->>'type' IN ('EFFECT_CANCEL_REQUESTED', 'EFFECT_RESOLVED')) ORDER BY effect_id FOR UPDATE;
    FOR r IN SELECT (o - 1)::int AS o, item FROM jsonb_array_elements(rws) WITH ORDINALITY t(item, o)
             WHERE item->>'type' IN ('EFFECT_CANCEL_REQUESTED', 'EFFECT_RESOLVED') ORDER BY 1
    LOOP
        SELECT * INTO e FROM effects WHERE effect_id = (r.item->>'effect_id')::uuid AND run_id = h.run_id;
        IF r.item->>'type' = 'EFFECT_RESOLVED' THEN
            raised := r.item #>> '{data,error,reason}' = 'EFFECT_REASON_BUDGET' AND NOT is_spent(e);
            IF e.effect_id IS NULL OR e.settled_seq IS NOT NULL OR is_live(e.state) OR raised THEN
                row_ := r.item || jsonb_build_object('type', 'EFFECT_SUPERSEDED', 'data', jsonb_build_object(
                    'refused_type', 'EFFECT_RESOLVED', 'refused_data', r.item->'data',
                    'cause', CASE WHEN e.effect_id IS NULL THEN 'not_found'
                                  WHEN e.settled_seq IS NOT NULL THEN 'settled'
                                  WHEN is_live(e.state) THEN 'live_attempt' ELSE 'budget_raised' END));
                rws := jsonb_set(rws, ARRAY[r.o::text], row_);
                refused := refused || to_jsonb(r.o);
            ELSE
                UPDATE effects SET state = replace(r.item->'data'->>'state', 'EFFECT_STATE_', ''),
                        settled_seq = h.seq + r.o + 1, settled_at = ts,
                        reason = replace(r.item->'data'->'error'->>'reason', 'EFFECT_REASON_', '')
                    WHERE effect_id = e.effect_id;
                DELETE FROM dispatch_queue WHERE effect_id = e.effect_id;
                settled := settled + 1;
            END IF;
        ELSIF e.effect_id IS NULL OR e.settled_seq IS NOT NULL THEN
            rws := jsonb_set(rws, ARRAY[r.o::text, 'data', 'no_op'], 'true');
        ELSE
            UPDATE effects SET cancel_reason = coalesce(cancel_reason, r.item->'data'->>'reason', 'EFFECT_REASON_UNSPECIFIED'),
                    cancel_message = coalesce(cancel_message, r.item->'data'->>'message'),
                    state = CASE WHEN is_live(state) OR kind = 'RUN' THEN 'CANCELLING' ELSE state END
                WHERE effect_id = e.effect_id;
            IF e.kind = 'RUN' THEN
                elsewhere := elsewhere || coalesce(cancel_child(e, r.item->'data', actor), '[]');
            ELSIF is_live(e.state) THEN
                cancels := cancels || jsonb_build_object('effect_id', e.effect_id, 'attempt', e.attempt,
                    'executor_id', e.executor_id, 'incarnation', e.incarnation,
                    'reason', r.item->'data'->'reason', 'message', r.item->'data'->'message');
            ELSE
                more := more || cancelled_row(e, r.item->'data', after_seq + jsonb_array_length(more) + 1, ts);
                settled := settled + 1;
            END IF;
        END IF;
    END LOOP;
    detail := jsonb_build_object('cancels', cancels) || field('refused', nullif(refused, '[]'))
        || field('elsewhere', nullif(elsewhere, '[]'));
END
$$;

-- Moves the limits of the run's adaptive groups by the outcomes after a seq: see 0005. A rate limit halves them, whether
-- the attempt is retried, parked until the reset, or the last.
CREATE OR REPLACE FUNCTION adapt_groups(p_run uuid, p_after bigint) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT e.group_id, j.data->>'state' = 'EFFECT_STATE_SUCCEEDED' AS well
        FROM journal j JOIN effects e ON e.effect_id = j.effect_id
             JOIN run_groups g ON g.run_id = p_run AND g.group_id = e.group_id AND g.strategy = 'ADAPTIVE'
        WHERE j.run_id = p_run AND j.seq > p_after AND j.type IN ('EFFECT_RESOLVED', 'EFFECT_ATTEMPT_FAILED', 'EFFECT_PARKED')
          AND (j.data->>'state' = 'EFFECT_STATE_SUCCEEDED'
               OR j.data->'error'->>'reason' IN ('EFFECT_REASON_RATE_LIMITED', 'EFFECT_REASON_OVERLOADED'))
        ORDER BY j.seq
    LOOP
        IF r.well IS TRUE THEN
            UPDATE run_groups g SET limit_ = CASE WHEN g.successes < 9 THEN g.limit_ ELSE g.limit_ + 1 END,
                    successes = CASE WHEN g.successes < 9 THEN g.successes + 1 ELSE 0 END
                WHERE g.run_id = p_run AND g.group_id = r.group_id AND g.limit_ < g.max_concurrency;
        ELSE
            UPDATE run_groups g SET limit_ = greatest(1, g.limit_ / 2), successes = 0
                WHERE g.run_id = p_run AND g.group_id = r.group_id;
        END IF;
    END LOOP;
END
$$;

-- Whether the row that ends an attempt says, or follows one that says, that its work never began: no
-- executor had it, or no child was made and nothing was ever heard of it.
CREATE FUNCTION never_began(p_type text, p_data jsonb, e effects) RETURNS boolean
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT p_data ? 'never_started'
        OR EXISTS (SELECT FROM journal l WHERE l.effect_id = e.effect_id AND l.attempt = e.attempt
                   AND l.type = 'EFFECT_ATTEMPT_LOST' AND l.data ? 'never_started')
        OR (e.kind <> 'FUNCTION' AND e.usage IS NULL AND e.started_at IS NULL AND e.last_activity_at IS NULL
            AND NOT p_data ? 'death' AND (p_type = 'EFFECT_CANCELLED'
                OR p_data #>> '{error,reason}' IN ('EFFECT_REASON_SPAWN_FAILED', 'EFFECT_REASON_INVALID_WORK')))
$$;

-- Counts the attempts that ended in journal rows of these runs after these seqs: see 0030.
CREATE OR REPLACE FUNCTION count_usage(p_runs uuid[], p_after bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    budgeted boolean := EXISTS (SELECT FROM label_budgets);
    counted attempt_usage[];
BEGIN
    WITH ended AS (
        SELECT DISTINCT ON (j.effect_id, j.attempt) j.run_id, j.effect_id, j.attempt, j.recorded_at, e.kind, e.namespace,
               CASE WHEN e.kind = 'AGENT' THEN (  -- the effect may be at its next harness by now
                   SELECT d.data->>'harness' FROM journal d WHERE d.effect_id = j.effect_id AND d.attempt = j.attempt
                   AND d.type = 'EFFECT_DISPATCHED') ELSE e.harness END AS harness, e.labels, e.usage, e.started_at, e.requested_seq, e.budget,
               CASE WHEN j.type = 'EFFECT_ATTEMPT_LOST'
                    THEN extract(epoch FROM greatest(e.last_activity_at, e.started_at, e.dispatched_at)
                                            - coalesce(e.started_at, e.dispatched_at))
                    ELSE trim(trailing 's' FROM j.data->>'elapsed')::float8 END AS wall_s
        FROM unnest(p_runs, p_after) u(run_id, seq)
             -- by the key, whatever the statistics say: these are the last rows of the run
             CROSS JOIN LATERAL (SELECT * FROM journal o WHERE o.run_id = u.run_id AND o.seq > u.seq
                                 ORDER BY o.seq LIMIT 100000) j
             JOIN effects e ON e.effect_id = j.effect_id AND e.attempt = j.attempt
        WHERE j.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_RESOLVED', 'EFFECT_CANCELLED',
                         'EFFECT_PARKED')
          AND j.attempt > 0 AND NOT never_began(j.type, j.data, e)
        ORDER BY j.effect_id, j.attempt, j.seq
    ), written AS (
        INSERT INTO attempt_usage (effect_id, attempt, run_id, namespace, process, harness, model, labels, input_tokens,
                                   output_tokens, cached_input_tokens, cost_usd, cost_unknown, turns, wall_s, ended_at)
            SELECT e.effect_id, e.attempt, e.run_id, e.namespace, r.process, e.harness,
                   coalesce(e.usage->>'model', CASE WHEN e.kind = 'AGENT' THEN (
                       SELECT q.data #>> '{spec,agent,model}' FROM journal q
                       WHERE q.run_id = e.run_id AND q.seq = e.requested_seq) END, ''),
                   r.labels || e.labels, coalesce((e.usage->>'input_tokens')::float8, 0),
                   coalesce((e.usage->>'output_tokens')::float8, 0),
                   coalesce((e.usage->>'cached_input_tokens')::float8, 0), (e.usage->>'cost_usd')::float8,
                   NOT coalesce(e.usage ? 'cost_usd', false)
                   AND (e.usage IS NOT NULL OR (e.kind = 'AGENT' AND e.started_at IS NOT NULL)),
                   coalesce((e.usage->>'turns')::int, 0), coalesce(e.wall_s, 0), e.recorded_at
            FROM ended e JOIN runs r ON r.run_id = e.run_id
            WHERE e.kind <> 'FUNCTION' OR e.usage IS NOT NULL OR e.budget IS NOT NULL OR budgeted
            ON CONFLICT DO NOTHING
            RETURNING attempt_usage.*
    ), run_totals AS (
        UPDATE run_budgets b SET costs_unknown = b.costs_unknown + s.unknown, used = ARRAY[
                b.used[1] + s.tokens, b.used[2] + s.cost, b.used[3] + s.wall, b.used[4] + s.turns]
            FROM (SELECT w.run_id, sum(w.input_tokens + w.output_tokens) AS tokens, coalesce(sum(w.cost_usd), 0) AS cost,
                         sum(w.wall_s) AS wall, sum(w.turns) AS turns, count(*) FILTER (WHERE w.cost_unknown)::int AS unknown
                  FROM written w GROUP BY w.run_id) s
            WHERE b.run_id = s.run_id
    )
    SELECT array_agg(w::attempt_usage) INTO counted FROM written w;
    IF budgeted AND counted IS NOT NULL THEN
        PERFORM count_label_usage(counted);
    END IF;
END
$$;

-- Queued effects in these shards whose budget is spent and is not one that asks: see 0031. It costs a look where there
-- are no budgets.
CREATE OR REPLACE FUNCTION spent_effects_v1(p_shards int[])
RETURNS TABLE (run_id uuid, effect_id uuid, effect_key text, attempt int, kind text, open boolean, epoch bigint,
               iteration bigint, spent jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
BEGIN
    -- every poll of every replica asks, and most databases have no budgets at all
    IF NOT EXISTS (SELECT FROM label_budgets) AND NOT EXISTS (
            SELECT FROM effects f WHERE f.budget IS NOT NULL AND f.state IN ('QUEUED', 'PARKED')) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH waiting AS MATERIALIZED (
        SELECT f.effect_id FROM effects f JOIN run_budgets b ON b.run_id = f.run_id AND NOT b.asks
             JOIN run_heads h ON h.run_id = f.run_id AND h.shard = ANY (p_shards) AND NOT is_parked(h.state)
        WHERE f.budget IS NOT NULL AND f.state IN ('QUEUED', 'PARKED')
          AND (b.used[1] >= b.limits[1] OR b.used[2] >= b.limits[2] OR b.used[3] >= b.limits[3] OR b.used[4] >= b.limits[4])
        UNION
        SELECT f.effect_id FROM effects f
             JOIN run_heads h ON h.run_id = f.run_id AND h.shard = ANY (p_shards) AND NOT is_parked(h.state)
        WHERE f.budget <> '{}' AND f.budget IS NOT NULL AND f.state IN ('QUEUED', 'PARKED') AND f.attempt > 0
          AND NOT budget_asks(f.budget)
        UNION
        SELECT f.effect_id FROM label_budgets l
             JOIN dispatch_queue q ON q.namespace = l.namespace
             JOIN effects f ON f.effect_id = q.effect_id JOIN runs u ON u.run_id = f.run_id
             JOIN run_heads h ON h.run_id = f.run_id AND h.shard = ANY (p_shards) AND NOT is_parked(h.state)
        WHERE NOT l.asks AND NOT (l.per_day AND l.day < today) AND (u.labels || f.labels)->>l.label = l.value
          AND (l.used[1] >= l.limits[1] OR l.used[2] >= l.limits[2] OR l.used[3] >= l.limits[3] OR l.used[4] >= l.limits[4])
    )
    SELECT f.run_id, f.effect_id, f.key, f.attempt, f.kind, h.open, h.epoch, h.iteration, v.bounds
    FROM waiting w JOIN effects f ON f.effect_id = w.effect_id JOIN run_heads h ON h.run_id = f.run_id
         CROSS JOIN LATERAL budget_verdict(f, '{}') v
    WHERE f.cancel_reason IS NULL AND v.verdict = 'spent' AND NOT (v.bounds->>'ask')::boolean
    LIMIT 500;  -- of those that are judged: what is not spent after all hides nobody
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
