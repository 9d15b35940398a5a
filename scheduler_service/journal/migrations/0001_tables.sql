-- Backburner's journal: tables.
--
-- Truth is `journal`, append-only. `runs`, `effects`, `timers` and `dispatch_queue` are projections, written in the
-- same transaction as the rows they project. Nobody writes a table directly: every write is a call of one function,
-- one call is one commit, and the roles of the services have EXECUTE on their functions and nothing else to write with.
--
--   create_runs_v1 -> append_v1 (requests, timers, ends) -> claim_v1 (dispatch) -> attempts_started_v1,
--   attempts_progress_v1, attempts_settle_v1 (executors) -> append_v1 ...
--   request_cancels_v1, resolve_external_v1 (any replica), attempts_lost_v1, readopt_v1 (owner, holder)
--   halt_runs_v1, resume_runs_v1, signal_runs_v1 (any replica)
--   audit_v1, set_holds_v1, drain_executors_v1, expire_executors_v1, order_settlements_v1 (operators, on any replica),
--   settle_by_hand_v1 (owner, as ordered); prune_runs_v1 (any replica, one at a time)
--   open_clients_v1, client_requests_v1, finish_runs_v1 (any replica, for the client), clients_seen_v1, halt_idle_v1
--   executor_hello_v1, executors_seen_v1, executor_gone_v1; claim_shards_v1, renew_shards_v1, release_shards_v1,
--   adopt_runs_v1, strike_v1
--
-- Lock order, everywhere: `dispatch_holds` as a table (by what dispatches), run heads in id order, then effects in id
-- order, then queue rows, last `provider_breakers` as a table (see 0028). Calls about several runs take heads with SKIP LOCKED and answer `busy` for the rest; calls
-- about one run wait.
--
-- Fences and states are checked by statements of their own after the head is locked: a snapshot taken in the same
-- statement as the lock is older than the lock.
--
-- The hot functions run on generic plans over indexes whatever the statistics say (their SET clauses): planning a call
-- anew costs more than the call (settling one attempt: 1.7 ms planned each time, 0.8 ms not).

CREATE TABLE runs (
    run_id uuid PRIMARY KEY,
    namespace text NOT NULL,
    key text,
    process text NOT NULL,
    client_driven boolean NOT NULL,
    state text NOT NULL CHECK (state IN ('RUNNING', 'CANCELLING', 'CLOSING', 'HALTED', 'PROCESS_ERROR',
                                         'COMPLETED', 'FAILED', 'CANCELLED', 'CONTINUED')),
    labels jsonb NOT NULL DEFAULT '{}',
    input_digest text NOT NULL,
    parent_run_id uuid,
    parent_effect_id uuid,
    previous_run_id uuid,
    next_run_id uuid,
    depth int NOT NULL DEFAULT 0,
    code_version text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    ended_at timestamptz,
    end_seq bigint,
    cancel_requested_at timestamptz,
    cancel_reason text,
    halt_reason text,
    resume_id text,
    reuse_from uuid,
    report jsonb,
    error jsonb,
    unobserved_failures int NOT NULL DEFAULT 0,
    CONSTRAINT ended_exactly_when_terminal
        CHECK ((state IN ('COMPLETED', 'FAILED', 'CANCELLED', 'CONTINUED')) = (ended_at IS NOT NULL))
);
COMMENT ON TABLE runs IS 'One row a run: what lists and polls show. Projection of the journal.';
COMMENT ON COLUMN runs.reuse_from IS 'Earlier run whose succeeded effects answer equal requests of this one.';
COMMENT ON COLUMN runs.resume_id IS 'Tells a repetition of the call that last resumed the run from another one.';
COMMENT ON COLUMN runs.input_digest IS 'Of the first run of a chain: that is what a repeated key is compared with.';
COMMENT ON COLUMN runs.depth IS 'Runs above it: 0 for one that is nobody''s child.';
-- A key names the newest run of a chain.
CREATE UNIQUE INDEX runs_key ON runs (namespace, key) WHERE key IS NOT NULL AND state <> 'CONTINUED';
CREATE INDEX runs_of_effects ON runs (parent_effect_id) WHERE parent_effect_id IS NOT NULL;
CREATE INDEX runs_open ON runs (namespace, run_id DESC) WHERE ended_at IS NULL;

