-- Runs: creation, the owner's appends, cancels, answers from outside.

CREATE FUNCTION create_runs_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, run_id uuid, created boolean, head_seq bigint, epoch bigint,
               recorded_at timestamptz, detail jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; known record; ep bigint; ts timestamptz; fresh boolean; removed uuid;
BEGIN
    -- A new run must not get the epoch of an owner whose successor has adopted the shard's runs meanwhile.
    PERFORM 1 FROM shards s WHERE s.shard IN (
        SELECT shard_of((i->>'run_id')::uuid) FROM jsonb_array_elements(items) i) ORDER BY s.shard FOR SHARE;
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.*
        FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, namespace text, key text, process text, client_driven boolean,
                 labels jsonb, input_digest text, parent_run_id uuid, parent_effect_id uuid, code_version text,
                 actor text, data jsonb, owner jsonb, request_id text,
                 reuse_from uuid, start_id text, idle_timeout_s double precision)
        ORDER BY i.namespace, i.request_id, i.key, i.run_id
    LOOP
        ts := clock_timestamp();
        IF it.request_id IS NOT NULL AND it.key IS NULL THEN
            -- Kept for 24 hours; a second caller waits here for the first one's commit.
            DELETE FROM requests q WHERE q.namespace = it.namespace AND q.request_id = it.request_id
                AND q.created_at < ts - interval '24 h';
            INSERT INTO requests (namespace, request_id, kind, digest, answer, created_at)
                VALUES (it.namespace, it.request_id, 'CREATE_RUN', it.input_digest,
                        jsonb_build_object('run_id', it.run_id), ts)
                ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN
                RETURN QUERY SELECT it.ord,
                    CASE WHEN q.kind IS DISTINCT FROM 'CREATE_RUN' OR q.digest <> it.input_digest THEN 'request_conflict'
                         WHEN h.run_id IS NULL THEN 'pruned' ELSE 'ok' END,
                    (q.answer->>'run_id')::uuid, false, coalesce(h.seq, 0), coalesce(h.epoch, 0), coalesce(h.recorded_at, ts),
                    '{}'::jsonb
                    FROM requests q LEFT JOIN run_heads h ON h.run_id = (q.answer->>'run_id')::uuid
                    WHERE q.namespace = it.namespace AND q.request_id = it.request_id;
                CONTINUE;
            END IF;
        END IF;
        SELECT s.epoch INTO ep FROM shards s
            WHERE s.shard = shard_of(it.run_id) AND s.owner = it.owner->>'scheduler_id' AND s.expires_at > ts;
        INSERT INTO runs AS r (run_id, namespace, key, process, client_driven, state, labels, input_digest,
                               parent_run_id, parent_effect_id, code_version, created_at, reuse_from)
            VALUES (it.run_id, it.namespace, it.key, it.process, it.client_driven, 'RUNNING', it.labels,
                    it.input_digest, it.parent_run_id, it.parent_effect_id, coalesce(it.code_version, ''), ts,
                    it.reuse_from)
            ON CONFLICT DO NOTHING;
        fresh := FOUND;
        -- after the insertion, which waits for a removal that is under way
        SELECT p.run_id INTO removed FROM pruned_runs p
            WHERE p.namespace = it.namespace AND p.key = it.key AND p.state <> 'CONTINUED';
        IF FOUND THEN
            DELETE FROM runs r WHERE r.run_id = it.run_id AND fresh;
            RETURN QUERY SELECT it.ord, 'pruned', removed, false, 0::bigint, 0::bigint, ts, '{}'::jsonb;
            CONTINUE;
        END IF;
        IF fresh THEN
            -- an earlier run that is reused is not removed before this one is there to keep it
            PERFORM 1 FROM run_heads o WHERE o.run_id = it.reuse_from FOR SHARE SKIP LOCKED;
            INSERT INTO run_heads (run_id, shard, seq, epoch, recorded_at, state)
                VALUES (it.run_id, shard_of(it.run_id), 1, coalesce(ep, 0), ts, 'RUNNING');
            INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
                VALUES (it.run_id, 1, 'RUN_CREATED', ts, it.actor, it.data);
            IF it.data ? 'budget' THEN
                PERFORM set_run_budget(it.run_id, it.data->'budget', NULL);
            END IF;
            IF it.client_driven AND it.start_id IS NOT NULL THEN
                INSERT INTO client_runs (run_id, epoch, start_id, idle_timeout_s, idle_at)
                    VALUES (it.run_id, 1, it.start_id, it.idle_timeout_s, ts + make_interval(secs => it.idle_timeout_s));
            END IF;
            RETURN QUERY SELECT it.ord, 'ok', it.run_id, true, 1::bigint, coalesce(ep, 0), ts, '{}'::jsonb;
            CONTINUE;
        END IF;
        SELECT r.run_id, r.input_digest, h.seq, h.epoch, h.recorded_at INTO known
            FROM runs r JOIN run_heads h USING (run_id)
            WHERE r.run_id = it.run_id OR (r.namespace = it.namespace AND r.key = it.key AND r.state <> 'CONTINUED')
            ORDER BY (r.run_id = it.run_id) DESC LIMIT 1;
        RETURN QUERY SELECT it.ord,
            CASE WHEN known.input_digest = it.input_digest THEN 'ok' ELSE 'key_conflict' END,
            known.run_id, false, known.seq, known.epoch, known.recorded_at,
            jsonb_build_object('recorded_digest', known.input_digest);
    END LOOP;
