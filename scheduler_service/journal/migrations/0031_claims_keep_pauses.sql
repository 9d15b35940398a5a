-- A claim picks without lock. What another claim took in between, and what failed at once, is queued again when this one
-- comes to lock it, with a pause that has only begun: it was started without that pause. Otherwise as before.

-- Takes queued effects for one session: foreground first, then by rank. Picks without lock, locks the heads of what it
-- picked, looks again, and only then assigns. A head that somebody holds is left for the next claim, which a last row
-- with token_index -1 tells the caller to make soon.
CREATE OR REPLACE FUNCTION claim_v1(p jsonb)
RETURNS TABLE (token_index int, run_id uuid, effect_id uuid, effect_key text, attempt int, name text, harness text,
               pool text, background boolean, spec text, total_remaining_s double precision, seq bigint,
               recorded_at timestamptz, data jsonb, head_seq bigint)
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
    labelled boolean := false;
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
    FOR pl IN SELECT * FROM jsonb_to_recordset(p->'pools') AS x(pool text, foreground int, background int) LOOP
        -- Classes age: background that has waited for a minute gets a quarter of what is free, within its share.
        aged := CASE WHEN EXISTS (SELECT FROM dispatch_queue q WHERE q.namespace = ns AND q.pool = pl.pool
                                  AND q.background AND q.rank < clock_timestamp() - interval '60 s')
                THEN least(pl.background, greatest(1, pl.foreground / 4)) ELSE 0 END;
        fore := ARRAY(SELECT * FROM claimable(ns, pl.pool, false, executor, caps, p->'labels', labelled, pl.foreground - aged));
        back := ARRAY(SELECT * FROM claimable(ns, pl.pool, true, executor, caps, p->'labels', labelled,
                                              least(pl.background, pl.foreground - cardinality(fore))));
        picked := picked || fore || back;
    END LOOP;
    IF cardinality(picked) = 0 THEN
        RETURN;
    END IF;
    picked := picked[1:least((p->>'limit')::int, cardinality(tokens))];
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
        RETURN QUERY
        WITH candidates AS (
            SELECT e.*, row_number() OVER (PARTITION BY e.group_id ORDER BY e.background, e.requested_seq) AS place
            FROM effects e
            WHERE e.effect_id = ANY (bucket.ids) AND e.state = 'QUEUED' AND e.cancel_reason IS NULL
              AND (h.open OR e.on_run_end = 'DETACH') AND NOT is_overdue(e, ts)
              AND coalesce(e.not_before <= ts, true)  -- it may have failed, and paused, since it was picked
              AND NOT (labelled AND held_by_label(e.effect_id, ns, executor, caps))
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
                    progress = NULL, progress_ordinal = 0, progress_rows = 0, last_activity_at = NULL,
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
               w.seq, ts, w.data, h.seq + c.n
        FROM chosen c JOIN written w ON w.effect_id = c.effect_id
             JOIN journal r ON r.run_id = h.run_id AND r.seq = c.requested_seq;
        GET DIAGNOSTICS got = ROW_COUNT;
        -- rows of effects that are settled, cancelled or dispatched already, or whose run is over, are of no use
        DELETE FROM dispatch_queue q USING effects e
            WHERE q.effect_id = ANY (bucket.ids) AND e.effect_id = q.effect_id
              AND (e.state <> 'QUEUED' OR NOT (h.open OR e.on_run_end = 'DETACH'));
        taken := taken + got;
        IF got > 0 THEN
            UPDATE run_heads u SET seq = h.seq + got, recorded_at = ts WHERE u.run_id = h.run_id;
        END IF;
    END LOOP;
    IF held THEN
        token_index := -1;
        RETURN NEXT;
    END IF;
END
$$;
