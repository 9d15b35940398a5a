-- Dispatch: claims from the queue, sessions of executors, attempts that are lost.

-- Takes queued effects for one session: foreground first, then by rank. Picks without lock, locks the heads of what it
-- picked, looks again, and only then assigns. A head that somebody holds is left for the next claim, which a last row
-- with token_index -1 tells the caller to make soon.
CREATE FUNCTION claim_v1(p jsonb)
RETURNS TABLE (token_index int, run_id uuid, effect_id uuid, effect_key text, attempt int, name text, harness text,
               pool text, background boolean, spec text, total_remaining_s double precision, seq bigint,
               recorded_at timestamptz, data jsonb, head_seq bigint, resume jsonb, budget text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    ns text := p->>'namespace';
    caps text[] := ARRAY(SELECT jsonb_array_elements_text(p->'capabilities'));
    tokens text[] := ARRAY(SELECT jsonb_array_elements_text(p->'token_hashes'));
    executor text := p->>'executor_id';
    pl record; bucket record; h run_heads; ts timestamptz;
    picked uuid[] := '{}'; fore uuid[]; back uuid[]; aged int; taken int := 0; got int; held boolean := false;
    labelled boolean := false; session_wait interval := make_interval(secs => (p->>'session_wait_s')::double precision);
    probes text[] := '{}'; begun timestamptz; probed boolean := false;
    admitted jsonb; by_label boolean; stamp timestamptz := clock_timestamp();
BEGIN
    LOCK TABLE dispatch_holds IN ROW SHARE MODE;  -- no hold is acknowledged while this dispatches
    IF EXISTS (SELECT FROM dispatch_holds) THEN
        caps := ARRAY(SELECT c FROM unnest(caps) c WHERE NOT is_held(ns, harness_of(c), executor, '{}'));
        labelled := EXISTS (SELECT FROM dispatch_holds d WHERE d.labels <> '{}');
    END IF;
    IF NOT EXISTS (SELECT FROM executors e WHERE e.executor_id = executor AND e.incarnation = p->>'incarnation'
                   AND e.session_no = (p->>'session_no')::int AND e.state = 'CONNECTED'
                   AND e.ordered_drain IS NULL) THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM provider_breakers) THEN
        probes := take_probes(ns, executor, caps, stamp);
        caps := ARRAY(SELECT c FROM unnest(caps) c
                      WHERE c = ANY (probes) OR NOT is_broken(ns, harness_of(c), executor));
    END IF;
    -- one claim after the other looks at what is left of these
    PERFORM 1 FROM label_budgets b WHERE b.namespace = ns ORDER BY b.label, b.value FOR UPDATE;
    by_label := FOUND;
    FOR pl IN SELECT * FROM jsonb_to_recordset(p->'pools') AS x(pool text, foreground int, background int) LOOP
        -- Classes age: background that has waited for a minute gets a quarter of what is free, within its share.
        aged := CASE WHEN EXISTS (SELECT FROM dispatch_queue q WHERE q.namespace = ns AND q.pool = pl.pool
                                  AND q.background AND q.rank < clock_timestamp() - interval '60 s')
                THEN least(pl.background, greatest(1, pl.foreground / 4)) ELSE 0 END;
        fore := ARRAY(SELECT * FROM claimable(ns, pl.pool, false, executor, caps, p->'labels', labelled, session_wait,
                                              pl.foreground - aged));
        back := ARRAY(SELECT * FROM claimable(ns, pl.pool, true, executor, caps, p->'labels', labelled, session_wait,
                                              least(pl.background, pl.foreground - cardinality(fore))));
        picked := picked || fore || back;
    END LOOP;
    IF cardinality(probes) > 0 THEN  -- one of each, whatever else could be taken
        fore := ARRAY(SELECT x.id FROM (
            SELECT w.id, w.o, c.a, row_number() OVER (PARTITION BY c.a ORDER BY w.o) AS n
            FROM unnest(picked) WITH ORDINALITY w(id, o) JOIN effects e ON e.effect_id = w.id CROSS JOIN LATERAL (
                SELECT u.a FROM unnest(e.capabilities) WITH ORDINALITY u(a, at) WHERE u.a = ANY (caps)
                ORDER BY u.at LIMIT 1) c) x
            WHERE x.n = 1 OR x.a <> ALL (probes) ORDER BY x.o);
        probed := cardinality(fore) < cardinality(picked);
        picked := fore;
    END IF;
    IF cardinality(picked) = 0 THEN
        IF cardinality(probes) > 0 THEN  -- else breakers are not locked yet, and must not be after label budgets
            PERFORM spare_probes(ns, executor, probes, stamp);
        END IF;
        RETURN;
    END IF;
    picked := picked[1:least((p->>'limit')::int, cardinality(tokens))];
    begun := clock_timestamp();
    FOR bucket IN SELECT q.run_id, array_agg(q.effect_id ORDER BY q.effect_id) AS ids FROM dispatch_queue q
             WHERE q.effect_id = ANY (picked) GROUP BY q.run_id ORDER BY q.run_id
    LOOP
        SELECT * INTO h FROM run_heads u WHERE u.run_id = bucket.run_id FOR UPDATE SKIP LOCKED;
        held := held OR NOT FOUND;
        IF NOT FOUND OR is_parked(h.state) THEN
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        PERFORM 1 FROM effects e WHERE e.effect_id = ANY (bucket.ids) ORDER BY e.effect_id FOR UPDATE;
        admitted := CASE WHEN by_label OR EXISTS (SELECT FROM effects e WHERE e.effect_id = ANY (bucket.ids)
                                                  AND e.budget IS NOT NULL)
                         THEN admit_by_budget(bucket.ids) END;
        RETURN QUERY
        WITH candidates AS (
            SELECT e.*, row_number() OVER (PARTITION BY e.group_id ORDER BY e.background, e.requested_seq) AS place
            FROM effects e
            WHERE e.effect_id = ANY (bucket.ids) AND e.state IN ('QUEUED', 'PARKED') AND e.cancel_reason IS NULL
              AND (h.open OR e.on_run_end = 'DETACH') AND NOT is_overdue(e, ts) AND NOT awaits_raise(e)
              AND coalesce(e.not_before <= ts, true)  -- it may have failed, and paused, since it was picked
              AND NOT (labelled AND held_by_label(e.effect_id, ns, executor, caps))
              AND (admitted IS NULL OR admitted ? e.effect_id::text)
        ), chosen AS (
            SELECT c.*, row_number() OVER (ORDER BY c.background, c.requested_seq)::int AS n,
                   (SELECT a FROM unnest(c.capabilities) WITH ORDINALITY u(a, o) WHERE a = ANY (caps)
                      AND NOT (labelled AND is_held(ns, harness_of(a), executor, c.labels)) ORDER BY o LIMIT 1) AS capability
            FROM candidates c
                 -- once for each group, not for each of its candidates
                 LEFT JOIN (SELECT g.group_id, group_limit(h.run_id, g.group_id, NULL) AS most,
                                   group_open(h.run_id, g.group_id) AS taken
                            FROM (SELECT DISTINCT group_id FROM candidates WHERE group_id IS NOT NULL) g) g
                     ON g.group_id = c.group_id
            WHERE c.group_id IS NULL OR c.place + g.taken <= least(c.group_max, g.most)
        ), gone AS (
            DELETE FROM dispatch_queue q USING chosen c WHERE q.effect_id = c.effect_id
        ), assigned AS (
            UPDATE effects e SET state = 'DISPATCHED', attempt = c.attempt + 1, starts = c.starts + 1,
                    executor_id = executor, incarnation = p->>'incarnation', session_no = (p->>'session_no')::int,
                    past_tokens = with_past_token(e),
                    token_hash = decode(tokens[taken + c.n], 'hex'), dispatched_at = ts, started_at = NULL,
                    usage = NULL, usage_before = CASE WHEN e.usage IS NULL THEN e.usage_before
                                                      ELSE add_usage(e.usage_before, e.usage) END,
                    asks = false, progress = NULL, progress_ordinal = 0, progress_rows = 0, last_activity_at = NULL,
                    harness = harness_of(c.capability)
                FROM chosen c WHERE e.effect_id = c.effect_id
        ), written AS (
            INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
                SELECT h.run_id, h.seq + c.n, 'EFFECT_DISPATCHED', c.effect_id, c.key, c.attempt + 1, ts,
                       'scheduler/' || coalesce(p->>'actor', ''),
                       jsonb_build_object('executor_id', executor, 'incarnation', p->>'incarnation',
                                          'session_no', (p->>'session_no')::int, 'harness', harness_of(c.capability))
                FROM chosen c RETURNING *
        )
        SELECT taken + c.n - 1, h.run_id, c.effect_id, c.key, c.attempt + 1, c.name, harness_of(c.capability), c.pool,
               c.background, (r.data->'spec')::text, extract(epoch FROM c.total_deadline - ts)::double precision,
               w.seq, ts, w.data, h.seq + c.n, c.session, (admitted->c.effect_id::text)::text
        FROM chosen c JOIN written w ON w.effect_id = c.effect_id
             JOIN journal r ON r.run_id = h.run_id AND r.seq = c.requested_seq;
        GET DIAGNOSTICS got = ROW_COUNT;
        -- rows of effects that are settled, cancelled or dispatched already, or whose run is over, are of no use
        DELETE FROM dispatch_queue q USING effects e
            WHERE q.effect_id = ANY (bucket.ids) AND e.effect_id = q.effect_id
              AND (e.state NOT IN ('QUEUED', 'PARKED') OR NOT (h.open OR e.on_run_end = 'DETACH'));
        taken := taken + got;
        IF got > 0 THEN
            UPDATE run_heads u SET seq = h.seq + got, recorded_at = ts WHERE u.run_id = h.run_id;
        END IF;
    END LOOP;
    IF cardinality(probes) > 0 THEN
        fore := ARRAY(SELECT e.effect_id FROM effects e WHERE e.effect_id = ANY (picked) AND e.dispatched_at >= begun
                      AND is_live(e.state) AND 'agent/' || e.harness = ANY (probes));
        PERFORM spare_probes(ns, executor, ARRAY(SELECT c FROM unnest(probes) c WHERE NOT EXISTS (
            SELECT FROM effects e WHERE e.effect_id = ANY (fore) AND 'agent/' || e.harness = c)), stamp);
        held := held OR (probed AND cardinality(fore) > 0);
    END IF;
    IF held THEN
        token_index := -1;
        RETURN NEXT;
    END IF;
