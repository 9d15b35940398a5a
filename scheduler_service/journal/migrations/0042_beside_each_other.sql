-- What hangs beside what: renewals of leases beside creations of runs, and late output beside retention.
--
-- Who creates a run holds the row of its shard until it commits, so that nobody takes the shard over meanwhile and adopts
-- its runs without this one. A renewal changes neither owner nor epoch: it need not wait, or one creation that hangs costs
-- a replica its leases. So creations lock the key of the row (FOR KEY SHARE), and renewals nothing of it (FOR NO KEY
-- UPDATE); who claims or releases a shard locks all of it (FOR UPDATE), as before, and waits or passes on.

CREATE OR REPLACE FUNCTION renew_shards_v1(p_scheduler_id text, p_ttl_s double precision) RETURNS SETOF int
LANGUAGE sql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    WITH mine AS MATERIALIZED (
        SELECT shard FROM shards WHERE owner = p_scheduler_id AND expires_at > clock_timestamp()
        ORDER BY shard FOR NO KEY UPDATE
    )
    UPDATE shards s SET expires_at = clock_timestamp() + make_interval(secs => p_ttl_s)
        FROM mine WHERE s.shard = mine.shard RETURNING s.shard
$$;

CREATE OR REPLACE FUNCTION renew_shards_v3(p_scheduler_id text, p_address text, p_version text, p_ttl_s double precision,
                                p_draining boolean, p_vitals jsonb)
RETURNS TABLE (shard int, epoch bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO schedulers AS s (scheduler_id, address, version, started_at, seen_at, lease_until, draining, vitals)
        VALUES (p_scheduler_id, p_address, p_version, clock_timestamp(), clock_timestamp(),
                clock_timestamp() + make_interval(secs => p_ttl_s), p_draining, p_vitals)
        ON CONFLICT (scheduler_id) DO UPDATE SET seen_at = excluded.seen_at, address = excluded.address,
            version = excluded.version, lease_until = excluded.lease_until, draining = excluded.draining,
            vitals = excluded.vitals;
    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT s.shard FROM shards s WHERE s.owner = p_scheduler_id AND s.expires_at > clock_timestamp()
        ORDER BY s.shard FOR NO KEY UPDATE
    )
    UPDATE shards s SET expires_at = clock_timestamp() + make_interval(secs => p_ttl_s)
        FROM mine WHERE s.shard = mine.shard RETURNING s.shard, s.epoch;
END
$$;

-- The epoch of a shard's owner when that is this scheduler, else 0: see 0010.
CREATE OR REPLACE FUNCTION epoch_for(p_run_id uuid, p_actor text) RETURNS bigint
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    held shards;
BEGIN
    -- A new run must not get the epoch of an owner whose successor has adopted the shard's runs meanwhile.
    SELECT * INTO held FROM shards WHERE shard = shard_of(p_run_id) FOR KEY SHARE;
    RETURN CASE WHEN 'scheduler/' || held.owner = p_actor AND held.expires_at > clock_timestamp()
           THEN held.epoch ELSE 0 END;
END
$$;

-- See 0003.
CREATE OR REPLACE FUNCTION create_runs_v1(items jsonb)
RETURNS TABLE (ord int, outcome text, run_id uuid, created boolean, head_seq bigint, epoch bigint,
               recorded_at timestamptz, detail jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; known record; ep bigint; ts timestamptz; fresh boolean; removed uuid;
BEGIN
    -- A new run must not get the epoch of an owner whose successor has adopted the shard's runs meanwhile.
    PERFORM 1 FROM shards s WHERE s.shard IN (
        SELECT shard_of((i->>'run_id')::uuid) FROM jsonb_array_elements(items) i) ORDER BY s.shard FOR KEY SHARE;
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

-- Output chunks: see 0005. The last of them may come when its effect has settled, and even when retention takes the run.
CREATE OR REPLACE FUNCTION output_append_v1(run_ids uuid[], effect_ids uuid[], attempts int[], tokens bytea[], streams smallint[],
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
    -- an ended run may be removed just now: then it waits, and finds nothing, or the removal waits and takes this along
    PERFORM 1 FROM effects e WHERE e.effect_id = ANY (effect_ids) AND e.settled_seq IS NOT NULL
        ORDER BY e.run_id, e.effect_id FOR KEY SHARE;
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
