-- Child runs, and runs that go on as new runs. A child begins in the commit of its request, is asked to end in the commit
-- of its effect's cancel, and settles the effect in the commit of its own end: no moment lies between where one of them
-- could be lost.
--
-- A child's id is greater than its parent's, so "heads in id order" is parent before child. Rows that a call writes into
-- journals of other runs than its own are answered as `elsewhere`: [{run_id, recorded_at, rows}].

CREATE FUNCTION depth_max() RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 16 $$;

-- The epoch of a shard's owner when that is this scheduler, else 0: then whoever owns the shard adopts the run.
CREATE FUNCTION epoch_for(p_run_id uuid, p_actor text) RETURNS bigint
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    held shards;
BEGIN
    -- A new run must not get the epoch of an owner whose successor has adopted the shard's runs meanwhile.
    SELECT * INTO held FROM shards WHERE shard = shard_of(p_run_id) FOR SHARE;
    RETURN CASE WHEN 'scheduler/' || held.owner = p_actor AND held.expires_at > clock_timestamp()
           THEN held.epoch ELSE 0 END;
END
$$;

-- The child runs of requested effects of kind RUN: `x.child` is {run_id, input_digest, code_version, data}, or
-- `x.refusal` is the error that the effect fails with at once. A child has its parent's namespace and labels. `begun` are
-- the new runs: [{run_id, epoch, head, data}].
CREATE FUNCTION start_children(h run_heads, rws jsonb, after_seq bigint, actor text, ts timestamptz,
                               OUT more jsonb, OUT begun jsonb, OUT settled int)
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    r record; parent runs; error jsonb; created jsonb; epoch bigint; at_seq bigint;
BEGIN
    more := '[]';
    begun := '[]';
    settled := 0;
    SELECT * INTO parent FROM runs WHERE run_id = h.run_id;
    FOR r IN SELECT (item->>'effect_id')::uuid AS effect_id, item->>'effect_key' AS key, item->'x'->'child' AS child,
                    item->'x'->'refusal' AS refusal
             FROM jsonb_array_elements(rws) WITH ORDINALITY t(item, o)
             WHERE item->>'type' = 'EFFECT_REQUESTED' AND item->'x'->>'kind' = 'RUN' AND NOT EXISTS (
                 SELECT FROM effects e WHERE e.effect_id = (item->>'effect_id')::uuid AND e.state = 'SUCCEEDED')
             ORDER BY o  -- not of those that an earlier run has answered
    LOOP
        at_seq := after_seq + jsonb_array_length(more) + 1;
        error := CASE WHEN parent.depth >= depth_max() THEN jsonb_build_object('reason', 'EFFECT_REASON_INVALID_WORK',
            'message', 'runs are nested at most ' || depth_max() || ' deep: let a run above this one start it')
            WHEN r.child IS NULL THEN coalesce(r.refusal, '{"reason": "EFFECT_REASON_INVALID_WORK"}') END;
        IF error IS NOT NULL THEN
            UPDATE effects SET state = 'FAILED', settled_seq = at_seq, settled_at = ts,
                    reason = replace(error->>'reason', 'EFFECT_REASON_', '') WHERE effect_id = r.effect_id;
            settled := settled + 1;
            more := more || jsonb_build_object('seq', at_seq, 'type', 'EFFECT_RESOLVED', 'effect_id', r.effect_id,
                'effect_key', r.key, 'data', jsonb_build_object('state', 'EFFECT_STATE_FAILED', 'error', error));
            CONTINUE;
        END IF;
        epoch := epoch_for((r.child->>'run_id')::uuid, actor);
        created := r.child->'data' || jsonb_build_object('namespace', parent.namespace)
            || field('labels', nullif(parent.labels || coalesce(r.child->'data'->'labels', '{}'), '{}'));
        PERFORM insert_run((r.child->>'run_id')::uuid, epoch, created, actor, ts, parent.depth + 1,
                           r.child->>'input_digest', r.child->>'code_version');
        more := more || jsonb_build_object('seq', at_seq, 'type', 'CHILD_RUN_STARTED', 'effect_id', r.effect_id,
            'effect_key', r.key, 'data', jsonb_build_object('child_run_id', r.child->>'run_id'));
        begun := begun || jsonb_build_object('run_id', r.child->>'run_id', 'epoch', epoch, 'head', 1, 'data', created);
    END LOOP;
END
$$;

-- A run from the data of its RUN_CREATED.
CREATE FUNCTION insert_run(p_run_id uuid, p_epoch bigint, p_data jsonb, p_actor text, ts timestamptz, p_depth int,
                           p_input_digest text, p_code_version text) RETURNS void