END
$$;

-- The rows of one iteration of each run, and everything that follows from them, in one commit.
CREATE FUNCTION append_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, first_seq bigint, head_seq bigint, recorded_at timestamptz,
               extra jsonb, detail jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; up run_heads; rws jsonb; n int; types text[]; ts timestamptz; more jsonb; further jsonb;
    answers jsonb; many boolean := jsonb_array_length(items) > 1; requested int; settled int; failed int; above uuid;
BEGIN
    LOCK TABLE dispatch_holds IN ROW SHARE MODE;  -- no hold is acknowledged while this dispatches
    FOR it IN
        SELECT (t.n - 1)::int AS ord, (t.item->>'run_id')::uuid AS run_id, (t.item->>'epoch')::bigint AS epoch,
               (t.item->>'iteration')::bigint AS iteration, t.item->>'append_id' AS append_id,
               t.item->>'actor' AS actor, t.item->'rows' AS rws
        FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n) ORDER BY 2
    LOOP
        n := jsonb_array_length(it.rws);
        types := ARRAY(SELECT DISTINCT r->>'type' FROM jsonb_array_elements(it.rws) r);
        above := NULL;
        up := NULL;
        IF types && '{RUN_COMPLETED,RUN_FAILED,RUN_CANCELLED}' THEN
            SELECT parent_run_id INTO above FROM runs WHERE run_id = it.run_id;
        END IF;
        IF many THEN
            IF above IS NOT NULL THEN
                SELECT * INTO up FROM run_heads WHERE run_id = above FOR UPDATE SKIP LOCKED;
            END IF;
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            IF above IS NOT NULL THEN
                SELECT * INTO up FROM run_heads WHERE run_id = above FOR UPDATE;
            END IF;
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        outcome := CASE
            WHEN up.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = above) THEN 'busy'
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL THEN 'not_found'
            WHEN h.epoch IS DISTINCT FROM it.epoch THEN 'stale_epoch'
            -- the very same append, not another one that its owner numbered alike after a doubt
            WHEN h.iteration = it.iteration AND h.append_id IS NOT DISTINCT FROM it.append_id THEN 'already'
            WHEN h.iteration + 1 IS DISTINCT FROM it.iteration THEN 'stale_iteration'
            WHEN is_parked(h.state) AND NOT ends_without_process(it.rws) THEN 'parked'
            WHEN NOT h.open AND NOT types <@ '{EFFECT_CANCEL_REQUESTED,EFFECT_RESOLVED}' THEN 'run_closed'
            WHEN h.seq + n > history_max() AND types && '{EFFECT_REQUESTED,TIMER_SET,PROCESS_LOG,RUN_REPORTED}'
                THEN 'history_limit'
            ELSE 'ok' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, 0::bigint, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb, '{}'::jsonb;
            CONTINUE;
        END IF;
        IF NOT types <@ owner_types() THEN
            RAISE EXCEPTION 'the owner of a run does not write rows of these types: %', types USING ERRCODE = 'BB002';
        END IF;
        -- An iteration without a row (it clears the strikes after a replay) is at no time of its own.
        ts := CASE WHEN n > 0 THEN greatest(clock_timestamp(), h.recorded_at) ELSE h.recorded_at END;
        rws := it.rws;
        more := '[]';
        answers := '{}';
        requested := 0;
        failed := 0;
        settled := 0;
        IF 'EFFECT_REQUESTED' = ANY (types) THEN
            SELECT a.more, a.requested INTO more, requested FROM request_effects(h, rws, n, ts) a;
            IF jsonb_path_exists(rws, '$[*].x ? (@.kind == "RUN")') THEN
                SELECT a.more, a.begun, a.settled INTO further, answers, failed
                    FROM start_children(h, rws, h.seq + n + jsonb_array_length(more), it.actor, ts) a;
                more := more || further;
                settled := failed;
                answers := jsonb_build_object('begun', answers);
            END IF;
        END IF;
        IF types && '{EFFECT_CANCEL_REQUESTED,EFFECT_RESOLVED}' THEN
            SELECT a.rws, a.more, answers || a.detail, failed + a.settled INTO rws, further, answers, settled
                FROM settle_idle(h, rws, h.seq + n + jsonb_array_length(more), ts, it.actor) a;
            more := more || further;
        END IF;
        IF NOT h.history_warned AND h.seq + n + jsonb_array_length(more) >= history_warning() THEN
            more := more || jsonb_build_object('seq', h.seq + n + jsonb_array_length(more) + 1, 'type', 'PROCESS_LOG',
                'data', jsonb_build_object('level', 'WARNING', 'message', 'the journal of this run has ' ||
                    history_warning() || ' rows; it ends at ' || history_max() || ': use ctx.continue_as_new'));
            h.history_warned := true;
        END IF;
        IF types && '{RUN_CLOSING,RUN_COMPLETED}' THEN
            PERFORM keep_blobs(it.run_id, ARRAY(SELECT r->>'blob_text' FROM jsonb_array_elements(rws) r));
        END IF;
        INSERT INTO journal (run_id, seq, type, cause, effect_id, effect_key, attempt, recorded_at, writer, data)
            SELECT it.run_id, h.seq + r.o, r.item->>'type', coalesce((r.item->>'cause')::bigint, 0),
                   (r.item->>'effect_id')::uuid, r.item->>'effect_key', coalesce((r.item->>'attempt')::int, 0), ts,
                   it.actor, r.item->'data'
            FROM jsonb_array_elements(rws) WITH ORDINALITY r(item, o);
        IF jsonb_array_length(more) > 0 THEN
            INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
                SELECT it.run_id, m.seq, m.type, m.effect_id, m.effect_key, coalesce(m.attempt, 0), ts, it.actor, m.data
                FROM jsonb_to_recordset(more) AS m(seq bigint, type text, effect_id uuid, effect_key text,
                                                   attempt int, data jsonb);
        END IF;
        IF types && '{TIMER_SET,TIMER_FIRED}' THEN
            INSERT INTO timers (run_id, ordinal, fire_at, seq)
                SELECT it.run_id, (r.item->'data'->>'ordinal')::int, (r.item->'data'->>'fire_at')::timestamptz, h.seq + r.o
                FROM jsonb_array_elements(rws) WITH ORDINALITY r(item, o) WHERE r.item->>'type' = 'TIMER_SET'
                ON CONFLICT DO NOTHING;
            DELETE FROM timers t USING jsonb_array_elements(rws) r(item)
                WHERE t.run_id = it.run_id AND r.item->>'type' = 'TIMER_FIRED'
                  AND t.ordinal = (r.item->'data'->>'ordinal')::int;
        END IF;
        h.seq := h.seq + n + jsonb_array_length(more);
        IF types && '{RUN_CLOSING,RUN_COMPLETED,RUN_FAILED,RUN_CANCELLED,RUN_CONTINUED,RUN_HALTED,RUN_REPORTED,PROCESS_RUNTIME_ERROR}' THEN
            SELECT * INTO h FROM project_run(h, rws, h.seq - n - jsonb_array_length(more), ts);
        END IF;
        UPDATE run_heads u SET seq = h.seq, iteration = it.iteration, append_id = it.append_id, recorded_at = ts,
                strikes = 0, history_warned = h.history_warned, open = h.open, state = h.state, closing = h.closing,
                open_effects = u.open_effects + requested - settled
            WHERE u.run_id = it.run_id;
        IF up.run_id IS NOT NULL THEN
            SELECT r INTO further FROM jsonb_array_elements(rws) r
                WHERE r->>'type' IN ('RUN_COMPLETED', 'RUN_FAILED', 'RUN_CANCELLED');
            answers := answers || jsonb_build_object('elsewhere', coalesce(answers->'elsewhere', '[]')
                || coalesce(settle_parent(up, it.run_id, further, it.actor), '[]'));
        ELSIF 'RUN_CONTINUED' = ANY (types) THEN
            SELECT r INTO further FROM jsonb_array_elements(rws) r WHERE r->>'type' = 'RUN_CONTINUED';
            answers := answers || jsonb_build_object('begun',
                jsonb_build_array(continue_run(h, further, it.actor, ts)));
        END IF;
        RETURN QUERY SELECT it.ord, 'ok', h.seq - n - jsonb_array_length(more) + 1, h.seq, ts, more, answers;
    END LOOP;
