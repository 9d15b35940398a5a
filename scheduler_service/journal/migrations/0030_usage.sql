-- What attempts consumed, and what may be. A row of `attempt_usage` is written once an attempt has ended, in the commit
-- that says so: totals are exact, and a settlement that is repeated counts once. Of a lost attempt counts what was last
-- known of it. Retention adds up what it removes by days.
--
-- Budgets are checked by the claim, under the lock of the run's head and of the namespace's label budgets. What an open
-- attempt may still consume is reserved as long as it is open: that is computed from its state, so nothing can leak.
-- Figures are arrays of four: tokens, US dollars, seconds, turns. NULL in a limit: no bound.
--
-- Lock order: label budgets are locked after everything else (breakers too), in the order of namespace, label and value, by
-- what ends attempts and by who sets them; the claim locks them before any head and then skips heads that somebody holds,
-- so that it never waits for those who wait for it. Breakers it locks before them, or not at all.

CREATE TABLE attempt_usage (
    effect_id uuid NOT NULL,
    attempt int NOT NULL,
    run_id uuid NOT NULL,
    namespace text NOT NULL,
    process text NOT NULL,
    harness text NOT NULL,
    model text NOT NULL,
    labels jsonb NOT NULL,
    input_tokens double precision NOT NULL,
    output_tokens double precision NOT NULL,
    cached_input_tokens double precision NOT NULL,
    cost_usd double precision,
    cost_unknown boolean NOT NULL,
    turns int NOT NULL,
    wall_s double precision NOT NULL,
    ended_at timestamptz NOT NULL,
    PRIMARY KEY (effect_id, attempt)
);
COMMENT ON TABLE attempt_usage IS
    'What each attempt consumed that has ended. Functions that reported nothing are left out where no budget counts them.';
COMMENT ON COLUMN attempt_usage.labels IS 'Those of the run, and of the effect, which come first.';
COMMENT ON COLUMN attempt_usage.cost_unknown IS 'It consumed something whose price is not known.';
CREATE INDEX attempt_usage_run ON attempt_usage (run_id);
CREATE INDEX attempt_usage_ended ON attempt_usage (namespace, ended_at);

CREATE TABLE usage_daily (
    day date NOT NULL,
    namespace text NOT NULL,
    process text NOT NULL,
    harness text NOT NULL,
    model text NOT NULL,
    labels jsonb NOT NULL,
    attempts bigint NOT NULL,
    input_tokens double precision NOT NULL,
    output_tokens double precision NOT NULL,
    cached_input_tokens double precision NOT NULL,
    cost_usd double precision,
    costs_unknown bigint NOT NULL,
    turns bigint NOT NULL,
    wall_s double precision NOT NULL,
    PRIMARY KEY (namespace, day, process, harness, model, labels)
);
COMMENT ON TABLE usage_daily IS 'What runs consumed that retention has removed, by days (UTC).';

