-- A hold by label costs a claim one look at each queued effect, however many it covers. What it cost before was two function
-- calls for each: seconds, where it covered a long queue, and then everything behind these waited too.
CREATE OR REPLACE FUNCTION claimable(p_namespace text, p_pool text, p_background boolean, p_executor text,
                                     p_capabilities text[], p_labels jsonb, p_labelled boolean, p_limit int)
RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SET search_path = backburner, pg_temp AS $$
DECLARE
    q record; room int; rooms jsonb := '{}'; place text; left_ int := p_limit; at timestamptz := clock_timestamp();
    whole jsonb[]; part jsonb[]; harnesses text[];
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
            SELECT w.effect_id, w.run_id, w.group_id, w.group_max FROM dispatch_queue w
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
            CONTINUE WHEN (SELECT is_overdue(e, at) FROM effects e WHERE e.effect_id = q.effect_id);
            IF q.group_id IS NOT NULL THEN
                rooms := rooms || jsonb_build_object(place, room - 1);
                CONTINUE WHEN room <= 0;
            END IF;
            RETURN NEXT q.effect_id;
            left_ := left_ - 1;
            EXIT WHEN left_ <= 0;
        END LOOP;
    END IF;
END
$$;