END
$$;

-- Effects that are asked for: their rows, and for each a result of an earlier run, a dispatch (fast path) or a place in
-- the queue. Answers with the further journal rows and the number of effects that are open; `n` is the number of the
-- append's own rows.
CREATE FUNCTION request_effects(h run_heads, rws jsonb, n int, ts timestamptz, OUT more jsonb, OUT requested int)
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    ns text; old_run uuid; reused jsonb := '{}'; holds boolean := EXISTS (SELECT FROM dispatch_holds);
    breakers boolean := EXISTS (SELECT FROM provider_breakers);
    budgeted boolean := EXISTS (SELECT FROM run_budgets b WHERE b.run_id = h.run_id); by_label boolean;
BEGIN
    SELECT namespace, reuse_from INTO ns, old_run FROM runs WHERE run_id = h.run_id;
    by_label := EXISTS (SELECT FROM label_budgets l WHERE l.namespace = ns);
    IF old_run IS NOT NULL THEN
        reused := reused_effects(h.run_id, old_run, rws);
    END IF;
    WITH asked AS (
        SELECT r.o, (r.item->>'effect_id')::uuid AS effect_id, r.item->>'effect_key' AS key, x.*,
               x.dispatch->>'executor_id' AS d_executor, x.dispatch->>'incarnation' AS d_incarnation,
               (x.dispatch->>'session_no')::int AS d_session
        FROM jsonb_array_elements(rws) WITH ORDINALITY r(item, o),
             jsonb_to_record(r.item->'x') AS x(kind text, name text, harness text, pool text, capabilities text[],
                 background boolean, priority int, group_id text, group_max int, group_strategy text,
                 not_before timestamptz,
                 queue_timeout_s double precision, total_timeout_s double precision, max_attempts int,
                 initial_s double precision, backoff double precision, max_interval_s double precision,
                 non_retryable text[], on_quota text, on_run_end text, labels jsonb, executor_labels jsonb,
                 poll_interval_s double precision, dispatch jsonb, continues_on text, resumes boolean, budget jsonb)
        WHERE r.item->>'type' = 'EFFECT_REQUESTED'
    ), granting AS (
        SELECT a.*, reused ? a.key AS known, e.executor_id IS NOT NULL AND NOT is_parked(h.state) AND NOT reused ? a.key
                    AND a.kind IN ('SHELL', 'FUNCTION', 'AGENT') AND coalesce(a.not_before <= ts, true)
                    AND NOT (holds AND is_held(ns, a.dispatch->>'harness', a.d_executor, a.labels))
                    AND NOT (breakers AND is_broken(ns, a.dispatch->>'harness', a.d_executor))
                    AND a.budget IS NULL AND NOT budgeted AND NOT by_label  -- budgets are the claim's to check
                    AND (a.group_id IS NULL OR group_limit(h.run_id, a.group_id, coalesce(a.group_max, 1)) >=
                        row_number() OVER (PARTITION BY a.group_id, e.executor_id IS NULL ORDER BY a.o)
                        + group_open(h.run_id, a.group_id)) AS granted,
               a.kind IN ('SHELL', 'FUNCTION', 'AGENT') AS by_executor
        FROM asked a LEFT JOIN executors e
             ON e.executor_id = a.d_executor AND e.incarnation = a.d_incarnation AND e.session_no = a.d_session
                AND e.state = 'CONNECTED' AND e.ordered_drain IS NULL AND a.dispatch->>'token_hash' IS NOT NULL
    ), decided AS (
        SELECT g.*, h.seq + n + count(*) FILTER (WHERE g.granted OR g.known) OVER (ORDER BY g.o) AS at_seq FROM granting g
    ), grouped AS (
        INSERT INTO run_groups (run_id, group_id, strategy, max_concurrency, limit_)
            SELECT DISTINCT ON (a.group_id) h.run_id, a.group_id, coalesce(a.group_strategy, 'CONCURRENT'),
                   coalesce(a.group_max, 1), coalesce(a.group_max, 1)
            FROM asked a WHERE a.group_id IS NOT NULL ORDER BY a.group_id, a.o
            ON CONFLICT DO NOTHING
    ), placed AS (
        INSERT INTO effects (effect_id, run_id, key, namespace, kind, name, harness, pool, background, state, attempt,
                             starts, capabilities, executor_labels, executor_id, incarnation, session_no, token_hash,
                             requested_seq, requested_at, dispatched_at, not_before, queue_deadline, total_deadline,
                             max_attempts, initial_s, backoff, max_interval_s, non_retryable, on_quota, priority,
                             group_id, group_max, on_run_end, labels, poll_interval_s, settled_seq, settled_at,
                             continues_on, resumes, budget)
            SELECT d.effect_id, h.run_id, d.key, ns, d.kind, d.name,
                   CASE WHEN granted THEN d.dispatch->>'harness' ELSE d.harness END, d.pool, d.background,
                   CASE WHEN known THEN 'SUCCEEDED' WHEN granted THEN 'DISPATCHED' WHEN by_executor THEN 'QUEUED'
                        ELSE 'WAITING' END,
                   granted::int, granted::int, d.capabilities, d.executor_labels,
                   CASE WHEN granted THEN d_executor END, CASE WHEN granted THEN d_incarnation END,
                   CASE WHEN granted THEN d_session END,
                   CASE WHEN granted THEN decode(d.dispatch->>'token_hash', 'hex') END,
                   h.seq + d.o, ts, CASE WHEN granted THEN ts END, d.not_before,
                   ts + make_interval(secs => d.queue_timeout_s), ts + make_interval(secs => d.total_timeout_s),
                   d.max_attempts, d.initial_s, d.backoff, d.max_interval_s, d.non_retryable,
                   coalesce(d.on_quota, 'FAIL_OVER'), d.priority, d.group_id, coalesce(d.group_max, 1), d.on_run_end,
                   d.labels, d.poll_interval_s, CASE WHEN known THEN d.at_seq END, CASE WHEN known THEN ts END,
                   coalesce(d.continues_on, ''), coalesce(d.resumes, true),
                   CASE WHEN by_executor THEN coalesce(d.budget, CASE WHEN budgeted THEN '{}'::jsonb END) END
            FROM decided d
    ), queued AS (
        INSERT INTO dispatch_queue (effect_id, run_id, namespace, pool, capabilities, executor_labels, background,
                                    priority, group_id, group_max, enqueued_at, not_before, rank)
            SELECT d.effect_id, h.run_id, ns, d.pool, d.capabilities, d.executor_labels, d.background, d.priority,
                   d.group_id, coalesce(d.group_max, 1), ts, coalesce(d.not_before, ts), ts - d.priority * interval '30 s'
            FROM decided d WHERE d.by_executor AND NOT d.granted AND NOT d.known
    )
    SELECT count(*) FILTER (WHERE NOT d.known),
           coalesce(jsonb_agg(CASE WHEN d.granted THEN jsonb_build_object(
               'seq', d.at_seq, 'type', 'EFFECT_DISPATCHED', 'effect_id', d.effect_id,
               'effect_key', d.key, 'attempt', 1,
               'data', jsonb_build_object('executor_id', d.d_executor, 'incarnation', d.d_incarnation,
                                          'session_no', d.d_session, 'harness', d.dispatch->>'harness'))
           ELSE jsonb_build_object(
               'seq', d.at_seq, 'type', 'EFFECT_REUSED', 'effect_id', d.effect_id, 'effect_key', d.key, 'attempt', 0,
               'data', jsonb_build_object('from_run_id', old_run, 'from_effect_id', reused->d.key->'effect_id')
                       || field('result', reused->d.key->'result')) END
               ORDER BY d.o) FILTER (WHERE d.granted OR d.known), '[]')
        INTO requested, more
        FROM decided d;