CREATE TABLE run_heads (
    run_id uuid PRIMARY KEY,
    shard int NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    iteration bigint NOT NULL DEFAULT 0,
    recorded_at timestamptz NOT NULL,
    open boolean NOT NULL DEFAULT true,
    state text NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    closing boolean NOT NULL DEFAULT false,
    append_id text,
    strikes int NOT NULL DEFAULT 0,
    history_warned boolean NOT NULL DEFAULT false,
    open_effects int NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE run_heads IS 'The narrow row that serialises the appends of a run and carries its fence.';
CREATE INDEX run_heads_open ON run_heads (shard, run_id) WHERE open;
CREATE INDEX run_heads_detached ON run_heads (shard, run_id) WHERE NOT open AND open_effects > 0;

CREATE TABLE journal (
    run_id uuid NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    type text NOT NULL,
    cause bigint NOT NULL DEFAULT 0,
    effect_id uuid,
    effect_key text,
    attempt int NOT NULL DEFAULT 0,
    recorded_at timestamptz NOT NULL,
    writer text NOT NULL,
    data jsonb NOT NULL,
    PRIMARY KEY (run_id, seq),
    CONSTRAINT known_type CHECK (type IN (
        'RUN_CREATED', 'RUN_CLOSING', 'RUN_COMPLETED', 'RUN_FAILED', 'RUN_CANCELLED', 'RUN_HALTED', 'RUN_RESUMED',
        'RUN_CANCEL_REQUESTED', 'RUN_REPORTED', 'RUN_CONTINUED', 'PROCESS_RUNTIME_ERROR', 'PROCESS_LOG',
        'PATCH_MARKED', 'SIGNAL_RECEIVED', 'EFFECT_REQUESTED', 'EFFECT_DISPATCHED', 'EFFECT_STARTED',
        'EFFECT_PROGRESS', 'EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_CANCEL_REQUESTED',
        'EFFECT_RESOLVED', 'EFFECT_CANCELLED', 'EFFECT_PARKED', 'EFFECT_SUPERSEDED', 'EFFECT_REUSED',
        'CHILD_RUN_STARTED', 'TIMER_SET', 'TIMER_FIRED')),
    CONSTRAINT effect_rows_name_their_effect
        CHECK ((type LIKE 'EFFECT\_%') <= (effect_id IS NOT NULL AND effect_key IS NOT NULL))
);
COMMENT ON TABLE journal IS 'The truth: append-only, seq dense from 1 within a run, in commit order.';
COMMENT ON COLUMN journal.data IS 'proto3 JSON of the data message of backburner.journal.v1.JournalEvent, by type.';
CREATE UNIQUE INDEX journal_settles_once ON journal (effect_id)
    WHERE type IN ('EFFECT_RESOLVED', 'EFFECT_CANCELLED', 'EFFECT_REUSED');
CREATE UNIQUE INDEX journal_dispatches_once ON journal (effect_id, attempt) WHERE type = 'EFFECT_DISPATCHED';
CREATE UNIQUE INDEX journal_fails_once ON journal (effect_id, attempt)
    WHERE type IN ('EFFECT_ATTEMPT_FAILED', 'EFFECT_ATTEMPT_LOST', 'EFFECT_PARKED');
CREATE INDEX journal_progress ON journal (run_id, seq) WHERE type = 'EFFECT_PROGRESS';
CREATE INDEX journal_superseded ON journal (effect_id, attempt) WHERE type = 'EFFECT_SUPERSEDED';

CREATE TABLE effects (
    effect_id uuid PRIMARY KEY,
    run_id uuid NOT NULL,
    key text NOT NULL,
    namespace text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('SHELL', 'FUNCTION', 'AGENT', 'EXTERNAL', 'RUN', 'TIMER')),
    name text NOT NULL,
    harness text NOT NULL,
    pool text NOT NULL,
    background boolean NOT NULL,
    state text NOT NULL CHECK (state IN ('QUEUED', 'DISPATCHED', 'RUNNING', 'WAITING', 'PARKED', 'CANCELLING',
                                         'SUCCEEDED', 'FAILED', 'CANCELLED', 'TIMED_OUT')),
    attempt int NOT NULL DEFAULT 0,
    starts int NOT NULL DEFAULT 0,
    capabilities text[] NOT NULL,
    executor_labels jsonb NOT NULL,
    executor_id text,
    incarnation text,
    session_no int,
    token_hash bytea,
    past_tokens bytea[] NOT NULL DEFAULT '{}',
    cancel_reason text,
    cancel_message text,
    requested_seq bigint NOT NULL,
    settled_seq bigint,
    requested_at timestamptz NOT NULL,
    dispatched_at timestamptz,
    started_at timestamptz,
    settled_at timestamptz,
    last_activity_at timestamptz,
    not_before timestamptz,
    queue_deadline timestamptz,
    total_deadline timestamptz,
    max_attempts int NOT NULL,
    initial_s double precision NOT NULL,
    backoff double precision NOT NULL,
    max_interval_s double precision NOT NULL,
    non_retryable text[] NOT NULL,
    on_quota text NOT NULL DEFAULT 'FAIL_OVER' CHECK (on_quota IN ('FAIL_OVER', 'PARK', 'FAIL')),
    priority int NOT NULL,
    group_id text,
    group_max int,
    on_run_end text NOT NULL,
    labels jsonb NOT NULL,
    poll_interval_s double precision NOT NULL,
    progress jsonb,
    usage jsonb,
    usage_before jsonb,
    budget jsonb,
    asks boolean NOT NULL DEFAULT false,
    progress_ordinal int NOT NULL DEFAULT 0,
    progress_rows int NOT NULL DEFAULT 0,
    reason text,
    elapsed_s double precision,
    session jsonb,
    continues_on text NOT NULL DEFAULT '',
    resumes boolean NOT NULL DEFAULT true,
    UNIQUE (run_id, key),
    CONSTRAINT settled_exactly_when_terminal
        CHECK ((state IN ('SUCCEEDED', 'FAILED', 'CANCELLED', 'TIMED_OUT')) = (settled_seq IS NOT NULL)),
    CONSTRAINT parked_until_a_time CHECK (state <> 'PARKED' OR not_before IS NOT NULL),
    CONSTRAINT live_attempts_have_an_executor
        CHECK ((state IN ('DISPATCHED', 'RUNNING', 'CANCELLING'))
               <= (kind = 'RUN' OR (executor_id IS NOT NULL AND attempt > 0)))
) WITH (fillfactor = 70);
COMMENT ON COLUMN effects.starts IS 'Starts that count against max_attempts, with the harness that it is at now.';
COMMENT ON COLUMN effects.capabilities IS
    'Alternatives, the preferred one first; without the harnesses that have failed for a reason of their provider.';