LANGUAGE sql SET search_path = backburner, pg_temp AS $$
    INSERT INTO runs (run_id, namespace, key, process, client_driven, state, labels, input_digest, parent_run_id,
                      parent_effect_id, previous_run_id, depth, code_version, created_at)
        VALUES (p_run_id, coalesce(p_data->>'namespace', 'default'), p_data->>'key', p_data->>'process', false,
                'RUNNING', coalesce(p_data->'labels', '{}'), p_input_digest, (p_data->>'parent_run_id')::uuid,
                (p_data->>'parent_effect_id')::uuid, (p_data->>'previous_run_id')::uuid, p_depth,
                coalesce(p_code_version, ''), ts);
    INSERT INTO run_heads (run_id, shard, seq, epoch, recorded_at, state)
        VALUES (p_run_id, shard_of(p_run_id), 1, p_epoch, ts, 'RUNNING');
    INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
        VALUES (p_run_id, 1, 'RUN_CREATED', ts, p_actor, p_data);
$$;

-- The run that a run goes on as: all of the old one but its input. It begins with the signals that nobody had taken,
-- those that came while the old run ended, and its cancel.
CREATE FUNCTION continue_run(h run_heads, continued jsonb, actor text, ts timestamptz) RETURNS jsonb
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    old runs; fresh uuid := (continued->'data'->>'new_run_id')::uuid; epoch bigint; created jsonb; n run_heads;
BEGIN
    SELECT * INTO old FROM runs WHERE run_id = h.run_id;
    UPDATE runs SET next_run_id = fresh WHERE run_id = h.run_id;
    SELECT data - 'reuse_from' || jsonb_build_object('namespace', old.namespace, 'previous_run_id', h.run_id)
           || field('key', to_jsonb(old.key)) || jsonb_build_object('input', continued->'data'->'input') INTO created
        FROM journal WHERE run_id = h.run_id AND seq = 1;
    epoch := epoch_for(fresh, actor);
    PERFORM insert_run(fresh, epoch, created, actor, ts, old.depth, old.input_digest, old.code_version);
    PERFORM set_run_budget(fresh, created->'budget', h.run_id);
    WITH kept AS (
        SELECT data, row_number() OVER (ORDER BY seq) AS n FROM (
            SELECT j.data, j.seq FROM journal j WHERE j.run_id = h.run_id AND j.type = 'SIGNAL_RECEIVED'
                AND (j.seq > (continued->>'cause')::bigint
                     OR j.seq IN (SELECT jsonb_array_elements(continued->'data'->'signal_seqs')::bigint))) kept_
    ), written AS (
        INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
            SELECT fresh, 1 + kept.n, 'SIGNAL_RECEIVED', ts, actor, kept.data FROM kept RETURNING 1
    )
    UPDATE run_heads SET seq = 1 + (SELECT count(*) FROM written) WHERE run_id = fresh RETURNING * INTO n;
    IF h.cancel_requested THEN
        PERFORM cancel_run(n, old.cancel_reason, actor, ts);
    END IF;
    RETURN jsonb_build_object('run_id', fresh, 'epoch', epoch, 'head', n.seq + h.cancel_requested::int, 'data', created);
END
$$;

-- Asks for the cancel of a run whose head is locked; answers with its row as it was appended.
CREATE FUNCTION cancel_run(h run_heads, message text, actor text, ts timestamptz) RETURNS jsonb
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    d jsonb := field('reason', to_jsonb(message));
BEGIN
    UPDATE runs SET state = CASE WHEN state = 'RUNNING' THEN 'CANCELLING' ELSE state END,
            cancel_requested_at = ts, cancel_reason = message WHERE run_id = h.run_id;
    UPDATE run_heads u SET cancel_requested = true, seq = h.seq + 1, recorded_at = ts,
            state = CASE WHEN u.state = 'RUNNING' THEN 'CANCELLING' ELSE u.state END WHERE u.run_id = h.run_id;
    INSERT INTO journal (run_id, seq, type, recorded_at, writer, data)
        VALUES (h.run_id, h.seq + 1, 'RUN_CANCEL_REQUESTED', ts, actor, d);
    RETURN jsonb_build_object('seq', h.seq + 1, 'type', 'RUN_CANCEL_REQUESTED', 'data', d);
END
$$;