END
$$;

-- Cancels, and settlements of effects that no executor has. Answers with the rows as they are to be appended (a cancel
-- of a settled effect is marked as no-op, a refused settlement becomes evidence), the further rows, and whom to tell.
CREATE FUNCTION settle_idle(h run_heads, INOUT rws jsonb, after_seq bigint, ts timestamptz, actor text,
                            OUT more jsonb, OUT detail jsonb, OUT settled int)
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record; e effects; cancels jsonb := '[]'; refused jsonb := '[]'; elsewhere jsonb := '[]'; row_ jsonb;
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
            IF e.effect_id IS NULL OR e.settled_seq IS NOT NULL OR is_live(e.state) THEN
                row_ := r.item || jsonb_build_object('type', 'EFFECT_SUPERSEDED', 'data', jsonb_build_object(
                    'refused_type', 'EFFECT_RESOLVED', 'refused_data', r.item->'data',
                    'cause', CASE WHEN e.effect_id IS NULL THEN 'not_found'
                                  WHEN e.settled_seq IS NULL THEN 'live_attempt' ELSE 'settled' END));
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

-- Settles an effect without live attempt as cancelled; answers with its journal row.
CREATE FUNCTION cancelled_row(e effects, why jsonb, at_seq bigint, ts timestamptz) RETURNS jsonb
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    UPDATE effects SET state = 'CANCELLED', settled_seq = at_seq, settled_at = ts,
            reason = replace(why->>'reason', 'EFFECT_REASON_', '')
        WHERE effect_id = e.effect_id;
    DELETE FROM dispatch_queue WHERE effect_id = e.effect_id;
    RETURN jsonb_build_object('seq', at_seq, 'type', 'EFFECT_CANCELLED', 'effect_id', e.effect_id,
        'effect_key', e.key, 'attempt', e.attempt,
        'data', field('reason', why->'reason') || field('message', why->'message'));
