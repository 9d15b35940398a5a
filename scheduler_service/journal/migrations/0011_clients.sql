-- Client-driven runs: a client requests the effects and ends the run. Any replica may write for it, fenced by the
-- client's epoch, which every new start of a client raises; the run's owner keeps time, declares losses, and halts it
-- when its client is gone.

CREATE TABLE client_runs (
    run_id uuid PRIMARY KEY,
    epoch bigint NOT NULL,
    start_id text NOT NULL,
    idle_timeout_s double precision NOT NULL,
    idle_at timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE client_runs IS 'The fence of each client-driven run, and when it counts as left by its client.';
COMMENT ON COLUMN client_runs.start_id IS 'Tells a repetition of the call that made the epoch from another start.';
COMMENT ON COLUMN client_runs.idle_at IS 'Written under the head''s lock or, later only, by a sign of life. infinity: not watched.';
CREATE INDEX client_runs_idle ON client_runs (idle_at);

-- Most effects of a run that may be open at a time: more are refused until some have settled.
CREATE FUNCTION open_effects_max() RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 20000 $$;

-- How a client's call stands to its run, whose head is locked: empty when it may go on.
CREATE FUNCTION client_refusal(h run_heads, wanted uuid, c client_runs, epoch bigint) RETURNS text
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT CASE
        WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads u WHERE u.run_id = wanted) THEN 'busy'
        WHEN h.run_id IS NULL THEN 'not_found'
        WHEN c.run_id IS NULL THEN 'not_client_driven'
        WHEN c.epoch <> epoch THEN 'superseded'
        ELSE '' END
$$;

-- A run that was halted because its client was silent goes on: the client has called. Answers with the row to be
-- appended, NULL when the run is not halted for that.
CREATE FUNCTION wake_client(h run_heads) RETURNS jsonb LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    goes_on text := CASE WHEN h.closing THEN 'CLOSING' WHEN h.cancel_requested THEN 'CANCELLING' ELSE 'RUNNING' END;
BEGIN
    UPDATE client_runs SET idle_halt = false WHERE run_id = h.run_id AND idle_halt;
    IF NOT FOUND OR h.state <> 'HALTED' THEN
        RETURN NULL;
    END IF;
    UPDATE runs SET state = goes_on, halt_reason = NULL WHERE run_id = h.run_id;
    RETURN jsonb_build_object('seq', h.seq + 1, 'type', 'RUN_RESUMED', 'data', jsonb_build_object(
        'reason', 'its client has called', 'state', 'RUN_STATE_' || goes_on));
END
$$;

-- Another start of a client: a new epoch, unless it repeats the call that made the present one.
CREATE FUNCTION open_clients_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, client_epoch bigint, head_seq bigint, recorded_at timestamptz, extra jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; c client_runs; ts timestamptz; again boolean; woken jsonb;
    many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, start_id text, idle_timeout_s double precision, actor text)
        ORDER BY i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        SELECT * INTO c FROM client_runs WHERE run_id = h.run_id;
        outcome := client_refusal(h, it.run_id, c, c.epoch);
        IF outcome <> '' THEN
            RETURN QUERY SELECT it.ord, outcome, 0::bigint, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb;
            CONTINUE;
        END IF;
        again := c.start_id = it.start_id;
        ts := greatest(clock_timestamp(), h.recorded_at);
        woken := wake_client(h);
        IF woken IS NOT NULL THEN
            h.seq := h.seq + 1;
            h.state := replace(woken->'data'->>'state', 'RUN_STATE_', '');
        END IF;
        UPDATE client_runs SET epoch = c.epoch + (NOT again)::int, start_id = it.start_id,
                idle_timeout_s = it.idle_timeout_s,
                idle_at = CASE WHEN h.open AND NOT h.closing AND NOT is_parked(h.state)
                          THEN ts + make_interval(secs => it.idle_timeout_s) ELSE 'infinity' END
            WHERE run_id = it.run_id;
        IF woken IS NOT NULL THEN
            INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
                VALUES (it.run_id, h.seq, 'RUN_RESUMED', ts, it.actor, woken->'data');
            UPDATE run_heads u SET seq = h.seq, state = h.state, recorded_at = ts WHERE u.run_id = it.run_id;
        END IF;
        RETURN QUERY SELECT it.ord, CASE WHEN again THEN 'already' ELSE 'ok' END, c.epoch + (NOT again)::int, h.seq,
            CASE WHEN woken IS NULL THEN h.recorded_at ELSE ts END,
            CASE WHEN woken IS NULL THEN '[]'::jsonb ELSE jsonb_build_array(woken) END;
    END LOOP;