-- Hands the cancel of an effect on to the run that the effect stands for. NULL when that run was asked already.
CREATE FUNCTION cancel_child(e effects, why jsonb, actor text) RETURNS jsonb
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    c run_heads; ts timestamptz; message text;
BEGIN
    SELECT u.* INTO c FROM run_heads u
        WHERE u.run_id = (SELECT r.run_id FROM runs r WHERE r.parent_effect_id = e.effect_id AND r.ended_at IS NULL)
        FOR UPDATE;
    IF c.run_id IS NULL OR NOT c.open OR c.cancel_requested THEN
        RETURN NULL;
    END IF;
    ts := greatest(clock_timestamp(), c.recorded_at);
    message := 'its parent asked: ' || coalesce(why->>'message', replace(why->>'reason', 'EFFECT_REASON_', ''));
    RETURN jsonb_build_object('run_id', c.run_id, 'recorded_at', ts,
                              'rows', jsonb_build_array(cancel_run(c, message, actor, ts)));
END
$$;

-- Settles the effect that an ended run stands for; the parent's head is locked. NULL when there is nothing to settle.
CREATE FUNCTION settle_parent(p run_heads, child uuid, ended jsonb, actor text) RETURNS jsonb
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    e effects; ts timestamptz := greatest(clock_timestamp(), p.recorded_at); row_ jsonb; d jsonb := ended->'data';
    ends_as text; by_parent boolean; why text;
BEGIN
    SELECT f.* INTO e FROM effects f
        WHERE f.effect_id = (SELECT r.parent_effect_id FROM runs r WHERE r.run_id = child) AND f.run_id = p.run_id
        FOR UPDATE;
    IF e.effect_id IS NULL OR e.settled_seq IS NOT NULL THEN
        RETURN NULL;
    END IF;
    by_parent := e.cancel_reason IS NOT NULL;
    why := coalesce(e.cancel_reason, 'EFFECT_REASON_CANCELLED_BY_USER');
    ends_as := CASE WHEN ended->>'type' = 'RUN_COMPLETED' THEN 'SUCCEEDED'
                    WHEN e.cancel_reason = 'EFFECT_REASON_TIMEOUT_TOTAL' THEN 'TIMED_OUT'
                    WHEN by_parent OR ended->>'type' = 'RUN_CANCELLED' THEN 'CANCELLED' ELSE 'FAILED' END;
    row_ := CASE ends_as
        WHEN 'SUCCEEDED' THEN field('result', nullif(field('value', d->'result'), '{}'))
        WHEN 'CANCELLED' THEN field('reason', to_jsonb(why))
            || field('message', to_jsonb(CASE WHEN by_parent THEN e.cancel_message ELSE d->>'reason' END))
        WHEN 'TIMED_OUT' THEN jsonb_build_object('error', jsonb_build_object('reason', why, 'message', e.cancel_message))
        ELSE jsonb_build_object('error', jsonb_build_object('reason', 'EFFECT_REASON_CHILD_RUN_FAILED')
                 || field('message', to_jsonb('run ' || child || ' failed: ' || coalesce(d->'error'->>'message', '')))
                 || field('exception_type', d->'error'->'exception_type'))
             || field('result', nullif(field('session', d->'error'->'session'), '{}')) END;
    row_ := jsonb_build_object('seq', p.seq + 1, 'effect_id', e.effect_id, 'effect_key', e.key,
        'type', CASE ends_as WHEN 'CANCELLED' THEN 'EFFECT_CANCELLED' ELSE 'EFFECT_RESOLVED' END,
        'data', CASE ends_as WHEN 'CANCELLED' THEN row_
                ELSE jsonb_build_object('state', 'EFFECT_STATE_' || ends_as) || row_ END);
    PERFORM copy_blob(child, p.run_id, d->'result');
    UPDATE effects SET state = ends_as, settled_seq = p.seq + 1, settled_at = ts,
            reason = CASE ends_as WHEN 'SUCCEEDED' THEN NULL WHEN 'FAILED' THEN 'CHILD_RUN_FAILED'
                     ELSE replace(why, 'EFFECT_REASON_', '') END,
            elapsed_s = extract(epoch FROM ts - requested_at)
        WHERE effect_id = e.effect_id;
    INSERT INTO journal (run_id, seq, type, effect_id, effect_key, recorded_at, writer, data)
        VALUES (p.run_id, p.seq + 1, row_->>'type', e.effect_id, e.key, ts, actor, row_->'data');
    UPDATE run_heads SET seq = p.seq + 1, recorded_at = ts, open_effects = open_effects - 1 WHERE run_id = p.run_id;
    RETURN jsonb_build_object('run_id', p.run_id, 'recorded_at', ts, 'rows', jsonb_build_array(row_));
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