END
$$;

-- Projects the rows about the run itself into `runs`; answers with the head as it is then.
CREATE FUNCTION project_run(h run_heads, rws jsonb, before_seq bigint, ts timestamptz) RETURNS run_heads
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record; ended text;
BEGIN
    FOR r IN SELECT item->>'type' AS type, item->'data' AS data, o
             FROM jsonb_array_elements(rws) WITH ORDINALITY t(item, o)
             WHERE item->>'type' IN ('RUN_CLOSING', 'RUN_COMPLETED', 'RUN_FAILED', 'RUN_CANCELLED', 'RUN_CONTINUED',
                                     'RUN_HALTED', 'RUN_REPORTED', 'PROCESS_RUNTIME_ERROR') ORDER BY o
    LOOP
        IF r.type = 'RUN_REPORTED' THEN
            UPDATE runs SET report = r.data WHERE run_id = h.run_id;
            CONTINUE;
        END IF;
        h.state := CASE r.type
            WHEN 'RUN_CLOSING' THEN 'CLOSING' WHEN 'RUN_HALTED' THEN 'HALTED'
            WHEN 'PROCESS_RUNTIME_ERROR' THEN 'PROCESS_ERROR'
            ELSE replace(r.type, 'RUN_', '') END;
        h.closing := h.closing OR r.type = 'RUN_CLOSING';
        h.open := r.type NOT IN ('RUN_COMPLETED', 'RUN_FAILED', 'RUN_CANCELLED', 'RUN_CONTINUED');
        UPDATE runs SET state = h.state, ended_at = CASE WHEN NOT h.open THEN ts END,
                end_seq = CASE WHEN NOT h.open THEN before_seq + r.o END,
                error = coalesce(r.data->'error', error),
                halt_reason = CASE WHEN r.type = 'RUN_HALTED' THEN coalesce(r.data->>'reason', '') ELSE halt_reason END,
                unobserved_failures = coalesce((r.data->>'unobserved_failures')::int, unobserved_failures)
            WHERE run_id = h.run_id;
    END LOOP;
    IF NOT h.open THEN
        DELETE FROM timers WHERE run_id = h.run_id;
    END IF;
    RETURN h;
