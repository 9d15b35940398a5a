-- What an attempt's executor writes. No time parameter, fixed types of events, every item fenced by the attempt's
-- secret token. These and contract_v1 are all that the executors' role may call.

-- What a caller sends for an attempt and what is known of its effect, once head and effects are locked.
CREATE TYPE attempt_item AS (ord int, run_id uuid, effect_id uuid, attempt int, token bytea, item jsonb);

-- The items of a call, in lock order; instead of a large value they have the reference to it, for they are copied often.
-- A malformed token or id fails the call: executors do not make them.
CREATE FUNCTION attempt_items(items jsonb) RETURNS SETOF attempt_item
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT (t.n - 1)::int, (t.item->>'run_id')::uuid, (t.item->>'effect_id')::uuid, (t.item->>'attempt')::int,
           sha256(decode(t.item->>'token', 'hex')),
           CASE WHEN t.item ? 'blob_text'
                THEN jsonb_set(t.item - 'blob_text', '{result,value}', blob_ref(t.item->>'blob_text')) ELSE t.item END
    FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n)
$$;

-- The session that an attempt says it has, as a HarnessSession; NULL: it says nothing.
CREATE FUNCTION session_of(e effects, said jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE
SET search_path = backburner, pg_temp AS $$
    SELECT CASE WHEN said->>'session_id' <> '' THEN
        jsonb_build_object('harness', e.harness, 'session_id', said->>'session_id', 'executor_id', e.executor_id)
        || field('workspace', said->'workspace') END
$$;

-- Executor that the next attempt of an effect belongs to, once an attempt has said what there is to go on with.
CREATE FUNCTION home_of(e effects, said jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN said IS NULL OR NOT e.resumes THEN e.continues_on ELSE coalesce(said->>'executor_id', '') END
$$;

-- The child of an attempt runs.
CREATE FUNCTION attempts_started_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, run_id uuid, effect_id uuid, seq bigint, type text, recorded_at timestamptz,
               data text, effect_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    bucket record; it attempt_item; h run_heads; e effects; ts timestamptz; d jsonb; was journal;
BEGIN
    FOR bucket IN SELECT i.run_id, array_agg(i ORDER BY i.effect_id) AS all_items FROM attempt_items(items) i
                  GROUP BY i.run_id ORDER BY i.run_id
    LOOP
        SELECT * INTO h FROM run_heads u WHERE u.run_id = bucket.run_id FOR UPDATE;
        ts := greatest(clock_timestamp(), h.recorded_at);
        FOREACH it IN ARRAY bucket.all_items LOOP
            SELECT * INTO e FROM effects x WHERE x.effect_id = it.effect_id AND x.run_id = it.run_id FOR UPDATE;
            outcome := CASE WHEN e.effect_id IS NULL THEN 'not_found'
                WHEN (e.attempt = it.attempt AND e.token_hash = it.token) IS NOT TRUE THEN 'stale'
                WHEN e.settled_seq IS NOT NULL OR NOT is_live(e.state) THEN 'settled'
                WHEN e.started_at IS NOT NULL THEN 'already' ELSE 'ok' END;
            d := field('pid', it.item->'pid') || field('continues', it.item->'continues')
                 || field('fresh_because', it.item->'fresh_because');
            IF outcome = 'ok' THEN
                h.seq := h.seq + 1;
                INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
                    VALUES (it.run_id, h.seq, 'EFFECT_STARTED', it.effect_id, e.key, it.attempt, ts,
                            'executor/' || e.executor_id, d);
                UPDATE effects x SET started_at = ts, last_activity_at = ts,
                        state = CASE WHEN x.state = 'DISPATCHED' THEN 'RUNNING' ELSE x.state END
                    WHERE x.effect_id = it.effect_id;
            END IF;
            RETURN QUERY SELECT it.ord, outcome, it.run_id, it.effect_id, CASE WHEN outcome = 'ok' THEN h.seq END,
                'EFFECT_STARTED', ts, d::text, e.key;
        END LOOP;
        UPDATE run_heads u SET seq = h.seq, recorded_at = ts WHERE u.run_id = bucket.run_id AND u.seq <> h.seq;
    END LOOP;
END
$$;

-- Progress. A durable one becomes a row, within a budget of 100 an attempt and 10 a second a run; the projection
-- always follows. What a run may have goes to those of its attempts first that have had the fewest rows.
CREATE FUNCTION attempts_progress_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, run_id uuid, effect_id uuid, seq bigint, type text, recorded_at timestamptz,
               data text, effect_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    bucket record; it attempt_item; h run_heads; e effects; ts timestamptz; d jsonb; n int; lately int;
    rows_written int := 0;
BEGIN
    FOR bucket IN SELECT i.run_id, array_agg(i) AS all_items, array_agg(i.effect_id) AS ids
                  FROM attempt_items(items) i GROUP BY i.run_id ORDER BY i.run_id
    LOOP
        SELECT * INTO h FROM run_heads u WHERE u.run_id = bucket.run_id FOR UPDATE;
        ts := greatest(clock_timestamp(), h.recorded_at);
        PERFORM 1 FROM effects x WHERE x.effect_id = ANY (bucket.ids) ORDER BY x.effect_id FOR UPDATE;
        SELECT count(*) FILTER (WHERE recent.recorded_at > ts - interval '1 s') INTO lately FROM (
            SELECT j.recorded_at FROM journal j WHERE j.run_id = bucket.run_id AND j.type = 'EFFECT_PROGRESS'
            ORDER BY j.seq DESC LIMIT 10) recent;
        FOR it IN SELECT i.* FROM unnest(bucket.all_items) i LEFT JOIN effects x ON x.effect_id = i.effect_id
                  ORDER BY coalesce(x.progress_rows, 0), i.effect_id, (i.item->>'ordinal')::int
        LOOP
            SELECT * INTO e FROM effects x WHERE x.effect_id = it.effect_id AND x.run_id = it.run_id;
            n := (it.item->>'ordinal')::int;
            outcome := CASE WHEN e.effect_id IS NULL THEN 'not_found'
                WHEN (e.attempt = it.attempt AND e.token_hash = it.token) IS NOT TRUE THEN 'stale'
                WHEN e.settled_seq IS NOT NULL OR NOT is_live(e.state) THEN 'settled'
                WHEN n <= e.progress_ordinal THEN 'already'
                WHEN pg_column_size(it.item) > 65536 THEN 'too_large'
                WHEN (it.item->>'durable')::boolean IS NOT TRUE OR e.progress_rows >= 100 OR lately >= 10 THEN 'thinned'
                ELSE 'ok' END;
            d := field('progress', it.item->'progress') || field('usage', it.item->'usage')
                 || field('session', session_of(e, it.item->'session'));
            IF outcome = 'ok' THEN
                h.seq := h.seq + 1;
                lately := lately + 1;
                rows_written := rows_written + 1;
                INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
                    VALUES (it.run_id, h.seq, 'EFFECT_PROGRESS', it.effect_id, e.key, it.attempt, ts,
                            'executor/' || e.executor_id, d);
            END IF;
            IF outcome IN ('ok', 'thinned') THEN
                UPDATE effects x SET progress = coalesce(d->'progress', x.progress), usage = coalesce(d->'usage', x.usage),
                        session = coalesce(d->'session', x.session), continues_on = home_of(x, d->'session'),
                        progress_ordinal = n, progress_rows = x.progress_rows + (outcome = 'ok')::int,
                        state = CASE WHEN outcome = 'ok' AND x.state = 'DISPATCHED' THEN 'RUNNING' ELSE x.state END,
                        last_activity_at = ts
                    WHERE x.effect_id = it.effect_id;
            END IF;
            RETURN QUERY SELECT it.ord, outcome, it.run_id, it.effect_id, CASE WHEN outcome = 'ok' THEN h.seq END,
                'EFFECT_PROGRESS', ts, d::text, e.key;
        END LOOP;
        UPDATE run_heads u SET seq = h.seq, recorded_at = ts WHERE u.run_id = bucket.run_id AND u.seq <> h.seq;
    END LOOP;
    IF rows_written = 0 THEN
        PERFORM set_config('synchronous_commit', 'off', true);  -- only what carries a seq is worth a flush
    END IF;
END
$$;

-- Outcomes of attempts. Decides in the same commit whether the effect is settled or another attempt follows.
CREATE FUNCTION attempts_settle_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, run_id uuid, effect_id uuid, seq bigint, type text, recorded_at timestamptz,
               data text, effect_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    bucket record; h run_heads; ts timestamptz; written int; settled int; many boolean; largest int;
    refers boolean; large boolean; troubled boolean; news jsonb := '[]';
    breaking boolean := EXISTS (SELECT FROM provider_breakers);
    budgeted boolean := EXISTS (SELECT FROM label_budgets); ended uuid[] := '{}'; ended_after bigint[] := '{}';
BEGIN
    SELECT count(DISTINCT i->>'run_id') > 1, max(pg_column_size(i)), bool_or(i #> '{result,value,blob}' IS NOT NULL),
           bool_or(i ? 'blob_text'), bool_or(opens_breaker(i))
        INTO many, largest, refers, large, troubled FROM jsonb_array_elements(items) i;
    IF refers THEN  -- only what is kept here is referred to
        RAISE EXCEPTION 'an outcome brings a large value as blob_text, not a reference'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF largest > 1048576 THEN  -- a large value may be 16 MiB, all else of an outcome is small
        SELECT max(greatest(pg_column_size(i - 'blob_text'), octet_length(i->>'blob_text') / 16)) INTO largest
            FROM jsonb_array_elements(items) i;
    END IF;
    IF largest > 1048576 THEN
        RAISE EXCEPTION 'an outcome of % bytes is too large', largest USING ERRCODE = 'program_limit_exceeded';
    END IF;
    FOR bucket IN SELECT i.run_id, array_agg(i) AS all_items, array_agg(i.effect_id) AS ids
                  FROM attempt_items(items) i GROUP BY i.run_id ORDER BY i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads u WHERE u.run_id = bucket.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads u WHERE u.run_id = bucket.run_id FOR UPDATE;
        END IF;
        IF h.run_id IS NULL THEN
            RETURN QUERY SELECT i.ord,
                CASE WHEN EXISTS (SELECT FROM run_heads u WHERE u.run_id = bucket.run_id) THEN 'busy' ELSE 'not_found' END,
                i.run_id, i.effect_id, NULL::bigint, NULL::text, NULL::timestamptz, NULL::text, NULL::text
                FROM unnest(bucket.all_items) i;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        PERFORM 1 FROM effects x WHERE x.effect_id = ANY (bucket.ids) ORDER BY x.effect_id FOR UPDATE;
        RETURN QUERY
        WITH judged AS (
            SELECT i.ord, i.item, i.attempt AS asked_attempt, e.*,
                   i.effect_id AS asked_effect, i.item->>'outcome' AS came,
                   replace(coalesce(i.item->>'reason', ''), 'EFFECT_REASON_', '') AS came_reason,
                   seconds_within((i.item->>'elapsed_s')::double precision, 1e9) AS took,
                   CASE WHEN e.effect_id IS NULL THEN 'not_found'
                        WHEN row_number() OVER (PARTITION BY i.effect_id ORDER BY i.ord) > 1 THEN 'busy'
                        WHEN e.attempt = i.attempt AND e.token_hash = i.token THEN
                            CASE WHEN is_live(e.state) THEN 'ok' ELSE 'already' END
                        WHEN e.past_tokens[i.attempt] = i.token AND past.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_PARKED') THEN 'already'
                        ELSE 'stale' END AS verdict,
                   reset_of(i.item) AS reset_s, is_far_reset(i.item) AS far,
                   retry_pause(e.initial_s, e.backoff, e.max_interval_s, e.starts) AS own_pause,
                   -- nothing was done: it may be done anew even where work is to start once
                   e.starts - coalesce(e.attempt < 1000 AND i.item->'untouched' = 'true', false)::int AS counted,
                   -- a harness that nobody has would be waited for without end
                   CASE WHEN e.kind = 'AGENT' AND i.item->>'outcome' = 'failed' THEN
                       ARRAY(SELECT o.c FROM unnest(e.capabilities) WITH ORDINALITY o(c, at)
                             WHERE o.c <> 'agent/' || e.harness AND is_offered(e.namespace, o.c) ORDER BY o.at) END AS others,
                   -- evidence is kept once, and only of attempts that were: nobody fills a run with forged outcomes
                   evidence.seq IS NULL AND e.past_tokens[i.attempt] = i.token AS is_evidence,
                   CASE WHEN (e.attempt = i.attempt AND e.token_hash = i.token) IS NOT TRUE
                             AND (e.past_tokens[i.attempt] = i.token) IS NOT TRUE THEN NULL
                        WHEN past.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_PARKED') THEN past.seq
                        WHEN e.attempt = i.attempt AND e.token_hash = i.token THEN e.settled_seq
                        ELSE evidence.seq END AS past_seq
            FROM unnest(bucket.all_items) i
                 LEFT JOIN effects e ON e.effect_id = i.effect_id AND e.run_id = i.run_id
                 LEFT JOIN journal past ON past.effect_id = i.effect_id AND past.attempt = i.attempt
                      AND past.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_PARKED')
                      AND NOT (e.attempt = i.attempt AND is_live(e.state))
                 LEFT JOIN journal evidence ON evidence.effect_id = i.effect_id AND evidence.attempt = i.attempt
                      AND evidence.type = 'EFFECT_SUPERSEDED' AND evidence.writer LIKE 'executor/%'
        ), weighed AS (
            SELECT j.*, coalesce(p.retried, true) OR (p.parks AND reset_s IS NOT NULL) AS retried,
                   far OR came_reason = 'QUOTA_EXHAUSTED' AS of_quota,
                   counted < max_attempts AND coalesce(ts + make_interval(secs => reset_s) < total_deadline, true) AS in_time,
                   coalesce(p.fails_over, false) AND kind = 'AGENT' AND coalesce(cardinality(others) > 0, false)
                       AND (max_attempts > 1 OR counted = 0) AND coalesce(ts < total_deadline, true) AS may_fail_over
            FROM judged j LEFT JOIN failure_policies() p ON p.failure = j.came_reason
        ), led AS (
            SELECT w.*, CASE
                WHEN coalesce((item->>'final')::boolean, false) OR came_reason = ANY (non_retryable)
                     OR (of_quota AND on_quota = 'FAIL') THEN 'end'
                WHEN item->'asks' = 'true' THEN 'park'  -- its budget is spent: somebody is asked, and it is claimed when the budget is raised
                WHEN far AND in_time AND (on_quota = 'PARK' OR NOT may_fail_over) THEN 'park'
                WHEN far THEN CASE WHEN may_fail_over THEN 'fail over' ELSE 'end' END
                WHEN retried AND starts < max_attempts
                     AND coalesce(ts + make_interval(secs => coalesce(reset_s, own_pause)) < total_deadline, true)
                    THEN 'retry'
                WHEN may_fail_over THEN 'fail over' ELSE 'end' END AS leads_to
            FROM weighed w
        ), decided AS (
            SELECT j.*, CASE WHEN leads_to = 'fail over' OR item->'asks' = 'true' THEN 0 ELSE coalesce(reset_s, own_pause) END AS pause,
                   CASE WHEN far AND leads_to IN ('end', 'fail over') THEN jsonb_set(item->'error', '{message}',
                       to_jsonb(concat(item->'error'->>'message', reset_note(j.leads_to, ts + make_interval(secs => reset_s),
                           CASE WHEN on_quota = 'FAIL' THEN 'on_quota is fail'
                                WHEN in_time THEN '' WHEN counted >= max_attempts THEN
                                format('no attempt is left (max_attempts is %s)', max_attempts)
                                ELSE 'that is after its total timeout' END))))
                       ELSE item->'error' END AS error,
                   CASE
                WHEN verdict = 'stale' AND is_evidence THEN 'EFFECT_SUPERSEDED'
                WHEN verdict <> 'ok' THEN NULL
                WHEN came = 'succeeded' THEN 'EFFECT_RESOLVED'
                WHEN came = 'cancelled' OR cancel_reason IS NOT NULL THEN 'EFFECT_CANCELLED'
                WHEN leads_to = 'park' THEN 'EFFECT_PARKED'
                WHEN leads_to <> 'end' THEN 'EFFECT_ATTEMPT_FAILED'
                ELSE 'EFFECT_RESOLVED' END AS becomes
            FROM led j
        ), numbered AS (
            SELECT d.*, becomes IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_PARKED') AS unsettled,
                   h.seq + row_number() OVER (ORDER BY d.ord) AS at_seq,
                   -- what no longer fits into its context will not fit the next time
                   CASE WHEN leads_to = 'fail over' THEN jsonb_build_object('fresh_because',
                             format('attempt %s was one of another harness, %s', attempt, harness))
                        WHEN came_reason = 'CONTEXT_OVERFLOW'
                        THEN jsonb_build_object('fresh_because', format('attempt %s left no room in its session', attempt))
                        ELSE item->'result'->'session' END AS goes_on, CASE becomes
                WHEN 'EFFECT_SUPERSEDED' THEN jsonb_build_object('refused_type', 'EFFECT_RESOLVED',
                    'refused_data', (item - '{token,run_id,effect_id,attempt,executor_id,final,retry_after_s,park_after_s,'
                                            'untouched,account,asks,progress}'::text[]),
                    'cause', CASE WHEN settled_seq IS NULL THEN 'stale_attempt' ELSE 'settled' END)
                WHEN 'EFFECT_CANCELLED' THEN
                    field('reason', coalesce(to_jsonb(cancel_reason), item->'reason'))
                    || field('message', coalesce(to_jsonb(cancel_message), item->'message'))
                    || field('partial', item->'result') || field('death', item->'death')
                    || field('elapsed', duration(took))
                WHEN 'EFFECT_ATTEMPT_FAILED' THEN
                    field('error', error) || field('partial', item->'result')
                    || field('next_attempt_at', moment(ts + make_interval(secs => pause)))
                    || field('elapsed', duration(took))
                    || CASE WHEN leads_to = 'fail over'
                            THEN jsonb_build_object('next_harness', harness_of(others[1])) ELSE '{}' END
                WHEN 'EFFECT_PARKED' THEN
                    field('until', CASE WHEN item->'asks' IS DISTINCT FROM 'true' THEN moment(ts + make_interval(secs => pause)) END)
                    || field('error', error)
                    || field('partial', item->'result') || field('elapsed', duration(took))
                    || CASE WHEN counted < starts THEN '{"untouched": true}'::jsonb ELSE '{}' END
                ELSE jsonb_build_object('state', CASE came WHEN 'succeeded' THEN 'EFFECT_STATE_SUCCEEDED'
                        WHEN 'timed_out' THEN 'EFFECT_STATE_TIMED_OUT' ELSE 'EFFECT_STATE_FAILED' END)
                    || field('result', item->'result') || field('error', error)
                    || field('death', item->'death') || field('elapsed', duration(took)) END AS new_data
            FROM decided d WHERE becomes IS NOT NULL
        ), inserted AS (
            INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
                SELECT bucket.run_id, n.at_seq, n.becomes, n.effect_id, n.key, n.asked_attempt, ts,
                       'executor/' || CASE WHEN n.becomes = 'EFFECT_SUPERSEDED'
                                           THEN coalesce(n.item->>'executor_id', '') ELSE n.executor_id END, n.new_data
                FROM numbered n
        ), projected AS (
            UPDATE effects x SET
                state = CASE n.becomes WHEN 'EFFECT_CANCELLED' THEN 'CANCELLED' WHEN 'EFFECT_ATTEMPT_FAILED' THEN 'QUEUED'
                        WHEN 'EFFECT_PARKED' THEN 'PARKED'
                        ELSE CASE n.came WHEN 'succeeded' THEN 'SUCCEEDED' WHEN 'timed_out' THEN 'TIMED_OUT'
                             ELSE 'FAILED' END END,
                settled_seq = CASE WHEN NOT n.unsettled THEN n.at_seq END,
                settled_at = CASE WHEN NOT n.unsettled THEN ts END,
                not_before = CASE WHEN n.unsettled THEN ts + make_interval(secs => n.pause) END,
                asks = n.becomes = 'EFFECT_PARKED' AND n.item->'asks' IS NOT DISTINCT FROM 'true',
                queue_deadline = CASE WHEN NOT n.unsettled THEN x.queue_deadline END,  -- it has started once
                starts = CASE WHEN NOT n.unsettled OR n.leads_to = 'retry' THEN x.starts
                              WHEN n.leads_to = 'park' THEN n.counted ELSE 0 END,
                capabilities = CASE WHEN n.unsettled AND n.leads_to = 'fail over' THEN n.others ELSE x.capabilities END,
                harness = CASE WHEN n.unsettled AND n.leads_to = 'fail over' THEN harness_of(n.others[1]) ELSE x.harness END,
                reason = nullif(replace(coalesce(n.cancel_reason, n.came_reason), 'EFFECT_REASON_', ''), ''),
                elapsed_s = n.took, usage = coalesce(n.item->'result'->'usage', x.usage),
                progress = coalesce(n.item->'progress', x.progress),
                progress_ordinal = coalesce((n.item->'progress'->>'ordinal')::int, x.progress_ordinal),
                session = coalesce(n.goes_on, x.session),
                continues_on = CASE WHEN n.unsettled AND n.leads_to = 'fail over' THEN '' ELSE home_of(x, n.goes_on) END
            FROM numbered n WHERE x.effect_id = n.effect_id AND n.becomes <> 'EFFECT_SUPERSEDED'
        ), queued AS (
            INSERT INTO dispatch_queue (effect_id, run_id, namespace, pool, capabilities, executor_labels, background,
                                        priority, group_id, group_max, enqueued_at, not_before, rank)
                SELECT n.effect_id, bucket.run_id, n.namespace, n.pool,
                       CASE n.leads_to WHEN 'fail over' THEN n.others ELSE n.capabilities END, n.executor_labels, n.background,
                       n.priority, n.group_id, n.group_max, ts, ts + make_interval(secs => n.pause),
                       ts - n.priority * interval '30 s'
                FROM numbered n WHERE n.unsettled
        )
        SELECT d.ord, d.verdict, bucket.run_id, d.asked_effect, coalesce(n.at_seq, old.seq), coalesce(n.becomes, old.type),
               coalesce(CASE WHEN n.becomes IS NOT NULL THEN ts END, old.recorded_at),
               coalesce(n.new_data, old.data)::text, d.key
        FROM decided d LEFT JOIN numbered n ON n.ord = d.ord
             -- LATERAL and LIMIT: one look-up by key, even for a plan made before there were any statistics
             LEFT JOIN LATERAL (SELECT o.* FROM journal o WHERE d.becomes IS NULL AND o.run_id = bucket.run_id
                                AND o.seq = d.past_seq LIMIT 1) old ON true;
        SELECT count(*), count(*) FILTER (WHERE j.type IN ('EFFECT_RESOLVED', 'EFFECT_CANCELLED')) INTO written, settled
            FROM journal j WHERE j.run_id = bucket.run_id AND j.seq > h.seq;
        IF written > 0 THEN
            IF large THEN
                INSERT INTO blobs (run_id, digest, media_type, content)
                    SELECT bucket.run_id, d.ref->>'digest', 'application/json',
                           convert_to(items->i.ord->>'blob_text', 'UTF8')
                    FROM unnest(bucket.all_items) i CROSS JOIN LATERAL (SELECT i.item #> '{result,value,blob}') d(ref)
                    WHERE d.ref IS NOT NULL AND EXISTS (
                        SELECT FROM journal j WHERE j.run_id = bucket.run_id AND j.seq > h.seq
                           AND j.effect_id = i.effect_id AND d.ref IN (
                               j.data #> '{result,value,blob}', j.data #> '{partial,value,blob}',
                               j.data #> '{refused_data,result,value,blob}'))
                    ORDER BY 2 ON CONFLICT DO NOTHING;
            END IF;
            UPDATE run_heads u SET seq = h.seq + written, recorded_at = ts, open_effects = u.open_effects - settled
                WHERE u.run_id = bucket.run_id;
            IF EXISTS (SELECT FROM run_groups g WHERE g.run_id = bucket.run_id AND g.strategy = 'ADAPTIVE') THEN
                PERFORM adapt_groups(bucket.run_id, h.seq);
            END IF;
            IF troubled OR breaking THEN
                news := news || provider_news(bucket.run_id, h.seq, bucket.all_items);
            END IF;
            -- functions that report nothing, and that no budget counts, are many
            IF budgeted OR EXISTS (SELECT FROM effects x WHERE x.effect_id = ANY (bucket.ids)
                    AND (x.kind <> 'FUNCTION' OR x.usage IS NOT NULL OR x.budget IS NOT NULL)) THEN
                ended := ended || bucket.run_id;
                ended_after := ended_after || h.seq;
            END IF;
        END IF;
    END LOOP;
    IF news <> '[]' THEN
        PERFORM note_provider_news(news);
    END IF;
    IF cardinality(ended) > 0 THEN
        PERFORM count_usage(ended, ended_after);
    END IF;
END
$$;

-- Moves the limits of the run's adaptive groups by the outcomes after a seq, in their order: each attempt that failed of
-- overload or of a rate limit halves it, down to 1; each 10 successes since it was last changed raise it by 1, up to what
-- was asked for. So it is a function of the journal, whoever asks.
CREATE FUNCTION adapt_groups(p_run uuid, p_after bigint) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT e.group_id, j.data->>'state' = 'EFFECT_STATE_SUCCEEDED' AS well
        FROM journal j JOIN effects e ON e.effect_id = j.effect_id
             JOIN run_groups g ON g.run_id = p_run AND g.group_id = e.group_id AND g.strategy = 'ADAPTIVE'
        WHERE j.run_id = p_run AND j.seq > p_after AND j.type IN ('EFFECT_RESOLVED', 'EFFECT_ATTEMPT_FAILED')
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

-- Output chunks. Not worth a flush; what is stored twice is stored once; what comes without its token, or beyond what is
-- kept of an attempt, is dropped.
CREATE FUNCTION output_append_v1(run_ids uuid[], effect_ids uuid[], attempts int[], tokens bytea[], streams smallint[],
                                 offsets bigint[], chunks bytea[]) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
DECLARE
    stored int;
    full_ uuid[] := ARRAY(SELECT a.effect_id FROM (SELECT DISTINCT effect_id, attempt
                              FROM unnest(effect_ids, attempts) u(effect_id, attempt)) a
                          WHERE (SELECT sum(octet_length(o.data)) FROM effect_output o
                                 WHERE o.effect_id = a.effect_id AND o.attempt = a.attempt) >= output_bytes_max());
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- a SET clause would be undone before the commit
    INSERT INTO effect_output (effect_id, attempt, stream, offset_, run_id, data)
        SELECT c.effect_id, c.attempt, c.stream, c.at, c.run_id, c.chunk
        FROM unnest(run_ids, effect_ids, attempts, tokens, streams, offsets, chunks)
                 AS c(run_id, effect_id, attempt, token, stream, at, chunk)
             JOIN effects e ON e.effect_id = c.effect_id AND e.run_id = c.run_id AND e.attempt = c.attempt
                            AND e.token_hash = sha256(c.token)
        WHERE octet_length(c.chunk) BETWEEN 1 AND 1048576 AND c.at >= 0 AND c.stream IN (1, 2, 3)
          AND c.effect_id <> ALL (full_)
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS stored = ROW_COUNT;
    RETURN stored;
END
$$;