END
$$;

-- Requests whose group was declared otherwise before: with another limit or strategy.
CREATE FUNCTION group_conflicts(p_run uuid, rws jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object('key', r.item->>'effect_key', 'group_id', g.group_id,
                                                 'strategy', g.strategy, 'max_concurrency', g.max_concurrency) ORDER BY r.o), '[]')
    FROM jsonb_array_elements(rws) WITH ORDINALITY r(item, o)
         JOIN run_groups g ON g.run_id = p_run AND g.group_id = r.item->'x'->>'group_id'
    WHERE (g.strategy, g.max_concurrency)
          IS DISTINCT FROM (r.item->'x'->>'group_strategy', (r.item->'x'->>'group_max')::int)
$$;

-- Requests of clients: all effects of an item or none of them. Keys that the journal has are answered from it, and only
-- the others become rows, which `detail` names; `extra` are the further rows of the same commit. One that asks for
-- nothing new, or for nothing at all, is a call of the client all the same.
CREATE FUNCTION client_requests_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, first_seq bigint, head_seq bigint, recorded_at timestamptz, extra jsonb, detail jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; c client_runs; ts timestamptz; fresh jsonb; n int; requested int; conflicts jsonb; regrouped jsonb;
    more jsonb; children jsonb; begun jsonb; woken jsonb; many boolean := jsonb_array_length(items) > 1;
BEGIN
    LOCK TABLE dispatch_holds IN ROW SHARE MODE;  -- no hold is acknowledged while this dispatches
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, client_epoch bigint, actor text, owner text, rows jsonb)
        ORDER BY i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        SELECT * INTO c FROM client_runs WHERE run_id = h.run_id;
        SELECT coalesce(jsonb_agg(r.item ORDER BY r.o) FILTER (WHERE e.effect_id IS NULL), '[]'),
               coalesce(jsonb_agg(jsonb_build_object('key', e.key, 'recorded_digest', q.data->>'digest') ORDER BY r.o)
                   FILTER (WHERE NOT (r.item->>'use_recorded')::boolean
                                 AND q.data->>'digest' <> r.item->'data'->>'digest'), '[]')
            INTO fresh, conflicts
            FROM jsonb_array_elements(it.rows) WITH ORDINALITY r(item, o)
                 LEFT JOIN effects e ON e.run_id = h.run_id AND e.key = r.item->>'effect_key'
                 LEFT JOIN journal q ON q.run_id = e.run_id AND q.seq = e.requested_seq;
        n := jsonb_array_length(fresh);
        regrouped := group_conflicts(h.run_id, fresh);
        outcome := client_refusal(h, it.run_id, c, it.client_epoch);
        -- a cancelled run is its owner's to end
        woken := CASE WHEN outcome = '' AND c.idle_halt AND NOT h.cancel_requested THEN wake_client(h) END;
        outcome := CASE
            WHEN outcome <> '' THEN outcome
            WHEN conflicts <> '[]' THEN 'key_conflict'
            WHEN n = 0 THEN 'recorded'
            WHEN regrouped <> '[]' THEN 'group_conflict'
            WHEN NOT h.open OR h.closing OR h.cancel_requested THEN 'run_closed'
            WHEN h.seq + 2 * n >= history_max() THEN 'history_limit'
            WHEN h.open_effects + n > open_effects_max() THEN 'queue_full'
            ELSE 'ok' END;
        detail := jsonb_build_object('conflicts', conflicts || regrouped, 'client_epoch', c.epoch, 'open_effects', h.open_effects);
        IF outcome <> 'ok' THEN
            fresh := '[]';
            n := 0;
        END IF;
        IF outcome <> 'ok' AND woken IS NULL THEN
            RETURN QUERY SELECT it.ord, outcome, 0::bigint, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb, detail;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        IF woken IS NOT NULL THEN
            h.seq := h.seq + 1;
            h.state := replace(woken->'data'->>'state', 'RUN_STATE_', '');
        END IF;
        SELECT a.more, a.requested INTO more, requested FROM request_effects(h, fresh, n, ts) a;
        begun := '[]';
        IF jsonb_path_exists(fresh, '$[*].x ? (@.kind == "RUN")') THEN
            SELECT a.more, a.begun, requested - a.settled INTO children, begun, requested
                FROM start_children(h, fresh, h.seq + n + jsonb_array_length(more), it.owner, ts) a;
            more := more || children;
        END IF;
        INSERT INTO journal (run_id, seq, type, effect_id, effect_key, recorded_at, writer, data)
            SELECT it.run_id, h.seq + r.o, 'EFFECT_REQUESTED', (r.item->>'effect_id')::uuid, r.item->>'effect_key', ts,
                   it.actor, r.item->'data'
            FROM jsonb_array_elements(fresh) WITH ORDINALITY r(item, o);
        more := CASE WHEN woken IS NULL THEN more ELSE woken || more END;
        INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
            SELECT it.run_id, m.seq, m.type, m.effect_id, m.effect_key, coalesce(m.attempt, 0), ts, it.actor, m.data
            FROM jsonb_to_recordset(more) AS m(seq bigint, type text, effect_id uuid, effect_key text, attempt int,
                                               data jsonb);
        UPDATE run_heads u SET seq = h.seq + n + jsonb_array_length(more) - (woken IS NOT NULL)::int, recorded_at = ts,
                state = h.state, open_effects = u.open_effects + requested
            WHERE u.run_id = it.run_id RETURNING u.seq INTO head_seq;
        UPDATE client_runs SET idle_at = CASE WHEN is_parked(h.state) THEN 'infinity'
                ELSE ts + make_interval(secs => c.idle_timeout_s) END WHERE run_id = it.run_id;
        RETURN QUERY SELECT it.ord, outcome, h.seq + 1, head_seq, ts, more, detail || jsonb_build_object('begun', begun, 'fresh', (
            SELECT coalesce(jsonb_agg(r.item->'effect_key' ORDER BY r.o), '[]') FROM jsonb_array_elements(fresh) WITH ORDINALITY r(item, o)));
    END LOOP;
