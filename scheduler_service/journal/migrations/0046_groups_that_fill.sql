-- A claim that gives to many groups read the queue anew for each that became full: 21 s for 500 groups of 40 effects that
-- were asked for in one step, and so are alike in rank. It does so ever more seldom now: four times at most for 20,000.

-- The first queued effects of a class that an executor could take now: see 0043. Those of groups that become full by what
-- this call gives are left out from the row on where 100 were passed over in vain, then 400 more, and so on.
CREATE OR REPLACE FUNCTION claimable(p_namespace text, p_pool text, p_background boolean, p_executor text,
                                     p_capabilities text[], p_labels jsonb, p_labelled boolean, p_session_wait interval,
                                     p_limit int)
RETURNS SETOF uuid
LANGUAGE plpgsql STABLE SET search_path = backburner, pg_temp AS $$
DECLARE
    q record; room int; rooms jsonb := '{}'; place text; left_ int := p_limit; at timestamptz := clock_timestamp();
    whole jsonb[]; part jsonb[]; harnesses text[]; x effects; verdicts jsonb := '{}';
    by_label boolean := EXISTS (SELECT FROM label_budgets l WHERE l.namespace = p_namespace);
    full_runs uuid[]; full_groups text[]; since timestamptz := '-infinity'; given uuid[] := '{}'; passed int;
    patience int := 100;
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
        SELECT coalesce(array_agg(o.run_id), '{}'), coalesce(array_agg(o.group_id), '{}') INTO full_runs, full_groups
            FROM (SELECT e.run_id, e.group_id, count(*) AS n FROM effects e
                  WHERE e.group_id IS NOT NULL AND e.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')
                  GROUP BY e.run_id, e.group_id) o
                 JOIN run_groups g ON g.run_id = o.run_id AND g.group_id = o.group_id AND g.limit_ <= o.n;
        LOOP
            passed := 0;
            FOR q IN
                SELECT w.effect_id, w.run_id, w.group_id, w.group_max, w.not_before, w.rank FROM dispatch_queue w
                    JOIN run_heads h ON h.run_id = w.run_id AND h.state NOT IN ('HALTED', 'PROCESS_ERROR')
                WHERE w.namespace = p_namespace AND w.pool = p_pool AND w.background = p_background
                  AND w.not_before <= clock_timestamp() AND w.capabilities && p_capabilities
                  AND w.executor_labels <@ p_labels AND w.rank >= since
                  AND (w.group_id IS NULL OR (w.run_id, w.group_id) NOT IN (
                      SELECT f.run_id, f.group_id FROM unnest(full_runs, full_groups) f(run_id, group_id)))
                  AND (NOT p_labelled OR (
                      SELECT NOT e.labels @> ANY (whole) AND (NOT e.labels @> ANY (part) OR EXISTS (
                          SELECT FROM unnest(e.capabilities) a WHERE a = ANY (p_capabilities) AND NOT EXISTS (
                              SELECT FROM unnest(part, harnesses) d(labels, harness)
                              WHERE d.harness = harness_of(a) AND e.labels @> d.labels)))
                      FROM effects e WHERE e.effect_id = w.effect_id))
                ORDER BY w.rank
            LOOP
                CONTINUE WHEN q.rank = since AND q.effect_id = ANY (given);
                IF q.group_id IS NOT NULL THEN
                    place := q.run_id || q.group_id;
                    room := coalesce((rooms->>place)::int, group_limit(q.run_id, q.group_id, q.group_max)
                                                           - group_open(q.run_id, q.group_id)::int);
                    IF room <= 0 AND rooms ? place THEN
                        passed := passed + 1;
                        IF passed >= patience THEN  -- from here on without those that are full by now
                            since := q.rank;
                            EXIT;
                        END IF;
                        CONTINUE;
                    END IF;
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
                    IF room <= 1 THEN
                        full_runs := full_runs || q.run_id;
                        full_groups := full_groups || q.group_id;
                    END IF;
                    CONTINUE WHEN room <= 0;
                END IF;
                RETURN NEXT q.effect_id;
                given := given || q.effect_id;
                left_ := left_ - 1;
                EXIT WHEN left_ <= 0;
            END LOOP;
            EXIT WHEN passed < patience OR left_ <= 0;
            patience := 4 * patience;
        END LOOP;
    END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