CREATE TABLE run_budgets (
    run_id uuid PRIMARY KEY,
    limits double precision[] NOT NULL,
    used double precision[] NOT NULL DEFAULT '{0,0,0,0}',
    costs_unknown int NOT NULL DEFAULT 0,
    asks boolean NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE run_budgets IS 'Budgets of runs, and what ended attempts have used of them. Written under the lock of the head.';
COMMENT ON COLUMN run_budgets.asks IS 'What is over the limit waits for a raise, instead of failing.';

CREATE TABLE label_budgets (
    budget_id uuid PRIMARY KEY,
    namespace text NOT NULL,
    label text NOT NULL,
    value text NOT NULL,
    per_day boolean NOT NULL,
    limits double precision[] NOT NULL,
    used double precision[] NOT NULL,
    costs_unknown int NOT NULL DEFAULT 0,
    asks boolean NOT NULL,
    day date NOT NULL,
    reason text NOT NULL,
    actor text NOT NULL,
    created_at timestamptz NOT NULL,
    UNIQUE (namespace, label, value)
) WITH (fillfactor = 50);
COMMENT ON TABLE label_budgets IS 'Budgets of labels, as operators set them, and what is used of them: since they were set, or on their day.';

-- The sum of the usages of two attempts, or of earlier ones and one. A cost that is not known is counted, not guessed.
CREATE FUNCTION add_usage(a jsonb, b jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN a IS NULL THEN b WHEN b IS NULL THEN a ELSE
        jsonb_strip_nulls(jsonb_build_object(
            'input_tokens', coalesce((a->>'input_tokens')::float8, 0) + coalesce((b->>'input_tokens')::float8, 0),
            'output_tokens', coalesce((a->>'output_tokens')::float8, 0) + coalesce((b->>'output_tokens')::float8, 0),
            'cached_input_tokens', coalesce((a->>'cached_input_tokens')::float8, 0)
                                   + coalesce((b->>'cached_input_tokens')::float8, 0),
            'reasoning_tokens', coalesce((a->>'reasoning_tokens')::float8, 0)
                                + coalesce((b->>'reasoning_tokens')::float8, 0),
            'cache_write_tokens', coalesce((a->>'cache_write_tokens')::float8, 0)
                                  + coalesce((b->>'cache_write_tokens')::float8, 0),
            'turns', coalesce((a->>'turns')::int, 0) + coalesce((b->>'turns')::int, 0),
            'cost_usd', CASE WHEN a ? 'cost_usd' OR b ? 'cost_usd'
                             THEN coalesce((a->>'cost_usd')::float8, 0) + coalesce((b->>'cost_usd')::float8, 0) END,
            'costs_unknown', coalesce((a->>'costs_unknown')::int, (NOT a ? 'cost_usd')::int)
                             + coalesce((b->>'costs_unknown')::int, (NOT b ? 'cost_usd')::int),
            'model', coalesce(b->>'model', a->>'model'))) END
$$;

-- Tokens, dollars and turns of a usage, with seconds, as an array.
CREATE FUNCTION figures(usage jsonb, wall_s double precision) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY[coalesce((usage->>'input_tokens')::float8, 0) + coalesce((usage->>'output_tokens')::float8, 0),
                 coalesce((usage->>'cost_usd')::float8, 0), coalesce(wall_s, 0), coalesce((usage->>'turns')::float8, 0)]
$$;

-- Counts the attempts that ended in journal rows of these runs after these seqs. Called once, last, by what ends attempts.
CREATE FUNCTION count_usage(p_runs uuid[], p_after bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    budgeted boolean := EXISTS (SELECT FROM label_budgets);
    counted attempt_usage[];
BEGIN
    WITH ended AS (
        SELECT DISTINCT ON (j.effect_id, j.attempt) j.run_id, j.effect_id, j.attempt, j.recorded_at, e.kind, e.namespace,
               CASE WHEN e.kind = 'AGENT' THEN (  -- the effect may be at its next harness by now
                   SELECT d.data->>'harness' FROM journal d WHERE d.effect_id = j.effect_id AND d.attempt = j.attempt
                   AND d.type = 'EFFECT_DISPATCHED') ELSE e.harness END AS harness, e.labels, e.usage, e.started_at, e.requested_seq, e.budget,
               CASE WHEN j.type = 'EFFECT_ATTEMPT_LOST'
                    THEN extract(epoch FROM greatest(e.last_activity_at, e.started_at, e.dispatched_at)
                                            - coalesce(e.started_at, e.dispatched_at))
                    ELSE trim(trailing 's' FROM j.data->>'elapsed')::float8 END AS wall_s
        FROM unnest(p_runs, p_after) u(run_id, seq)
             -- by the key, whatever the statistics say: these are the last rows of the run
             CROSS JOIN LATERAL (SELECT * FROM journal o WHERE o.run_id = u.run_id AND o.seq > u.seq
                                 ORDER BY o.seq LIMIT 100000) j
             JOIN effects e ON e.effect_id = j.effect_id AND e.attempt = j.attempt
        WHERE j.type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_RESOLVED', 'EFFECT_CANCELLED',
                         'EFFECT_PARKED')
          AND j.attempt > 0 AND NOT j.data ? 'never_started'
        ORDER BY j.effect_id, j.attempt, j.seq
    ), written AS (
        INSERT INTO attempt_usage (effect_id, attempt, run_id, namespace, process, harness, model, labels, input_tokens,
                                   output_tokens, cached_input_tokens, cost_usd, cost_unknown, turns, wall_s, ended_at)
            SELECT e.effect_id, e.attempt, e.run_id, e.namespace, r.process, e.harness,
                   coalesce(e.usage->>'model', CASE WHEN e.kind = 'AGENT' THEN (
                       SELECT q.data #>> '{spec,agent,model}' FROM journal q
                       WHERE q.run_id = e.run_id AND q.seq = e.requested_seq) END, ''),
                   r.labels || e.labels, coalesce((e.usage->>'input_tokens')::float8, 0),
                   coalesce((e.usage->>'output_tokens')::float8, 0),
                   coalesce((e.usage->>'cached_input_tokens')::float8, 0), (e.usage->>'cost_usd')::float8,
                   NOT coalesce(e.usage ? 'cost_usd', false)
                   AND (e.usage IS NOT NULL OR (e.kind = 'AGENT' AND e.started_at IS NOT NULL)),
                   coalesce((e.usage->>'turns')::int, 0), coalesce(e.wall_s, 0), e.recorded_at
            FROM ended e JOIN runs r ON r.run_id = e.run_id
            WHERE e.kind <> 'FUNCTION' OR e.usage IS NOT NULL OR e.budget IS NOT NULL OR budgeted
            ON CONFLICT DO NOTHING
            RETURNING attempt_usage.*
    ), run_totals AS (
        UPDATE run_budgets b SET costs_unknown = b.costs_unknown + s.unknown, used = ARRAY[
                b.used[1] + s.tokens, b.used[2] + s.cost, b.used[3] + s.wall, b.used[4] + s.turns]
            FROM (SELECT w.run_id, sum(w.input_tokens + w.output_tokens) AS tokens, coalesce(sum(w.cost_usd), 0) AS cost,
                         sum(w.wall_s) AS wall, sum(w.turns) AS turns, count(*) FILTER (WHERE w.cost_unknown)::int AS unknown
                  FROM written w GROUP BY w.run_id) s
            WHERE b.run_id = s.run_id
    )
    SELECT array_agg(w::attempt_usage) INTO counted FROM written w;
    IF budgeted AND counted IS NOT NULL THEN
        PERFORM count_label_usage(counted);
    END IF;
END
$$;

-- Adds what attempts consumed to the budgets of their labels. One whose day is over begins anew.
CREATE FUNCTION count_label_usage(counted attempt_usage[]) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM 1 FROM label_budgets b
        WHERE EXISTS (SELECT FROM unnest(counted) c WHERE c.namespace = b.namespace AND c.labels->>b.label = b.value)
        ORDER BY b.namespace, b.label, b.value FOR UPDATE;
    UPDATE label_budgets b SET day = s.today, costs_unknown = CASE WHEN s.anew THEN 0 ELSE b.costs_unknown END + s.unknown,
            used = ARRAY[CASE WHEN s.anew THEN 0 ELSE b.used[1] END + s.tokens, CASE WHEN s.anew THEN 0 ELSE b.used[2] END + s.cost,
                         CASE WHEN s.anew THEN 0 ELSE b.used[3] END + s.wall, CASE WHEN s.anew THEN 0 ELSE b.used[4] END + s.turns]
        FROM (SELECT l.budget_id, sum(c.input_tokens + c.output_tokens) AS tokens, coalesce(sum(c.cost_usd), 0) AS cost,
                     sum(c.wall_s) AS wall, sum(c.turns) AS turns, count(*) FILTER (WHERE c.cost_unknown)::int AS unknown,
                     greatest(l.day, (max(c.ended_at) AT TIME ZONE 'UTC')::date) AS today,
                     l.per_day AND l.day < (max(c.ended_at) AT TIME ZONE 'UTC')::date AS anew
              FROM unnest(counted) c JOIN label_budgets l ON l.namespace = c.namespace AND c.labels->>l.label = l.value
              GROUP BY l.budget_id) s
        WHERE b.budget_id = s.budget_id;
END
$$;

-- What is removed with these runs, by days.
CREATE FUNCTION roll_up_usage(p_runs uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    WITH gone AS (DELETE FROM attempt_usage u WHERE u.run_id = ANY (p_runs) RETURNING u.*)
    INSERT INTO usage_daily AS d (day, namespace, process, harness, model, labels, attempts, input_tokens, output_tokens,
                                  cached_input_tokens, cost_usd, costs_unknown, turns, wall_s)
        SELECT (g.ended_at AT TIME ZONE 'UTC')::date, g.namespace, g.process, g.harness, g.model, g.labels, count(*),
               sum(g.input_tokens), sum(g.output_tokens), sum(g.cached_input_tokens), sum(g.cost_usd),
               count(*) FILTER (WHERE g.cost_unknown), sum(g.turns), sum(g.wall_s)
        FROM gone g GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (namespace, day, process, harness, model, labels) DO UPDATE SET
            attempts = d.attempts + excluded.attempts, input_tokens = d.input_tokens + excluded.input_tokens,
            output_tokens = d.output_tokens + excluded.output_tokens,
            cached_input_tokens = d.cached_input_tokens + excluded.cached_input_tokens,
            cost_usd = CASE WHEN d.cost_usd IS NULL THEN excluded.cost_usd
                            ELSE d.cost_usd + coalesce(excluded.cost_usd, 0) END,
            costs_unknown = d.costs_unknown + excluded.costs_unknown, turns = d.turns + excluded.turns,
            wall_s = d.wall_s + excluded.wall_s;
    DELETE FROM run_budgets b WHERE b.run_id = ANY (p_runs);
END
$$;