COMMENT ON COLUMN effects.past_tokens IS 'Hashes of the tokens of attempts 1, 2, ... that are over, at most 100 of them.';
COMMENT ON COLUMN effects.session IS
    'HarnessSession that its attempts left last, for the next one to go on with; or `fresh_because`: why not.';
COMMENT ON COLUMN effects.continues_on IS 'Executor that has the session which the next attempt goes on with; empty: any.';
COMMENT ON COLUMN effects.resumes IS 'False: each attempt begins as the first one did (retry_session).';
COMMENT ON COLUMN effects.usage IS 'Of the newest attempt; usage_before is that of the ones before it.';
COMMENT ON COLUMN effects.budget IS
    'Its own budget: limits (see 0030) and asks; empty when only its run has one, NULL when neither has.';
COMMENT ON COLUMN effects.asks IS 'Parked since a budget is spent that asks, which nobody has raised yet.';
COMMENT ON TABLE effects IS 'One row an effect: its state now. Spec and result lie in the journal, at requested_seq and settled_seq.';
CREATE INDEX effects_live ON effects (executor_id) WHERE state IN ('DISPATCHED', 'RUNNING', 'CANCELLING');
CREATE INDEX effects_grouped ON effects (run_id, group_id)
    WHERE group_id IS NOT NULL AND state IN ('DISPATCHED', 'RUNNING', 'CANCELLING');
CREATE INDEX effects_open ON effects (run_id) WHERE settled_seq IS NULL;
CREATE INDEX effects_deadlines ON effects (least(queue_deadline, total_deadline))
    WHERE state IN ('QUEUED', 'WAITING', 'PARKED') AND least(queue_deadline, total_deadline) IS NOT NULL;
CREATE INDEX effects_newest ON effects (namespace, requested_at DESC, effect_id DESC);
CREATE INDEX effects_durations ON effects (settled_at)
    WHERE state = 'SUCCEEDED' AND elapsed_s IS NOT NULL AND kind <> 'FUNCTION';
CREATE INDEX effects_waiting ON effects (namespace, effect_id) WHERE state = 'WAITING';

