-- Run control from outside: any replica may call these. The fence is the state of the run, read under the head's lock;
-- the owner hears of the row like of any other, and its appends to a parked run are refused.

CREATE FUNCTION halt_runs_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, head_seq bigint, recorded_at timestamptz, extra jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; ts timestamptz; d jsonb; many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, reason text, actor text) ORDER BY i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        outcome := CASE
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL THEN 'not_found'
            WHEN NOT h.open THEN 'run_closed'
            WHEN h.state = 'HALTED' AND NOT EXISTS (
                SELECT FROM client_runs c WHERE c.run_id = it.run_id AND c.idle_halt) THEN 'already'
            ELSE 'ok' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        d := field('reason', to_jsonb(it.reason));
        INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
            VALUES (it.run_id, h.seq + 1, 'RUN_HALTED', ts, it.actor, d);
        UPDATE runs SET state = 'HALTED', halt_reason = it.reason WHERE run_id = it.run_id;
        -- whatever halted it before: now it waits for a resumption, not for its client
        UPDATE client_runs SET idle_halt = false WHERE run_id = it.run_id AND idle_halt;
        UPDATE run_heads u SET seq = h.seq + 1, recorded_at = ts, state = 'HALTED' WHERE u.run_id = it.run_id;
        RETURN QUERY SELECT it.ord, 'ok', h.seq + 1, ts,
            jsonb_build_array(jsonb_build_object('seq', h.seq + 1, 'type', 'RUN_HALTED', 'data', d));
    END LOOP;
END
$$;

-- A halted or parked run goes on as what it was. Its strikes are forgiven: somebody has looked at it.
CREATE FUNCTION resume_runs_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, head_seq bigint, recorded_at timestamptz, extra jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; ts timestamptz; d jsonb; becomes text; many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, reason text, actor text, call_id text) ORDER BY i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        outcome := CASE
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL THEN 'not_found'
            WHEN EXISTS (SELECT FROM runs r WHERE r.run_id = it.run_id AND r.resume_id = it.call_id) THEN 'already'
            WHEN NOT h.open THEN 'run_closed'
            WHEN NOT is_parked(h.state) THEN 'not_parked'
            ELSE 'ok' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        becomes := CASE WHEN h.closing THEN 'CLOSING' WHEN h.cancel_requested THEN 'CANCELLING' ELSE 'RUNNING' END;
        d := field('reason', to_jsonb(it.reason)) || jsonb_build_object('state', 'RUN_STATE_' || becomes);
        INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
            VALUES (it.run_id, h.seq + 1, 'RUN_RESUMED', ts, it.actor, d);
        UPDATE runs SET state = becomes, error = NULL, halt_reason = NULL, resume_id = it.call_id
            WHERE run_id = it.run_id;
        UPDATE run_heads u SET seq = h.seq + 1, recorded_at = ts, state = becomes, strikes = 0
            WHERE u.run_id = it.run_id;
        UPDATE client_runs SET idle_halt = false, idle_at = CASE WHEN becomes = 'RUNNING'
                THEN ts + make_interval(secs => idle_timeout_s) ELSE idle_at END
            WHERE run_id = it.run_id;
        RETURN QUERY SELECT it.ord, 'ok', h.seq + 1, ts,
            jsonb_build_array(jsonb_build_object('seq', h.seq + 1, 'type', 'RUN_RESUMED', 'data', d));
    END LOOP;
END
$$;

-- A message to a run, once for each request id, which is kept for 24 hours. Ordered by request id: callers wait for each
-- other's rows of `requests`, and never for a head while they hold one of those (calls about several runs skip heads).
CREATE FUNCTION signal_runs_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, seq bigint, head_seq bigint, recorded_at timestamptz, extra jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; known requests; ts timestamptz; many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, namespace text, request_id text, digest text, data jsonb,
                                          actor text)
        ORDER BY i.namespace, i.request_id, i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        DELETE FROM requests q WHERE q.namespace = it.namespace AND q.request_id = it.request_id
            AND q.created_at < clock_timestamp() - interval '24 h';
        SELECT * INTO known FROM requests q WHERE q.namespace = it.namespace AND q.request_id = it.request_id;
        outcome := CASE
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL THEN 'not_found'
            WHEN known.kind = 'SIGNAL_RUN' AND known.digest = it.digest THEN 'already'
            WHEN known.kind IS NOT NULL THEN 'request_conflict'
            WHEN NOT h.open THEN 'run_closed'
            WHEN h.seq >= history_max() THEN 'history_limit'
            ELSE 'ok' END;
        IF outcome = 'ok' THEN
            ts := greatest(clock_timestamp(), h.recorded_at);
            INSERT INTO requests (namespace, request_id, kind, digest, answer, created_at)
                VALUES (it.namespace, it.request_id, 'SIGNAL_RUN', it.digest, jsonb_build_object('seq', h.seq + 1), ts)
                ON CONFLICT DO NOTHING;
            outcome := CASE WHEN FOUND THEN 'ok' ELSE 'busy' END;  -- somebody used the id just now: look again
        END IF;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, (known.answer->>'seq')::bigint, coalesce(h.seq, 0), h.recorded_at,
                '[]'::jsonb;
            CONTINUE;
        END IF;
        INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
            VALUES (it.run_id, h.seq + 1, 'SIGNAL_RECEIVED', ts, it.actor, it.data);
        UPDATE run_heads u SET seq = h.seq + 1, recorded_at = ts WHERE u.run_id = it.run_id;
        RETURN QUERY SELECT it.ord, 'ok', h.seq + 1, h.seq + 1, ts,
            jsonb_build_array(jsonb_build_object('seq', h.seq + 1, 'type', 'SIGNAL_RECEIVED', 'data', it.data));
    END LOOP;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT EXECUTE ON FUNCTION halt_runs_v1(jsonb), resume_runs_v1(jsonb), signal_runs_v1(jsonb)
        TO backburner_scheduler;
END
$$;