END
$$;

-- A cancel from outside: durable when this returns.
CREATE FUNCTION request_cancels_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, head_seq bigint, recorded_at timestamptz, extra jsonb, detail jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; e effects; ts timestamptz; rws jsonb; a record;
    many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, effect_id uuid, reason text, message text, actor text)
        ORDER BY i.run_id, i.effect_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        SELECT * INTO e FROM effects WHERE effect_id = it.effect_id AND run_id = it.run_id;
        outcome := CASE
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL OR (it.effect_id IS NOT NULL AND e.effect_id IS NULL) THEN 'not_found'
            WHEN e.settled_seq IS NOT NULL THEN 'settled'
            WHEN e.cancel_reason IS NOT NULL THEN 'already'
            WHEN it.effect_id IS NULL AND NOT h.open THEN 'run_closed'
            WHEN it.effect_id IS NULL AND h.cancel_requested THEN 'already'
            ELSE 'ok' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb, '{"cancels": []}'::jsonb;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        IF it.effect_id IS NULL THEN
            rws := jsonb_build_array(cancel_run(h, it.message, it.actor, ts));
            detail := '{"cancels": []}';
        ELSE
            rws := jsonb_build_array(jsonb_build_object('seq', h.seq + 1, 'type', 'EFFECT_CANCEL_REQUESTED',
                'effect_id', it.effect_id, 'effect_key', e.key, 'attempt', e.attempt,
                'data', field('reason', to_jsonb(it.reason)) || field('message', to_jsonb(it.message))));
            SELECT * INTO a FROM settle_idle(h, rws, h.seq + 1, ts, it.actor);
            rws := a.rws || a.more;
            detail := a.detail;
            INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
                SELECT it.run_id, m.seq, m.type, m.effect_id, m.effect_key, coalesce(m.attempt, 0), ts, it.actor, m.data
                FROM jsonb_to_recordset(rws) AS m(seq bigint, type text, effect_id uuid, effect_key text, attempt int,
                                                  data jsonb);
            UPDATE run_heads u SET seq = u.seq + jsonb_array_length(rws), recorded_at = ts,
                    open_effects = u.open_effects - a.settled WHERE u.run_id = it.run_id;
        END IF;
        RETURN QUERY SELECT it.ord, 'ok', h.seq + jsonb_array_length(rws), ts, rws, detail;
    END LOOP;