END
$$;

-- A client ends its run. Effects that do not outlive it are cancelled or waited for; when some are left, the run closes
-- and its owner ends it after them.
CREATE FUNCTION finish_runs_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, head_seq bigint, recorded_at timestamptz, extra jsonb, detail jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; c client_runs; said journal; ts timestamptz; waits text[]; woken jsonb; rws jsonb; a record;
    ending jsonb; left_ boolean; many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, client_epoch bigint, state text, data jsonb, wait boolean,
                                          actor text, blob_text text)
        ORDER BY i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        SELECT * INTO c FROM client_runs WHERE run_id = h.run_id;
        said := NULL;
        IF h.closing OR NOT h.open THEN  -- then there is a row that says as what, not far from the end
            SELECT * INTO said FROM journal j WHERE j.run_id = h.run_id
                AND j.type IN ('RUN_CLOSING', 'RUN_COMPLETED', 'RUN_FAILED', 'RUN_CANCELLED')
                ORDER BY j.seq DESC LIMIT 1;
        END IF;
        waits := ARRAY(SELECT e.key FROM effects e WHERE e.run_id = h.run_id AND e.settled_seq IS NULL
                       AND e.on_run_end = 'WAIT' ORDER BY e.requested_seq);
        outcome := client_refusal(h, it.run_id, c, it.client_epoch);
        outcome := CASE
            WHEN outcome <> '' THEN outcome
            WHEN coalesce(said.data->>'outcome', 'RUN_STATE_' || replace(said.type, 'RUN_', '')) = 'RUN_STATE_' || it.state
                 AND said.data - 'outcome' - 'unobserved_failures' = it.data THEN 'already'
            WHEN NOT h.open OR h.closing OR h.cancel_requested THEN 'run_closed'
            WHEN is_parked(h.state) AND NOT c.idle_halt THEN 'halted'
            WHEN it.state = 'COMPLETED' AND NOT it.wait AND cardinality(waits) > 0 THEN 'effects_open'
            ELSE 'ok' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb, jsonb_build_object(
                'client_epoch', c.epoch, 'open', waits[1:20], 'open_count', cardinality(waits), 'cancels', '[]'::jsonb);
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        woken := wake_client(h);
        IF woken IS NOT NULL THEN
            h.seq := h.seq + 1;
            h.state := replace(woken->'data'->>'state', 'RUN_STATE_', '');
        END IF;
        rws := (SELECT coalesce(jsonb_agg(jsonb_build_object('seq', h.seq + o.n, 'type', 'EFFECT_CANCEL_REQUESTED',
                    'effect_id', o.effect_id, 'effect_key', o.key, 'attempt', o.attempt, 'data', jsonb_build_object(
                        'reason', 'EFFECT_REASON_RUN_ENDED', 'message', 'its client has finished the run'))
                    ORDER BY o.n), '[]')
                FROM (SELECT e.*, row_number() OVER (ORDER BY e.requested_seq) AS n FROM effects e
                      WHERE e.run_id = h.run_id AND e.settled_seq IS NULL AND e.cancel_reason IS NULL
                        AND (e.on_run_end = 'CANCEL' OR (e.on_run_end = 'WAIT' AND it.state = 'FAILED'))) o);
        SELECT * INTO a FROM settle_idle(h, rws, h.seq + jsonb_array_length(rws), ts, it.actor);
        rws := a.rws || a.more;
        left_ := EXISTS (SELECT FROM effects e WHERE e.run_id = h.run_id AND e.settled_seq IS NULL
                         AND e.on_run_end <> 'DETACH');
        ending := jsonb_build_object('seq', h.seq + jsonb_array_length(rws) + 1)
            || CASE WHEN left_ THEN jsonb_build_object('type', 'RUN_CLOSING',
                        'data', jsonb_build_object('outcome', 'RUN_STATE_' || it.state) || it.data)
                    WHEN it.state = 'COMPLETED' THEN jsonb_build_object('type', 'RUN_COMPLETED', 'data', it.data)
                    ELSE jsonb_build_object('type', 'RUN_FAILED', 'data', it.data) END;
        h.seq := h.seq + jsonb_array_length(rws) + 1;
        rws := CASE WHEN woken IS NULL THEN '[]' ELSE jsonb_build_array(woken) END || rws || ending;
        INSERT INTO journal (run_id, seq, type, effect_id, effect_key, attempt, recorded_at, writer, data)
            SELECT it.run_id, m.seq, m.type, m.effect_id, m.effect_key, coalesce(m.attempt, 0), ts, it.actor, m.data
            FROM jsonb_to_recordset(rws) AS m(seq bigint, type text, effect_id uuid, effect_key text, attempt int,
                                              data jsonb);
        PERFORM keep_blobs(it.run_id, ARRAY[it.blob_text]);
        UPDATE runs SET state = CASE WHEN left_ THEN 'CLOSING' ELSE it.state END, error = it.data->'error',
                ended_at = CASE WHEN NOT left_ THEN ts END, end_seq = CASE WHEN NOT left_ THEN h.seq END
            WHERE run_id = it.run_id;
        UPDATE run_heads u SET seq = h.seq, recorded_at = ts, open = left_, closing = left_,
                state = CASE WHEN left_ THEN 'CLOSING' ELSE it.state END, open_effects = u.open_effects - a.settled
            WHERE u.run_id = it.run_id;
        UPDATE client_runs SET idle_at = 'infinity' WHERE run_id = it.run_id;
        RETURN QUERY SELECT it.ord, 'ok', h.seq, ts, rws, a.detail;
    END LOOP;
