-- A run that is halted because its client was silent goes on when that client calls. Who else halts a run, and with
-- whatever words, has it wait for a resumption: so it is told apart by a column that no caller can write.

ALTER TABLE client_runs ADD COLUMN idle_halt boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN client_runs.idle_halt IS
    'The run is halted because its client was silent, and goes on with its next call. Written under the head''s lock.';

-- Timers as effects whose run has ended without them: no run is in memory for them, so they are looked for when due.
CREATE INDEX effects_timers_due ON effects (not_before) WHERE kind = 'TIMER' AND state = 'WAITING';