END
$$;

-- An answer from outside to an effect that no executor has.
CREATE FUNCTION resolve_external_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, head_seq bigint, recorded_at timestamptz, extra jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; e effects; ts timestamptz; d jsonb; was jsonb; rws jsonb;
    many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, effect_id uuid, actor text, state text, result jsonb,
                                          error jsonb, blob_text text)
        ORDER BY i.run_id, i.effect_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        SELECT * INTO e FROM effects WHERE effect_id = it.effect_id AND run_id = it.run_id;
        IF it.blob_text IS NOT NULL THEN
            it.result := jsonb_set(it.result, '{value}', blob_ref(it.blob_text));
        END IF;
        d := jsonb_build_object('state', it.state) || field('result', it.result) || field('error', it.error)
             || field('resolved_by', to_jsonb(it.actor));
        SELECT data INTO was FROM journal WHERE run_id = it.run_id AND seq = e.settled_seq;
        outcome := CASE
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL OR e.effect_id IS NULL THEN 'not_found'
            WHEN e.kind <> 'EXTERNAL' THEN 'has_executor'
            WHEN e.settled_seq IS NULL THEN 'ok'
            WHEN was - 'resolved_by' = d - 'resolved_by' THEN 'already'
            ELSE 'settled' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        UPDATE effects SET state = replace(it.state, 'EFFECT_STATE_', ''), settled_seq = h.seq + 1, settled_at = ts,
                reason = replace(it.error->>'reason', 'EFFECT_REASON_', '')
            WHERE effect_id = it.effect_id;
        INSERT INTO journal (run_id, seq, type, effect_id, effect_key, recorded_at, writer, data)
            VALUES (it.run_id, h.seq + 1, 'EFFECT_RESOLVED', it.effect_id, e.key, ts, it.actor, d);
        PERFORM keep_blobs(it.run_id, ARRAY[it.blob_text]);
        UPDATE run_heads u SET seq = h.seq + 1, recorded_at = ts, open_effects = u.open_effects - 1
            WHERE u.run_id = it.run_id;
        rws := jsonb_build_array(jsonb_build_object('seq', h.seq + 1, 'type', 'EFFECT_RESOLVED',
            'effect_id', it.effect_id, 'effect_key', e.key, 'attempt', 0, 'data', d));
        RETURN QUERY SELECT it.ord, 'ok', h.seq + 1, ts, rws;
    END LOOP;
END
$$;
