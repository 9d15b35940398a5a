-- What people see of agents: their transcripts, and what executors found of their harnesses.
ALTER TABLE effect_output
    DROP CONSTRAINT effect_output_stream_check,
    ADD CONSTRAINT effect_output_stream_check CHECK (stream IN (1, 2, 3));
COMMENT ON TABLE effect_output IS
    'Captured stdout (1), stderr (2) and transcript of an agent (3) by byte offset; a hole is what was not kept.';

ALTER TABLE executors ADD COLUMN harness_checks jsonb NOT NULL DEFAULT '[]';
COMMENT ON COLUMN executors.harness_checks IS 'What it found of the harnesses that it knows: HarnessCheck as proto3 JSON.';