END
$$;

-- The first queued effects of a class that an executor could take now. What cannot be dispatched whoever asks (its run
-- is parked, its group is full, its label is held, its time is over) is passed over, or it would keep everything behind
-- it from being seen; and so is what goes on with a session that another executor has, for `p_session_wait` after it could
-- have started: while that executor has no free slot, or is away for no longer than that. A hold by label costs one look at each queued effect, however many it covers: two function calls
-- for each took seconds where it covered a long queue, and everything behind these waited too.
CREATE FUNCTION claimable(p_namespace text, p_pool text, p_background boolean, p_executor text,
                                     p_capabilities text[], p_labels jsonb, p_labelled boolean, p_session_wait interval,
                                     p_limit int)
RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SET search_path = backburner, pg_temp AS $$
DECLARE
    q record; room int; rooms jsonb := '{}'; place text; left_ int := p_limit; at timestamptz := clock_timestamp();
    whole jsonb[]; part jsonb[]; harnesses text[]; x effects; verdicts jsonb := '{}';
    by_label boolean := EXISTS (SELECT FROM label_budgets l WHERE l.namespace = p_namespace);
BEGIN
    IF left_ > 0 THEN
        IF p_labelled THEN  -- of any harness, and of one
            SELECT coalesce(array_agg(d.labels) FILTER (WHERE d.harness = ''), '{}'),
                   coalesce(array_agg(d.labels) FILTER (WHERE d.harness <> ''), '{}'),
                   coalesce(array_agg(d.harness) FILTER (WHERE d.harness <> ''), '{}')
                INTO whole, part, harnesses FROM dispatch_holds d
                WHERE coalesce(d.until, 'infinity') > at AND d.namespace IN ('', p_namespace)
                  AND d.executor_id IN ('', p_executor);
        END IF;
        FOR q IN
            SELECT w.effect_id, w.run_id, w.group_id, w.group_max, w.not_before FROM dispatch_queue w
                JOIN run_heads h ON h.run_id = w.run_id AND h.state NOT IN ('HALTED', 'PROCESS_ERROR')
            WHERE w.namespace = p_namespace AND w.pool = p_pool AND w.background = p_background
              AND w.not_before <= clock_timestamp() AND w.capabilities && p_capabilities
              AND w.executor_labels <@ p_labels
              AND (NOT p_labelled OR (
                  SELECT NOT e.labels @> ANY (whole) AND (NOT e.labels @> ANY (part) OR EXISTS (
                      SELECT FROM unnest(e.capabilities) a WHERE a = ANY (p_capabilities) AND NOT EXISTS (
                          SELECT FROM unnest(part, harnesses) d(labels, harness)
                          WHERE d.harness = harness_of(a) AND e.labels @> d.labels)))
                  FROM effects e WHERE e.effect_id = w.effect_id))
            ORDER BY w.rank
        LOOP
            IF q.group_id IS NOT NULL THEN
                place := q.run_id || q.group_id;
                room := coalesce((rooms->>place)::int, group_limit(q.run_id, q.group_id, q.group_max)
                                                       - group_open(q.run_id, q.group_id)::int);
                CONTINUE WHEN room <= 0 AND rooms ? place;
            END IF;
            SELECT f.* INTO x FROM effects f WHERE f.effect_id = q.effect_id;
            CONTINUE WHEN is_overdue(x, at) OR awaits_raise(x) OR (x.continues_on NOT IN ('', p_executor)
                                  AND q.not_before > at - p_session_wait AND EXISTS (
                                      SELECT FROM executors o WHERE o.executor_id = x.continues_on
                                         AND o.namespace = p_namespace AND (o.state IN ('CONNECTED', 'DRAINING')
                                             OR (o.state = 'DISCONNECTED' AND o.seen_at > at - p_session_wait))));
            IF by_label OR x.budget IS NOT NULL THEN  -- effects of a run that are alike are judged once
                place := concat_ws(' ', x.run_id, x.budget, x.labels, CASE WHEN x.attempt > 0 THEN x.effect_id END);
                IF NOT verdicts ? place THEN
                    verdicts := verdicts || jsonb_build_object(place, (SELECT v.verdict FROM budget_verdict(x, '{}') v));
                END IF;
                CONTINUE WHEN verdicts->>place <> 'ok';
            END IF;
            IF q.group_id IS NOT NULL THEN
                rooms := rooms || jsonb_build_object(q.run_id || q.group_id, room - 1);
                CONTINUE WHEN room <= 0;
            END IF;
            RETURN NEXT q.effect_id;
            left_ := left_ - 1;
            EXIT WHEN left_ <= 0;
        END LOOP;
    END IF;