END
$$;

-- Signs of life of clients, which make no journal row and are not worth a flush. Answers with how long each may be
-- silent; runs whose client is not watched are left out.
CREATE FUNCTION clients_seen_v1(run_ids uuid[]) RETURNS TABLE (run_id uuid, idle_timeout_s double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- a SET clause would be undone before the commit
    PERFORM 1 FROM client_runs c WHERE c.run_id = ANY (run_ids) ORDER BY c.run_id FOR UPDATE;
    RETURN QUERY UPDATE client_runs c SET idle_at = clock_timestamp() + make_interval(secs => c.idle_timeout_s)
        WHERE c.run_id = ANY (run_ids) AND c.idle_at < 'infinity' RETURNING c.run_id, c.idle_timeout_s;
END
$$;

-- Halts runs whose client has been silent for too long. By the owner, which looked; whether it is still so is asked
-- again here, under the lock that every call of a client takes.
CREATE FUNCTION halt_idle_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, head_seq bigint, recorded_at timestamptz, extra jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; ts timestamptz; many boolean := jsonb_array_length(items) > 1;
BEGIN
    FOR it IN
        SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(run_id uuid, epoch bigint, actor text) ORDER BY i.run_id
    LOOP
        IF many THEN
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE SKIP LOCKED;
        ELSE
            SELECT * INTO h FROM run_heads WHERE run_id = it.run_id FOR UPDATE;
        END IF;
        -- once: an end, a halt or a closing takes the run off the watch, a resumption puts it on again
        UPDATE client_runs SET idle_at = 'infinity'
            WHERE run_id = h.run_id AND (h.epoch = it.epoch OR NOT h.open) AND idle_at <= clock_timestamp();
        outcome := CASE
            WHEN h.run_id IS NULL AND EXISTS (SELECT FROM run_heads WHERE run_id = it.run_id) THEN 'busy'
            WHEN h.run_id IS NULL THEN 'not_found'
            WHEN h.open AND h.epoch <> it.epoch THEN 'stale_epoch'
            WHEN NOT FOUND THEN 'not_idle'
            WHEN h.state <> 'RUNNING' THEN 'not_running'
            ELSE 'ok' END;
        IF outcome <> 'ok' THEN
            RETURN QUERY SELECT it.ord, outcome, coalesce(h.seq, 0), h.recorded_at, '[]'::jsonb;
            CONTINUE;
        END IF;
        ts := greatest(clock_timestamp(), h.recorded_at);
        INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
            VALUES (it.run_id, h.seq + 1, 'RUN_HALTED', ts, it.actor, '{"reason": "CLIENT_IDLE", "client_idle": true}');
        UPDATE client_runs SET idle_halt = true WHERE run_id = it.run_id;
        UPDATE runs SET state = 'HALTED', halt_reason = 'CLIENT_IDLE' WHERE run_id = it.run_id;
        UPDATE run_heads u SET seq = h.seq + 1, recorded_at = ts, state = 'HALTED' WHERE u.run_id = it.run_id;
        RETURN QUERY SELECT it.ord, 'ok', h.seq + 1, ts, jsonb_build_array(jsonb_build_object('seq', h.seq + 1,
            'type', 'RUN_HALTED', 'data', '{"reason": "CLIENT_IDLE", "client_idle": true}'::jsonb));
    END LOOP;
END
$$;

-- Succeeded effects of an earlier run that answer equal requests of a new one, by key: {effect_id, result}. Their
-- blobs are copied, each once, for blobs belong to a run; one statement, so that none goes away in between. A result
-- whose blob is gone answers nothing.
CREATE FUNCTION reused_effects(new_run uuid, old_run uuid, rws jsonb) RETURNS jsonb
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    found_ jsonb;
BEGIN
    WITH known AS (
        SELECT e.key, e.effect_id, s.data->'result' AS result, s.data->'result'->'value'->'blob'->>'digest' AS digest
        FROM jsonb_array_elements(rws) r(item)
             JOIN effects e ON e.run_id = old_run AND e.key = r.item->>'effect_key' AND e.state = 'SUCCEEDED'
             JOIN journal q ON q.run_id = old_run AND q.seq = e.requested_seq
                               AND q.data->>'digest' = r.item->'data'->>'digest'
             JOIN journal s ON s.run_id = old_run AND s.seq = e.settled_seq
        WHERE r.item->>'type' = 'EFFECT_REQUESTED'
    ), kept AS (
        INSERT INTO blobs (run_id, digest, media_type, content)
            SELECT new_run, b.digest, b.media_type, b.content FROM blobs b
            WHERE b.run_id = old_run AND b.digest IN (SELECT k.digest FROM known k)
            ORDER BY b.digest
            ON CONFLICT DO NOTHING
    )
    SELECT coalesce(jsonb_object_agg(k.key, jsonb_build_object('effect_id', k.effect_id, 'result', k.result)), '{}')
        INTO found_
        FROM known k
        WHERE k.digest IS NULL OR EXISTS (SELECT FROM blobs b WHERE b.run_id = old_run AND b.digest = k.digest);
    RETURN found_;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT SELECT ON client_runs TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION open_clients_v1(jsonb), client_requests_v1(jsonb), finish_runs_v1(jsonb),
        clients_seen_v1(uuid[]), halt_idle_v1(jsonb) TO backburner_scheduler;
END
$$;
