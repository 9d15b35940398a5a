-- Budgets at dispatch: what may start, and with how much; what is over; and what operators change. See 0030.

CREATE INDEX effects_budgeted ON effects (run_id)
    WHERE budget IS NOT NULL AND state IN ('DISPATCHED', 'RUNNING', 'CANCELLING');
CREATE INDEX effects_asking ON effects (namespace, run_id) WHERE asks;
CREATE INDEX effects_budgeted_queued ON effects (run_id) WHERE budget IS NOT NULL AND state IN ('QUEUED', 'PARKED');

-- One budget that holds for an effect: its own, its run's or a label's. `open_` is what open attempts may still consume.
CREATE TYPE budget_scope AS (
    of text, limits double precision[], used double precision[], open_ double precision[], reserved boolean[], asks boolean
);

-- The limits of a Budget in proto3 JSON.
CREATE FUNCTION budget_limits(b jsonb) RETURNS double precision[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY[nullif((b->>'tokens')::float8, 0), nullif((b->>'cost_usd')::float8, 0),
                 nullif(trim(trailing 's' FROM b->>'wall_time')::float8, 0), nullif((b->>'turns')::float8, 0)]
$$;

CREATE FUNCTION budget_asks(b jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(b->>'on_spent' = 'BUDGET_ACTION_ASK', false)
$$;

-- The budget of a new run, from its RUN_CREATED; one that another run goes on as shares that one's.
CREATE FUNCTION set_run_budget(p_run uuid, p_budget jsonb, p_previous uuid) RETURNS void
LANGUAGE sql SET search_path = backburner, pg_temp AS $$
    INSERT INTO run_budgets (run_id, limits, asks) SELECT p_run, budget_limits(p_budget), budget_asks(p_budget)
        WHERE p_budget IS NOT NULL;
    UPDATE run_budgets b SET limits = o.limits, used = o.used, costs_unknown = o.costs_unknown
        FROM run_budgets o WHERE b.run_id = p_run AND o.run_id = p_previous;
$$;

-- What the ended attempts of an effect used.
CREATE FUNCTION effect_used(p_effect uuid) RETURNS double precision[]
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT ARRAY[coalesce(sum(u.input_tokens + u.output_tokens), 0), coalesce(sum(u.cost_usd), 0),
                 coalesce(sum(u.wall_s), 0), coalesce(sum(u.turns), 0)]
    FROM attempt_usage u WHERE u.effect_id = p_effect
$$;

-- What an open attempt takes from the budgets around it: what its own budget leaves it, else what it has used so far.
CREATE FUNCTION open_use(e effects) RETURNS double precision[]
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT array_agg(CASE WHEN n.most IS NULL THEN n.now_ ELSE greatest(n.most - n.used, n.now_) END ORDER BY n.o)
    FROM unnest(budget_limits(coalesce(e.budget, '{}')), effect_used(e.effect_id), figures(e.usage,
            extract(epoch FROM clock_timestamp() - coalesce(e.started_at, e.dispatched_at))::float8))
         WITH ORDINALITY n(most, used, now_, o)
$$;

-- The sum of open attempts, and in which figures they have reserved something.
CREATE FUNCTION open_uses(opened effects[], OUT uses double precision[], OUT reserved boolean[])
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT ARRAY[coalesce(sum(u.u[1]), 0), coalesce(sum(u.u[2]), 0), coalesce(sum(u.u[3]), 0), coalesce(sum(u.u[4]), 0)],
           ARRAY[coalesce(bool_or(u.m[1] IS NOT NULL), false), coalesce(bool_or(u.m[2] IS NOT NULL), false),
                 coalesce(bool_or(u.m[3] IS NOT NULL), false), coalesce(bool_or(u.m[4] IS NOT NULL), false)]
    FROM (SELECT open_use(e) AS u, budget_limits(coalesce(e.budget, '{}')) AS m FROM unnest(opened) e) u
$$;

-- The budgets that hold for an effect, its own first.
CREATE FUNCTION budget_scopes(e effects) RETURNS SETOF budget_scope
LANGUAGE plpgsql STABLE SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record; o record; all_labels jsonb; today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
BEGIN
    IF e.budget <> '{}' THEN
        RETURN NEXT ROW('effect ' || e.key, budget_limits(e.budget), effect_used(e.effect_id), '{0,0,0,0}'::float8[],
                        '{f,f,f,f}'::boolean[], budget_asks(e.budget))::budget_scope;
    END IF;
    FOR r IN SELECT * FROM run_budgets b WHERE b.run_id = e.run_id AND e.budget IS NOT NULL LOOP
        SELECT * INTO o FROM open_uses(ARRAY(SELECT f FROM effects f WHERE f.run_id = e.run_id AND f.budget IS NOT NULL
            AND f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')));
        RETURN NEXT ROW('run ' || r.run_id, r.limits, r.used, o.uses, o.reserved, r.asks)::budget_scope;
    END LOOP;
    IF EXISTS (SELECT FROM label_budgets l WHERE l.namespace = e.namespace) THEN
        SELECT u.labels || e.labels INTO all_labels FROM runs u WHERE u.run_id = e.run_id;
        FOR r IN SELECT * FROM label_budgets l WHERE l.namespace = e.namespace AND all_labels->>l.label = l.value
                 ORDER BY l.budget_id LOOP
            SELECT * INTO o FROM open_uses(ARRAY(SELECT f FROM effects f JOIN runs u ON u.run_id = f.run_id
                WHERE f.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING') AND f.namespace = r.namespace
                  AND (u.labels || f.labels)->>r.label = r.value));
            RETURN NEXT ROW('label ' || r.label || '=' || r.value, r.limits,
                CASE WHEN r.per_day AND r.day < today THEN '{0,0,0,0}'::float8[] ELSE r.used END,
                o.uses, o.reserved, r.asks)::budget_scope;
        END LOOP;
    END IF;
END
$$;

-- Whether an effect may start under these budgets: 'ok' and with how much, 'wait' for what others have reserved or use
-- now, or 'spent' and which. One that has a budget of its own wants all that is left of it, unless nobody else has
-- reserved anything: then it gets what there is. `taken` is what the same claim has given away, by scope.
CREATE FUNCTION budget_verdict(e effects, taken jsonb, OUT verdict text, OUT bounds jsonb, OUT own double precision[])
LANGUAGE plpgsql STABLE SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s budget_scope; left_ double precision; room double precision;
    names text[] := '{TOKENS,COST_USD,WALL_SECONDS,TURNS}';
BEGIN
    verdict := 'ok';
    bounds := '[]';
    own := '{NULL,NULL,NULL,NULL}';
    FOR s IN SELECT * FROM budget_scopes(e) LOOP
        FOR i IN 1..4 LOOP
            CONTINUE WHEN s.limits[i] IS NULL;
            left_ := s.limits[i] - s.used[i];
            IF left_ <= 0 THEN
                verdict := 'spent';
                bounds := jsonb_build_object('of', s.of, 'what', names[i], 'limit', s.limits[i], 'used', s.used[i],
                                             'ask', s.asks);
                RETURN;
            END IF;
            room := left_ - s.open_[i] - coalesce((taken->s.of->>(i - 1))::float8, 0);
            IF starts_with(s.of, 'effect ') THEN
                own[i] := left_;
            ELSIF room <= 0 OR (own[i] > room AND (s.reserved[i] OR taken ? s.of)) THEN
                verdict := 'wait';
            END IF;
            bounds := bounds || jsonb_build_object('of', s.of, 'what', names[i], 'limit', s.limits[i], 'left', room,
                                                   'ask', s.asks);
        END LOOP;
    END LOOP;
END
$$;

-- Which of these effects of a run, whose head is locked, may start, each with its bounds.
CREATE FUNCTION admit_by_budget(ids uuid[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    e effects; v record; b jsonb; admitted jsonb := '{}'; taken jsonb := '{}'; was jsonb;
BEGIN
    FOR e IN SELECT f.* FROM effects f WHERE f.effect_id = ANY (ids) ORDER BY f.background, f.requested_seq LOOP
        SELECT * INTO v FROM budget_verdict(e, taken);
        CONTINUE WHEN v.verdict <> 'ok';
        admitted := admitted || jsonb_build_object(e.effect_id, v.bounds);
        FOR b IN SELECT DISTINCT x->'of' FROM jsonb_array_elements(v.bounds) x WHERE v.own <> '{NULL,NULL,NULL,NULL}' LOOP
            was := coalesce(taken->(b #>> '{}'), '[0,0,0,0]');
            taken := taken || jsonb_build_object(b #>> '{}', (
                SELECT jsonb_agg(coalesce(n.own, 0) + coalesce((was->>(n.o::int - 1))::float8, 0) ORDER BY n.o)
                FROM unnest(v.own) WITH ORDINALITY n(own, o)));
        END LOOP;
    END LOOP;
    RETURN admitted;
END
$$;

-- Queued effects in these shards whose budget is spent and is not one that asks: their owner fails them.
CREATE FUNCTION spent_effects_v1(p_shards int[])
RETURNS TABLE (run_id uuid, effect_id uuid, effect_key text, attempt int, kind text, open boolean, epoch bigint,
               iteration bigint, spent jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
BEGIN
    RETURN QUERY
    WITH waiting AS MATERIALIZED (
        SELECT f.effect_id FROM effects f JOIN run_budgets b ON b.run_id = f.run_id AND NOT b.asks
             JOIN run_heads h ON h.run_id = f.run_id AND h.shard = ANY (p_shards) AND NOT is_parked(h.state)
        WHERE f.budget IS NOT NULL AND f.state IN ('QUEUED', 'PARKED')
          AND (b.used[1] >= b.limits[1] OR b.used[2] >= b.limits[2] OR b.used[3] >= b.limits[3] OR b.used[4] >= b.limits[4])
        UNION
        SELECT f.effect_id FROM effects f
             JOIN run_heads h ON h.run_id = f.run_id AND h.shard = ANY (p_shards) AND NOT is_parked(h.state)
        WHERE f.budget <> '{}' AND f.budget IS NOT NULL AND f.state IN ('QUEUED', 'PARKED') AND f.attempt > 0
          AND NOT budget_asks(f.budget)
        UNION
        SELECT f.effect_id FROM label_budgets l
             JOIN dispatch_queue q ON q.namespace = l.namespace
             JOIN effects f ON f.effect_id = q.effect_id JOIN runs u ON u.run_id = f.run_id
             JOIN run_heads h ON h.run_id = f.run_id AND h.shard = ANY (p_shards) AND NOT is_parked(h.state)
        WHERE NOT l.asks AND NOT (l.per_day AND l.day < today) AND (u.labels || f.labels)->>l.label = l.value
          AND (l.used[1] >= l.limits[1] OR l.used[2] >= l.limits[2] OR l.used[3] >= l.limits[3] OR l.used[4] >= l.limits[4])
    )
    SELECT f.run_id, f.effect_id, f.key, f.attempt, f.kind, h.open, h.epoch, h.iteration, v.bounds
    FROM waiting w JOIN effects f ON f.effect_id = w.effect_id JOIN run_heads h ON h.run_id = f.run_id
         CROSS JOIN LATERAL budget_verdict(f, '{}') v
    WHERE f.cancel_reason IS NULL AND v.verdict = 'spent' AND NOT (v.bounds->>'ask')::boolean
    LIMIT 500;  -- of those that are judged: what is not spent after all hides nobody
END
$$;

-- The budget that an effect waits for: {verdict, of, what, limit, used}; NULL when it waits for none. Verdict `raise`: there
-- is room again, but only a raise lets it start once more.
CREATE FUNCTION budget_awaited_v1(p_effect uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
DECLARE
    e effects; v record;
BEGIN
    SELECT * INTO e FROM effects f WHERE f.effect_id = p_effect;
    SELECT * INTO v FROM budget_verdict(e, '{}');
    RETURN CASE WHEN v.verdict = 'spent' THEN v.bounds || '{"verdict": "spent"}'
                WHEN awaits_raise(e) THEN '{"verdict": "raise"}' WHEN v.verdict = 'wait' THEN '{"verdict": "wait"}' END;
END
$$;

-- Sets, raises and clears budgets. An item names a run, an effect of a run, or a label of a namespace. Of the budget of
-- a run or an effect only the limits change that are given; a label's is set whole, and keeps what it has counted. Effects
-- that are parked for a budget that asks may start once more, from now on.
CREATE FUNCTION set_budgets_v1(items jsonb) RETURNS TABLE (ord int, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    it record; h run_heads; subject text; today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
BEGIN
    PERFORM 1 FROM run_heads u WHERE u.run_id IN (
            SELECT (i->>'run_id')::uuid FROM jsonb_array_elements(items) i UNION
            SELECT f.run_id FROM effects f WHERE f.state = 'PARKED' AND f.asks AND f.namespace IN (
                SELECT i->>'namespace' FROM jsonb_array_elements(items) i WHERE i->>'run_id' IS NULL))
        ORDER BY u.run_id FOR UPDATE;
    FOR it IN SELECT (t.n - 1)::int AS ord, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
                     jsonb_to_record(t.item) AS i(run_id uuid, effect_key text, namespace text, label text, value text,
                         per_day boolean, budget jsonb, clear boolean, reason text, actor text)
              ORDER BY i.run_id, i.namespace, i.label, i.value, t.n
    LOOP
        IF it.run_id IS NOT NULL THEN
            SELECT * INTO h FROM run_heads u WHERE u.run_id = it.run_id FOR UPDATE;
            subject := it.run_id || CASE WHEN it.effect_key IS NULL THEN '' ELSE ' ' || it.effect_key END;
            IF it.effect_key IS NULL THEN
                UPDATE run_budgets b SET limits = ARRAY(
                        SELECT coalesce(n.fresh, n.was) FROM unnest(budget_limits(it.budget), b.limits)
                            WITH ORDINALITY n(fresh, was, o) ORDER BY n.o)
                    WHERE b.run_id = it.run_id;
            ELSE
                UPDATE effects e SET budget = e.budget || it.budget
                    WHERE e.run_id = it.run_id AND e.key = it.effect_key AND e.budget <> '{}' AND e.settled_seq IS NULL;
            END IF;
            outcome := CASE WHEN FOUND THEN 'ok' ELSE 'not_found' END;
        ELSIF it.clear THEN
            subject := it.label || '=' || it.value;
            DELETE FROM label_budgets b
                WHERE b.namespace = it.namespace AND b.label = it.label AND b.value = it.value;
            outcome := CASE WHEN FOUND THEN 'ok' ELSE 'not_found' END;
        ELSIF (SELECT count(*) FROM label_budgets) >= label_budgets_max() AND NOT EXISTS (
                SELECT FROM label_budgets b
                WHERE b.namespace = it.namespace AND b.label = it.label AND b.value = it.value) THEN
            outcome := 'too_many';
        ELSE
            subject := it.label || '=' || it.value;
            INSERT INTO label_budgets AS b (budget_id, namespace, label, value, per_day, limits, used, asks, day, reason,
                                            actor, created_at)
                SELECT gen_random_uuid(), it.namespace, it.label, it.value, it.per_day, budget_limits(it.budget),
                       ARRAY[coalesce(sum(u.input_tokens + u.output_tokens), 0), coalesce(sum(u.cost_usd), 0),
                             coalesce(sum(u.wall_s), 0), coalesce(sum(u.turns), 0)],
                       budget_asks(it.budget), today, it.reason, it.actor, clock_timestamp()
                FROM attempt_usage u WHERE it.per_day AND u.namespace = it.namespace AND u.labels->>it.label = it.value
                                       AND u.ended_at >= today::timestamp AT TIME ZONE 'UTC'
                ON CONFLICT (namespace, label, value) DO UPDATE SET limits = excluded.limits, asks = excluded.asks,
                    used = CASE WHEN b.per_day = excluded.per_day THEN b.used ELSE excluded.used END,
                    per_day = excluded.per_day, reason = excluded.reason, actor = excluded.actor;
            outcome := 'ok';
        END IF;
        IF outcome = 'ok' THEN
            PERFORM raised(it.run_id, it.effect_key, it.namespace, it.label, it.value);
            INSERT INTO operator_audit (recorded_at, action, subject, actor, reason, detail)
                VALUES (clock_timestamp(), CASE WHEN it.clear THEN 'CLEAR_BUDGET' WHEN it.run_id IS NULL THEN 'SET_BUDGET'
                        ELSE 'RAISE_BUDGET' END, subject, it.actor, it.reason,
                        jsonb_strip_nulls(jsonb_build_object('namespace', it.namespace, 'budget', it.budget,
                                                             'per_day', it.per_day)));
        END IF;
        RETURN QUERY SELECT it.ord, outcome;
    END LOOP;
END
$$;

-- Lets the effects go on that are parked for a budget that asks, of a run (or one of its effects) or of a label.
CREATE FUNCTION raised(p_run uuid, p_key text, p_namespace text, p_label text, p_value text) RETURNS void
LANGUAGE sql SET search_path = backburner, pg_temp AS $$
    WITH freed AS (
        UPDATE effects f SET asks = false, not_before = clock_timestamp() FROM runs u
        WHERE f.state = 'PARKED' AND f.asks AND u.run_id = f.run_id
          AND CASE WHEN p_run IS NULL THEN f.namespace = p_namespace AND (u.labels || f.labels)->>p_label = p_value
              ELSE f.run_id = p_run AND (p_key IS NULL OR f.key = p_key) END
        RETURNING f.effect_id, f.not_before
    )
    UPDATE dispatch_queue q SET not_before = f.not_before FROM freed f WHERE q.effect_id = f.effect_id
$$;

-- Most label budgets at a time: each is looked at for every dispatch in its namespace.
CREATE FUNCTION label_budgets_max() RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 1000 $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT SELECT ON attempt_usage, usage_daily, run_budgets, label_budgets TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION add_usage(jsonb, jsonb), spent_effects_v1(int[]), budget_awaited_v1(uuid),
        set_budgets_v1(jsonb) TO backburner_scheduler;
END
$$;