END
$$;

-- Whether no attempt may start any more: that its owner settles the effect may take a while, as when it has none.
-- It names no object, so it needs no search_path of its own, and is inlined without one.
CREATE FUNCTION is_overdue(e effects, p_at timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(e.total_deadline <= p_at, false) OR coalesce(e.starts = 0 AND e.queue_deadline <= p_at, false)
$$;

-- Whether no attempt may start until somebody raises a budget: the attempt before was the last, and a budget ended it.
CREATE FUNCTION awaits_raise(e effects) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT e.asks AND e.starts >= e.max_attempts
$$;

-- Whether an executor of a namespace that is not lost has a capability.
CREATE FUNCTION is_offered(p_namespace text, p_capability text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = backburner, pg_temp AS $$
    SELECT EXISTS (SELECT FROM executors x
                   WHERE x.namespace = p_namespace AND x.state <> 'LOST' AND p_capability = ANY (x.capabilities))
$$;

-- Harness that a capability stands for: `function/a.b` is `function`, `agent/codex` is `codex`.
CREATE FUNCTION harness_of(capability text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN capability LIKE 'agent/%' THEN substr(capability, 7) ELSE split_part(capability, '/', 1) END
$$;

-- A new session of an executor: its number is greater than every earlier one. What it succeeds is dead, by its own proof:
-- the owners of the runs declare lost what those had, without waiting for the grace.
--
-- Number 0: refused, for the executor has said a later hello meanwhile, or is dead by the word of a successor. What it
-- reports is old: an attempt that is not in it may have been started since, and must not be taken for one that never was.
CREATE FUNCTION executor_hello_v1(p jsonb) RETURNS TABLE (session_no int, previous_incarnation text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    was executors; heard jsonb := '{}';
BEGIN
    SELECT * INTO was FROM executors WHERE executor_id = p->>'executor_id' FOR UPDATE;
    IF p->>'incarnation' = ANY (was.succeeded)
       OR (was.incarnation = p->>'incarnation' AND (p->>'dial')::bigint BETWEEN 1 AND was.dial - 1) THEN
        RETURN QUERY SELECT 0, was.incarnation;
        RETURN;
    END IF;
    INSERT INTO executor_expiries (executor_id, incarnation, expired_at, actor, reason)
        SELECT DISTINCT x.executor_id, i.incarnation, clock_timestamp(), 'executor/' || (p->>'executor_id'),
               'it was started again'
        FROM jsonb_array_elements_text(p->'succeeds') AS i(incarnation)
             CROSS JOIN LATERAL (SELECT p->>'executor_id' UNION
                                 SELECT e.executor_id FROM executors e WHERE e.incarnation = i.incarnation) x(executor_id)
        WHERE i.incarnation <> p->>'incarnation'
          AND EXISTS (SELECT FROM effects f WHERE f.executor_id = x.executor_id AND f.incarnation = i.incarnation
                      AND f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING'))
        ON CONFLICT DO NOTHING;
    SELECT coalesce(jsonb_object_agg(o.incarnation, o.at), '{}') INTO heard
        FROM jsonb_each(was.earlier || jsonb_build_object(coalesce(was.incarnation, ''), was.seen_at)) AS o(incarnation, at)
        WHERE EXISTS (SELECT FROM effects f WHERE f.executor_id = was.executor_id AND f.incarnation = o.incarnation
                      AND f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING'));
    RETURN QUERY
    INSERT INTO executors AS e (executor_id, incarnation, session_no, holder, address, namespace, pools, capabilities,
                                labels, version, state, connected_at, seen_at, clock_skew_s, dial, succeeded,
                                harness_checks)
        VALUES (p->>'executor_id', p->>'incarnation', 1, p->>'holder', p->>'address', p->>'namespace', p->'pools',
                ARRAY(SELECT jsonb_array_elements_text(p->'capabilities')), p->'labels', p->>'version',
                CASE WHEN (p->>'draining')::boolean THEN 'DRAINING' ELSE 'CONNECTED' END,
                clock_timestamp(), clock_timestamp(), (p->>'clock_skew_s')::double precision,
                coalesce((p->>'dial')::bigint, 0),
                (ARRAY(SELECT jsonb_array_elements_text(p->'succeeds')) || coalesce(was.succeeded, '{}'))[:64],
                coalesce(p->'harness_checks', '[]'))
        ON CONFLICT (executor_id) DO UPDATE SET incarnation = excluded.incarnation, session_no = e.session_no + 1,
            holder = excluded.holder, address = excluded.address, namespace = excluded.namespace,
            pools = excluded.pools, capabilities = excluded.capabilities, labels = excluded.labels,
            version = excluded.version, state = excluded.state, connected_at = excluded.connected_at,
            seen_at = excluded.seen_at, clock_skew_s = excluded.clock_skew_s, dial = excluded.dial,
            succeeded = excluded.succeeded, earlier = heard, harness_checks = excluded.harness_checks
        RETURNING e.session_no, coalesce(was.incarnation, '');
END
$$;

-- Heartbeats. Not worth a flush: losing the last of them only makes an executor look a little older.
CREATE FUNCTION executors_seen_v1(items jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- a SET clause would be undone before the commit
    PERFORM 1 FROM executors e WHERE e.executor_id IN (SELECT i->>'executor_id' FROM jsonb_array_elements(items) i)
        ORDER BY e.executor_id FOR UPDATE;
    UPDATE executors e SET seen_at = clock_timestamp(), state = i.state
        FROM jsonb_to_recordset(items) AS i(executor_id text, session_no int, state text)
        WHERE e.executor_id = i.executor_id AND e.session_no = i.session_no;
END
$$;

-- The session has ended; a newer one is not touched. seen_at is left as it is: the grace counts from it.
CREATE FUNCTION executor_gone_v1(p_executor_id text, p_session_no int) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    UPDATE executors SET state = 'DISCONNECTED' WHERE executor_id = p_executor_id AND session_no = p_session_no
$$;

-- Running attempts that an executor reported in a new session: from now on they belong to that session.
CREATE FUNCTION readopt_v1(items jsonb) RETURNS TABLE (ord int, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record;
BEGIN
    FOR it IN SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
                     jsonb_to_record(t.item) AS i(run_id uuid, effect_id uuid, attempt int, executor_id text,
                                                  incarnation text, session_no int)
              ORDER BY i.run_id, i.effect_id
    LOOP
        UPDATE effects e SET session_no = it.session_no
            WHERE e.effect_id = it.effect_id AND e.run_id = it.run_id AND e.attempt = it.attempt
              AND e.executor_id = it.executor_id AND e.incarnation = it.incarnation AND is_live(e.state)
              AND e.session_no <= it.session_no;
        RETURN QUERY SELECT it.ord, CASE WHEN FOUND THEN 'ok' ELSE 'stale_attempt' END;
    END LOOP;
END
$$;

-- Attempts whose executor is gone, or that never reached it. Declared by the run's owner only.
CREATE FUNCTION attempts_lost_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, head_seq bigint, recorded_at timestamptz, extra jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; e effects; ts timestamptz; wait double precision; again timestamptz; rws jsonb; ending jsonb;
    counted int; never boolean; many boolean := jsonb_array_length(items) > 1;
    ended uuid[] := '{}'; ended_after bigint[] := '{}';
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, epoch bigint, effect_id uuid, attempt int,
                                          never_started boolean, reason text, message text, actor text,
                                          pause_s double precision, executor_session int)
        ORDER BY i.run_id, i.effect_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        -- never the effect without the head: h is empty when somebody else has it
        SELECT * INTO e FROM effects WHERE effect_id = it.effect_id AND run_id = h.run_id FOR UPDATE;
        outcome := CASE
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL OR e.effect_id IS NULL THEN 'not_found'
            WHEN h.epoch IS DISTINCT FROM it.epoch THEN 'stale_epoch'
            WHEN e.settled_seq IS NOT NULL THEN 'settled'
            WHEN e.attempt IS DISTINCT FROM it.attempt OR NOT is_live(e.state) THEN 'stale_attempt'
            -- the executor came back after the caller looked
            WHEN EXISTS (SELECT FROM executors x WHERE x.executor_id = e.executor_id
                         AND x.session_no <> it.executor_session) THEN 'stale_attempt'
            ELSE 'ok' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        -- whatever the caller thinks: an attempt that was heard of has started
        never := it.never_started AND e.started_at IS NULL AND e.last_activity_at IS NULL;
        counted := e.starts - never::int;
        wait := CASE WHEN never THEN least(greatest(coalesce(it.pause_s, 0), 0), 60) ELSE retry_pause(e.initial_s, e.backoff, e.max_interval_s, counted) END;
        again := NULL;
        IF e.cancel_reason IS NULL AND (e.total_deadline IS NULL OR ts + make_interval(secs => wait) < e.total_deadline)
           AND (never OR (counted < e.max_attempts
                AND replace(it.reason, 'EFFECT_REASON_', '') <> ALL (e.non_retryable))) THEN
            again := ts + make_interval(secs => wait);
        END IF;
        rws := jsonb_build_array(jsonb_build_object('seq', h.seq + 1, 'type', 'EFFECT_ATTEMPT_LOST',
            'effect_id', e.effect_id, 'effect_key', e.key, 'attempt', e.attempt,
            'data', jsonb_build_object('reason', it.reason, 'message', it.message)
                    || CASE WHEN never THEN '{"never_started": true}' ELSE '{}'::jsonb END
                    || field('next_attempt_at', moment(again))));
        IF again IS NOT NULL THEN
            PERFORM requeue(e, ts, again, counted);
        ELSE
            ending := CASE WHEN e.cancel_reason IS NOT NULL
                THEN jsonb_build_object('type', 'EFFECT_CANCELLED', 'data',
                     field('reason', to_jsonb(e.cancel_reason)) || field('message', to_jsonb(e.cancel_message)))
                ELSE jsonb_build_object('type', 'EFFECT_RESOLVED', 'data', jsonb_build_object(
                     'state', 'EFFECT_STATE_FAILED',
                     'error', jsonb_build_object('reason', it.reason, 'message', it.message))) END;
            IF NOT never THEN
                ending := jsonb_set(ending, '{data,death}', '"DEATH_UNPROVEN"');
            END IF;
            rws := rws || (ending || jsonb_build_object('seq', h.seq + 2, 'effect_id', e.effect_id,
                                                        'effect_key', e.key, 'attempt', e.attempt));
            UPDATE effects SET state = CASE WHEN e.cancel_reason IS NOT NULL THEN 'CANCELLED' ELSE 'FAILED' END,
                    starts = counted, settled_seq = h.seq + 2, settled_at = ts, token_hash = NULL,
                    past_tokens = with_past_token(e),
                    reason = replace(coalesce(e.cancel_reason, it.reason), 'EFFECT_REASON_', '')
                WHERE effect_id = e.effect_id;
        END IF;
        INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
            SELECT it.run_id, m.seq, m.type, m.effect_id, m.effect_key, m.attempt, ts, it.actor, m.data
            FROM jsonb_to_recordset(rws) AS m(seq bigint, type text, effect_id uuid, effect_key text, attempt int,
                                              data jsonb);
        UPDATE run_heads u SET seq = h.seq + jsonb_array_length(rws), recorded_at = ts,
                open_effects = u.open_effects - (jsonb_array_length(rws) - 1)
            WHERE u.run_id = it.run_id;
        ended := ended || it.run_id;
        ended_after := ended_after || h.seq;
        RETURN QUERY SELECT it.ord, 'ok', h.seq + jsonb_array_length(rws), ts, rws;
    END LOOP;
    IF cardinality(ended) > 0 THEN
        PERFORM count_usage(ended, ended_after);
    END IF;
END
$$;

-- The past tokens of an effect, with the one of its last attempt: what comes from that attempt later is known by it.
CREATE FUNCTION with_past_token(e effects) RETURNS bytea[] LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN cardinality(e.past_tokens) < least(e.attempt, 100) THEN e.past_tokens || e.token_hash
           ELSE e.past_tokens END
$$;

-- Pause before the next attempt, in seconds, when so many have started; up to half of it is taken off at random.
CREATE FUNCTION retry_pause(initial_s double precision, backoff double precision, max_interval_s double precision,
                            starts int) RETURNS double precision LANGUAGE sql VOLATILE AS $$
    SELECT least(max_interval_s, initial_s * power(least(backoff, 1000), least(greatest(starts - 1, 0), 60)))
           * (1 - 0.5 * random())
$$;

-- Puts an effect back in the queue after an attempt was lost; what comes of that attempt later is evidence.
CREATE FUNCTION requeue(e effects, ts timestamptz, at timestamptz, counted int) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    UPDATE effects SET state = 'QUEUED', starts = counted, not_before = at, token_hash = NULL,
            past_tokens = with_past_token(e) WHERE effect_id = e.effect_id;
    INSERT INTO dispatch_queue (effect_id, run_id, namespace, pool, capabilities, executor_labels, background, priority,
                                group_id, group_max, enqueued_at, not_before, rank)
        VALUES (e.effect_id, e.run_id, e.namespace, e.pool, e.capabilities, e.executor_labels, e.background, e.priority,
                e.group_id, e.group_max, ts, at, ts - e.priority * interval '30 s')
        ON CONFLICT (effect_id) DO UPDATE SET not_before = excluded.not_before;
END
$$;
