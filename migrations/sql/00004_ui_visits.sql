-- +goose Up
-- What sessions were given a way into which sandbox's web UI. A row outlives its
-- session, until the sandbox's provider was told that it is over.
CREATE TABLE ui_visits (
    session_id TEXT      NOT NULL, -- of sessions, which may have it no more
    sandbox_id TEXT      NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    until      TIMESTAMP NOT NULL, -- nothing that was opened is good for longer
    PRIMARY KEY (session_id, sandbox_id)
);
CREATE INDEX ui_visits_sandbox ON ui_visits (sandbox_id);

-- +goose Down
DROP TABLE ui_visits;