CREATE TABLE run_groups (
    run_id uuid NOT NULL,
    group_id text NOT NULL,
    strategy text NOT NULL CHECK (strategy IN ('SEQUENTIAL', 'CONCURRENT', 'ADAPTIVE')),
    max_concurrency int NOT NULL,
    limit_ int NOT NULL,
    successes int NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, group_id),
    CONSTRAINT limit_is_within_bounds CHECK (limit_ BETWEEN 1 AND max_concurrency)
) WITH (fillfactor = 50);
COMMENT ON TABLE run_groups IS 'Concurrency groups, as they were declared first. Written under the lock of the run''s head.';
COMMENT ON COLUMN run_groups.limit_ IS
    'Most attempts that may be open now. ADAPTIVE only moves it; projection of the outcomes in the journal: see adapt_groups.';
COMMENT ON COLUMN run_groups.successes IS 'Successes since the limit was last changed.';

CREATE TABLE dispatch_queue (
    effect_id uuid PRIMARY KEY,
    run_id uuid NOT NULL,
    namespace text NOT NULL,
    pool text NOT NULL,
    capabilities text[] NOT NULL,
    executor_labels jsonb NOT NULL,
    background boolean NOT NULL,
    priority int NOT NULL,
    group_id text,
    group_max int,
    enqueued_at timestamptz NOT NULL,
    not_before timestamptz NOT NULL,
    rank timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE dispatch_queue IS 'What waits for a slot. Small and hot: a row lives from the request to the claim.';
COMMENT ON COLUMN dispatch_queue.rank IS
    'enqueued_at less 30 s for each step of priority: so waiting 30 s is worth one step, and the order is indexable.';
CREATE INDEX dispatch_queue_next ON dispatch_queue (namespace, pool, background, rank);

CREATE TABLE timers (
    run_id uuid NOT NULL,
    ordinal int NOT NULL,
    fire_at timestamptz NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (run_id, ordinal)
);
COMMENT ON TABLE timers IS 'Durable timers that were set and have not fired. Projection of TIMER_SET and TIMER_FIRED.';

CREATE TABLE effect_output (
    effect_id uuid NOT NULL,
    attempt int NOT NULL,
    stream smallint NOT NULL CHECK (stream IN (1, 2)),
    offset_ bigint NOT NULL CHECK (offset_ >= 0),
    run_id uuid NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (effect_id, attempt, stream, offset_)
);
COMMENT ON TABLE effect_output IS 'Captured stdout (1) and stderr (2) by byte offset; a hole is what was not kept.';

CREATE TABLE blobs (
    run_id uuid NOT NULL,
    digest text NOT NULL,
    media_type text NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (run_id, digest)
);
COMMENT ON TABLE blobs IS 'Payloads too large to lie in the journal, by SHA-256. They belong to a run.';

CREATE TABLE shards (
    shard int PRIMARY KEY,
    owner text,
    epoch bigint NOT NULL DEFAULT 0,
    expires_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
COMMENT ON TABLE shards IS 'Leases of the shards, by the database clock. A new owner is a new epoch.';
INSERT INTO shards (shard) SELECT generate_series(0, 15);

CREATE TABLE schedulers (
    scheduler_id text PRIMARY KEY,
    address text NOT NULL,
    version text NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL
);
COMMENT ON TABLE schedulers IS 'Replicas of the scheduler service, seen within the last day.';

CREATE TABLE executors (
    executor_id text PRIMARY KEY,
    incarnation text NOT NULL,
    session_no int NOT NULL,
    holder text NOT NULL,
    address text NOT NULL,
    namespace text NOT NULL,
    pools jsonb NOT NULL,
    capabilities text[] NOT NULL,
    labels jsonb NOT NULL,
    version text NOT NULL,
    state text NOT NULL CHECK (state IN ('CONNECTED', 'DISCONNECTED', 'DRAINING', 'LOST')),
    connected_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    clock_skew_s double precision NOT NULL,
    ordered_drain text
) WITH (fillfactor = 50);
COMMENT ON COLUMN executors.ordered_drain IS 'Why an operator lets it take nothing new; NULL: none does.';
COMMENT ON TABLE executors IS 'Executors, and the number of the session that their dispatches belong to.';

CREATE TABLE requests (
    namespace text NOT NULL,
    request_id text NOT NULL,
    kind text NOT NULL,
    digest text NOT NULL,
    answer jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (namespace, request_id)
);
CREATE INDEX requests_age ON requests (created_at);
COMMENT ON TABLE requests IS 'Answers of calls that carry a request id, for 24 hours.';

-- Append-only for everybody, the owner of the table included: not a matter of discipline.
CREATE FUNCTION journal_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the journal is append-only: % is refused', tg_op
        USING ERRCODE = 'BB001', HINT = 'whole runs are removed by retention';
END
$$;
CREATE TRIGGER journal_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION journal_is_append_only();
